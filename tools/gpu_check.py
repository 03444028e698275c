"""`make gpu-check`: the CUDA kernels on the GPU of this machine: tests, compute-sanitizer, then the benchmark.

Needs nvcc, PyTorch with CUDA, NumPy and pytest, and no network. A part that fails stops no other; a table of the parts
comes last. The exit status is 0 only if all parts passed, or were left out for want of compute-sanitizer, or of a
Horovod whose ranks can share a GPU, which the table says. All together end within nine minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import launch

ROOT = Path(__file__).resolve().parent.parent
KERNEL_TESTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_cuda*.py"))
FRONTEND_TESTS = ["tests/test_gpu_graphs.py", "tests/test_gpu_torch.py"]
# For sanitizers, which make everything a hundred times slower: every kernel a few times.
FEW = (
    "test_several_turns_of_every_block or test_sum_of_frames_of_many_kinds or test_mixed_gradients or test_sums "
    "or test_padding"
)
OF_FILES = ("encode", "decode", "many", "variable", "elias_decode", "rans_decode")
LEFT_OUT = "left out: "
GRACE = 3.0  # seconds for a part that is stopped
RANKS_JOB = "tests/ranks/gpu_job.py"
# What pyproject.toml asks of pytest needs plugins, which may not be there. After an illegal access every test fails.
PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "--tb=short", "--maxfail=20"]
# Every tensor gets memory of its own: PyTorch's allocator would hide what is read or written beyond one. What the API
# answers is the tests' concern, and PyTorch asks for some things that are not there.
SANITIZED = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1"]
SANITIZER_OPTIONS = ["--error-exitcode=9", "--report-api-errors=no"]


class Part(NamedTuple):
    """A command, how many seconds it may take, and what keeps it from being run."""

    name: str
    command: list[str]
    limit: float
    missing: str = ""


def compute_capability() -> str | None:
    """Of the first GPU, such as "90"; None if PyTorch sees none."""
    try:
        import torch
    except (ImportError, OSError) as error:  # what it links to may be missing, too
        print(f"gpu-check: PyTorch cannot be imported: {error}", file=sys.stderr)
        return None
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}"


def ranks_command(mpi: bool) -> list[str]:
    """Starts two ranks that share the first GPU; raises ``FileNotFoundError`` without a launcher."""
    if mpi:
        return launch.mpirun_command(2, [RANKS_JOB])[0]
    return launch.horovodrun_command(2, [RANKS_JOB], "gloo")[0]


def ranks_part() -> Part:
    """Those ranks, where there is a Horovod that can do that."""
    part = Part("two ranks", [], 40)
    try:
        import horovod.torch as hvd
    except Exception as error:  # of any kind: what was built for another PyTorch fails in many ways
        return part._replace(missing=f"Horovod cannot be imported ({error})")
    if not hvd.cuda_built():
        return part._replace(missing="this Horovod was built for a PyTorch without CUDA")
    if hvd.nccl_built():
        return part._replace(missing="this Horovod uses NCCL, which needs a GPU for every rank")
    try:
        return part._replace(command=ranks_command(hvd.mpi_built()))
    except FileNotFoundError as error:
        return part._replace(missing=str(error))


def parts(capability: str, output: str | None) -> list[Part]:
    """What is to be run, in order."""
    python = sys.executable
    make = ["make", f"PYTHON={python}"]
    found = [
        Part("build", [*make, "kernels", "cuda", f"CUDA_ARCH={capability}", "WERROR="], 100),
        Part("kernels' tests", [python, *PYTEST, *KERNEL_TESTS], 90),
        Part("PyTorch's tests", [python, *PYTEST, *FRONTEND_TESTS], 50),
        Part("2^31 elements", [python, *PYTEST, "tests/test_gpu_large.py"], 40),
        ranks_part(),
    ]
    sanitizer = shutil.which("compute-sanitizer")
    missing = "" if sanitizer else "no compute-sanitizer on the PATH"
    for tool in ("memcheck", "racecheck"):
        checked = [*SANITIZED, str(sanitizer), f"--tool={tool}", *SANITIZER_OPTIONS, python, *PYTEST, "-k", FEW]
        command = [*checked, *(f"tests/test_cuda_{what}.py" for what in OF_FILES)]
        found.append(Part(tool, command, 65, missing))
    written = [] if output is None else ["--output", output]
    found.append(Part("benchmark", [python, "-m", "benchmarks.gpu", *written], 90))
    return found


def run(part: Part) -> tuple[str, float]:
    """How it ended, and after how many seconds."""
    if part.missing:
        return LEFT_OUT + part.missing, 0.0
    print(f"== {part.name}: {' '.join(part.command)}", flush=True)
    start = time.monotonic()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**launch.launch_environment(), "HVD_QSGD_TEST_GPU": "1", "PYTHONPATH": path}
    try:
        process = subprocess.Popen(part.command, cwd=ROOT, env=environment, start_new_session=True)
    except OSError as error:
        return f"FAILED ({error})", time.monotonic() - start
    try:
        status = process.wait(part.limit)
        ended = "passed" if status == 0 else f"FAILED (status {status})"
    except subprocess.TimeoutExpired:
        ended = f"STOPPED after {part.limit:.0f} s"
    finally:
        if process.returncode is None:
            end(process)
    return ended, time.monotonic() - start


def end(process: subprocess.Popen[bytes]) -> None:
    """With what it has started, such as nvcc under make; mpirun ends its ranks if it is asked to end itself, and pytest
    tells at an interrupt which tests have failed so far."""
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, how)
            process.wait(GRACE)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="FILE", help="write the benchmark's tables there, too")
    options = parser.parse_args(arguments)
    capability = compute_capability()
    if capability is None:
        print(f"gpu-check: {sys.executable} has no PyTorch that sees a GPU: nothing was checked", file=sys.stderr)
        return 1
    rows, complete = [], True
    for part in parts(capability, options.output):
        ended, seconds = run(part)
        rows.append(f"{part.name:16} {ended:24} {seconds:6.0f} s")
        complete &= ended == "passed" or ended.startswith(LEFT_OUT)
        print(f"-- {rows[-1]}", flush=True)  # in case the end is not reached
    print("\n".join(rows))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
