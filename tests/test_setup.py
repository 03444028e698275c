"""What setup.py compiles: with a make, an nvcc and an nvidia-smi that only tell how they were called."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parent.parent / "setup.py"
CHANGED = ("CUDA_ARCH", "HVD_QSGD_CUDA", "MAKE", "NVCC")
NVIDIA_SMI = "printf '9.0\\n8.0\\n9.0\\n'"


@pytest.fixture
def called(tmp_path: Path):
    """The targets that `setup.py build_py` of a package without files makes, with these commands and variables."""
    package = tmp_path / "package" / "hvd_qsgd"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '1'")
    (package / "libhvd_qsgd_cuda.so").write_text("built before")
    (package / "transport").mkdir()
    (package / "transport" / "__init__.py").touch()
    for file in (SETUP, SETUP.with_name("pyproject.toml"), SETUP.with_name("README.md"), SETUP.with_name("LICENSE")):
        (package.parent / file.name).write_text(file.read_text())

    def run(commands: dict[str, str], **variables: str):
        commands = {"make": 'echo "$@" >> calls; case "$3 $CUDA_ARCH" in "cuda broken") exit 2;; esac', **commands}
        for name, script in commands.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / name).chmod(0o755)
        kept = {key: value for key, value in os.environ.items() if key not in CHANGED}
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")], cwd=package.parent,
            env={**kept, "PATH": str(tmp_path), **variables}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        calls = package.parent / "calls"
        told = [line.split() for line in calls.read_text().splitlines()] if calls.exists() else []
        cuda = [" ".join(words[4:-1]) for words in told if words[2] == "cuda"]  # after WERROR=, before PYTHON=
        return done, cuda, (tmp_path / "lib" / "hvd_qsgd" / "libhvd_qsgd_cuda.so").exists()

    return run


@pytest.mark.parametrize(
    ("commands", "variables", "expected"),
    [
        ({}, {}, []),
        ({"nvidia-smi": NVIDIA_SMI}, {}, []),
        ({"nvcc": "", "nvidia-smi": "echo no devices; exit 9"}, {}, []),
        ({"nvcc": "", "nvidia-smi": NVIDIA_SMI}, {}, ["CUDA_ARCH=80 90"]),
        ({"nvcc": "", "nvidia-smi": NVIDIA_SMI}, {"CUDA_ARCH": "75"}, [""]),
        ({"nvcc": "", "nvidia-smi": NVIDIA_SMI}, {"HVD_QSGD_CUDA": "0"}, []),
        ({"nvidia-smi": NVIDIA_SMI}, {"HVD_QSGD_CUDA": "1"}, [""]),  # make says that nvcc is missing
    ],
    ids=str,
)
def test_cuda(called, commands, variables, expected):
    done, cuda, packaged = called(commands, **variables)
    assert done.returncode == 0, done.stderr
    assert cuda == expected
    assert packaged == (variables.get("HVD_QSGD_CUDA") != "0")


def test_what_went_wrong(called):
    done, _, _ = called({}, HVD_QSGD_CUDA="yes")
    assert "HVD_QSGD_CUDA=yes is neither 1 (with the CUDA kernels) nor 0" in done.stderr
    done, cuda, _ = called({}, HVD_QSGD_CUDA="1", CUDA_ARCH="broken")
    assert "make cuda exited with 2; HVD_QSGD_CUDA=0 installs without the CUDA kernels" in done.stderr
    assert (done.returncode, len(cuda)) == (1, 1)
