"""Package hvd_qsgd with its kernel library. What to compile and how is in the Makefile, and only there."""

import os
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


class BuildWithKernels(build_py):
    """Compile the kernels first; an editable install leaves that to `make kernels`."""

    def run(self) -> None:
        if not self.editable_mode:
            command = [os.environ.get("MAKE", "make"), "-C", str(Path(__file__).resolve().parent), "kernels"]
            try:
                subprocess.run([*command, "WERROR="], check=True)
            except FileNotFoundError:
                raise SystemExit("building needs make and a C++17 compiler (g++ or clang++)") from None
            except subprocess.CalledProcessError as error:
                raise SystemExit(f"make kernels exited with {error.returncode}") from None
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
