"""Package hvd_qsgd with its libraries. What to compile and how is in the Makefile, and only there."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

CUDA = os.environ.get("HVD_QSGD_CUDA", "")  # "1": with the CUDA kernels, "0": without; else: if there is a GPU
if CUDA not in ("", "0", "1"):
    raise SystemExit(f"HVD_QSGD_CUDA={CUDA} is neither 1 (with the CUDA kernels) nor 0 (without them)")


def make(target: str, *variables: str) -> None:
    command = [os.environ.get("MAKE", "make"), "-C", str(Path(__file__).resolve().parent), target, "WERROR="]
    command += variables
    try:
        subprocess.run([*command, f"PYTHON={sys.executable}"], check=True)
    except FileNotFoundError:
        raise SystemExit("building needs make and a C++17 compiler (g++ or clang++)") from None
    except subprocess.CalledProcessError as error:
        hint = "; HVD_QSGD_CUDA=0 installs without the CUDA kernels" if target == "cuda" else ""
        raise SystemExit(f"make {target} exited with {error.returncode}{hint}") from None


def architectures_here() -> "list[str]":
    """Of this machine's GPUs, such as 90 for compute capability 9.0; none if there is no nvcc for them."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    if not shutil.which(os.environ.get("NVCC", "nvcc")) or not shutil.which(query[0]):
        return []
    found = subprocess.run(query, stdout=subprocess.PIPE, text=True, check=False).stdout.split()
    return sorted({each.replace(".", "") for each in found if each.replace(".", "").isdigit()}, key=int)


def make_cuda() -> None:
    """Unless asked for, they are built only for the GPUs that are here: for all kinds it takes many minutes."""
    here = [] if CUDA else architectures_here()
    if here and "CUDA_ARCH" not in os.environ:
        make("cuda", f"CUDA_ARCH={' '.join(here)}")
    elif here or CUDA == "1":
        make("cuda")


class BuildWithKernels(build_py):
    """Compile the libraries first; an editable install leaves that to `make kernels`, `tensorflow` and `cuda`.

    The TensorFlow ops are built for the TensorFlow that is there while building: with `--no-build-isolation`.
    """

    def run(self) -> None:
        if not self.editable_mode:
            make("kernels")
            if importlib.util.find_spec("tensorflow"):
                make("tensorflow")
            make_cuda()
        super().run()

    def find_data_files(self, package: str, src_dir: str) -> "list[str]":
        files = super().find_data_files(package, src_dir)
        return [file for file in files if CUDA != "0" or Path(file).name != "libhvd_qsgd_cuda.so"]


class PlatformWheel(bdist_wheel):
    """The library is loaded with ctypes: one wheel for a platform serves every Python 3."""

    def get_tag(self) -> "tuple[str, str, str]":
        return "py3", "none", super().get_tag()[2]


class PlatformDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(
    distclass=PlatformDistribution,
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel},
)
