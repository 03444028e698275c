"""Package hvd_qsgd with its libraries. What to compile and how is in the Makefile, and only there."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


def make(target: str) -> None:
    command = [os.environ.get("MAKE", "make"), "-C", str(Path(__file__).resolve().parent), target, "WERROR="]
    try:
        subprocess.run([*command, f"PYTHON={sys.executable}"], check=True)
    except FileNotFoundError:
        raise SystemExit("building needs make and a C++17 compiler (g++ or clang++)") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"make {target} exited with {error.returncode}") from None


class BuildWithKernels(build_py):
    """Compile the libraries first; an editable install leaves that to `make kernels` and `make tensorflow`.

    The TensorFlow ops are built for the TensorFlow that is there while building: with `--no-build-isolation`.
    """

    def run(self) -> None:
        if not self.editable_mode:
            make("kernels")
            if importlib.util.find_spec("tensorflow"):
                make("tensorflow")
        super().run()


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
