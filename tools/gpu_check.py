"""`make gpu-check`: the CUDA kernels on the GPU of this machine: tests, compute-sanitizer, then the benchmark.

Needs nvcc, PyTorch with CUDA, NumPy and pytest, and no network. A part that fails stops no other; a table of the parts
comes last. The exit status is 0 only if all parts passed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
KERNEL_TESTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_cuda*.py"))
FRONTEND_TESTS = ["tests/test_gpu_torch.py"]
# For sanitizers, which make everything a hundred times slower: every kernel a few times.
FEW = "test_several_turns_of_every_block or test_sum_of_frames_of_many_kinds"
PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]


class Part(NamedTuple):
    """A command and how many seconds it may take."""

    name: str
    command: list[str]
    limit: float


def compute_capability() -> str | None:
    """Of the first GPU, such as "90"; None if PyTorch sees none."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}"


def parts(capability: str, output: str | None) -> list[Part]:
    """What is to be run, in order."""
    python = sys.executable
    make = ["make", f"PYTHON={python}"]
    found = [
        Part("build", [*make, "kernels", "cuda", f"CUDA_ARCH={capability}"], 240),
        Part("kernels' tests", [python, *PYTEST, *KERNEL_TESTS], 240),
        Part("PyTorch's tests", [python, *PYTEST, *FRONTEND_TESTS], 120),
    ]
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck") if sanitizer else ():
        checked = [str(sanitizer), f"--tool={tool}", "--error-exitcode=9", python, *PYTEST, "-k", FEW]
        found.append(Part(tool, [*checked, "tests/test_cuda_encode.py", "tests/test_cuda_decode.py"], 90))
    written = [] if output is None else ["--output", output]
    found.append(Part("benchmark", [python, "-m", "benchmarks.gpu", *written], 120))
    return found


def run(part: Part) -> tuple[str, float]:
    """How it ended, and after how many seconds."""
    print(f"== {part.name}: {' '.join(part.command)}", flush=True)
    start = time.monotonic()
    environment = {**os.environ, "HVD_QSGD_TEST_GPU": "1", "PYTHONPATH": str(ROOT)}
    try:
        status = subprocess.run(part.command, cwd=ROOT, env=environment, timeout=part.limit).returncode
        ended = "passed" if status == 0 else f"FAILED (status {status})"
    except subprocess.TimeoutExpired:
        ended = f"STOPPED after {part.limit:.0f} s"
    except OSError as error:
        ended = f"FAILED ({error})"
    return ended, time.monotonic() - start


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="FILE", help="write the benchmark's tables there, too")
    options = parser.parse_args(arguments)
    capability = compute_capability()
    if capability is None:
        print(f"gpu-check: {sys.executable} has no PyTorch that sees a GPU: nothing was checked", file=sys.stderr)
        return 1
    results = [(part.name, *run(part)) for part in parts(capability, options.output)]
    print("\n".join(f"{name:16} {ended:24} {seconds:6.0f} s" for name, ended, seconds in results))
    return 0 if all(ended == "passed" for _, ended, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
