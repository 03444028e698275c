"""Rewrite requirements/env.txt from env.in: the newest versions that fit together, with every file's hash."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
# tf_keras asks for the package `tensorflow`; tensorflow-cpu is the same modules without CUDA.
OPTIONS = [
    *("--generate-hashes", "--no-header", "--no-annotate", "--upgrade", "--quiet"),
    *("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"),
    *("--no-emit-package", "tensorflow"),
]


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        venv.create(temporary, with_pip=True)
        programs = Path(temporary) / "bin"
        subprocess.run([programs / "pip", "install", "--quiet", "uv"], check=True)
        files = ["-o", str(REQUIREMENTS / "env.txt"), str(REQUIREMENTS / "env.in")]
        done = subprocess.run([programs / "uv", "pip", "compile", *OPTIONS, *files], check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
