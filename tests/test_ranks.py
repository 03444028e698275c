"""Real Horovod on 2 and on 4 ranks: `tests/ranks*/test_*.py` run inside the ranks, and jobs that are meant to fail."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
RANKS, RANKS_TENSORFLOW, RANKS_KERAS = (
    Path(__file__).with_name(name) for name in ("ranks", "ranks_tensorflow", "ranks_keras")
)
PATIENCE = {"OMPI_MCA_mpi_yield_when_idle": "1", "OMP_NUM_THREADS": "1", "HVD_QSGD_NUM_THREADS": "1"}

pytestmark = pytest.mark.ranks


def needs_tensorflow(test: Any) -> Any:
    """Marks a test that is skipped without TensorFlow, which is not imported here."""
    missing = importlib.util.find_spec("tensorflow") is None
    return pytest.mark.tensorflow(pytest.mark.skipif(missing, reason="there is no TensorFlow")(test))


@functools.cache
def launch() -> Any:
    """tools/launch.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("hvd_qsgd_launch", ROOT / "tools" / "launch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Ended(NamedTuple):
    """How a job ended: exit status (None: it had to be killed), seconds, everything that it printed."""

    status: int | None
    seconds: float
    output: str


def end(process: subprocess.Popen[str]) -> None:
    """Kill the launcher and whatever it started, by process id."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=10)


def run(command: list[str], env: dict[str, str], timeout: float) -> Ended:
    """Run a launcher to its end, or to ours."""
    env = {**PATIENCE, **env, "PYTHONPATH": os.pathsep.join([str(ROOT), str(RANKS.parent), env.get("PYTHONPATH", "")])}
    start = time.monotonic()
    process = subprocess.Popen(
        command, env=env, cwd=ROOT, text=True, errors="replace", stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout)
        status = process.returncode
    except subprocess.TimeoutExpired:
        end(process)
        output, _ = process.communicate()
        status = None
    except BaseException:
        end(process)
        raise
    ended = Ended(status, time.monotonic() - start, output)
    print(f"{' '.join(command)}\nended with {ended.status} after {ended.seconds:.1f} s; output:\n{ended.output}")
    return ended


def run_inside(np: int, directory: Path, **extra: str) -> None:
    """Run the directory's tests inside np ranks."""
    pytest_args = [
        "-m",
        "pytest",
        str(directory),
        "-x",
        "-q",
        "--tb=short",
        "--color=no",
        "-s",
        "-p",
        "no:cacheprovider",
    ]
    pytest_args += ["--timeout=0", "--durations=6"]  # hanging tests are seen to by tests/rankhooks.py
    only = os.environ.get("HVD_QSGD_RANK_TESTS", "")  # a -k expression
    command, env = launch().mpirun_command(np, [*pytest_args, *(["-k", only] if only else [])])
    ended = run(command, {**env, "HVD_QSGD_IN_RANKS": "1", **extra}, timeout=500)
    status, passed = ended.status, ended.output.count(" passed")
    assert status is not None, "the ranks hang"
    assert (status, passed) == (0, np)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("np", [2, 4])
def test_inside_ranks(np: int) -> None:
    run_inside(np, RANKS)


@pytest.mark.slow
@needs_tensorflow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("np", [2, 4])
def test_tensorflow_inside_ranks(np: int) -> None:
    run_inside(np, RANKS_TENSORFLOW, TF_USE_LEGACY_KERAS="1")


@pytest.mark.slow
@needs_tensorflow
@pytest.mark.timeout(600)
def test_tensorflow_on_a_gpu_that_is_pretended() -> None:
    asked = subprocess.run(
        [sys.executable, str(ROOT / "tools/tensorflow_version.py")], capture_output=True, text=True, check=True
    )
    device = ROOT / f"build/tensorflow-{asked.stdout.strip()}/pretended_gpu.so"
    if not device.exists():
        pytest.skip(f"{device} is not there: make test builds it")
    gpu = {"HVD_QSGD_PRETENDED_GPU": str(device), "HVD_QSGD_CUDA_LIBRARY": str(device)}
    run_inside(2, RANKS_TENSORFLOW, TF_USE_LEGACY_KERAS="1", **gpu)


@pytest.mark.slow
@needs_tensorflow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("np", [2, 4])
def test_keras_3_inside_ranks(np: int) -> None:
    run_inside(np, RANKS_KERAS)


@pytest.mark.slow
@needs_tensorflow
def test_a_rank_with_pytorch_and_one_with_tensorflow() -> None:
    command, env = launch().mpirun_command(2, [str(RANKS_TENSORFLOW / "mixed_job.py")])
    ended = run(command, env, timeout=90)
    status, output = ended.status, ended.output
    assert status == 0
    assert output.count("equal") == 6


def job(np: int, name: str, *, timeout: float = 90, launcher: str = "mpirun", **env: str) -> Ended:
    """`tests/ranks/rank_jobs.py NAME` on np ranks: "mpirun", or horovodrun with "mpi" or "gloo"."""
    python_args = [str(RANKS / "rank_jobs.py"), name]
    if launcher == "mpirun":
        command, launch_env = launch().mpirun_command(np, python_args)
    else:
        command, launch_env = launch().horovodrun_command(np, python_args, launcher)
    ended = run(command, {**launch_env, **env}, timeout)
    assert ended.status is not None, f"the job hangs: killed after {ended.seconds:.0f} s"
    return ended


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["mpirun", "mpi", "gloo"])
def test_every_launcher(launcher: str) -> None:
    """Training under mpirun, horovodrun over MPI, and horovodrun without any MPI."""
    ended = job(2, "trivial", launcher=launcher)
    status, output = ended.status, ended.output
    assert status == 0
    for rank in range(2):
        assert f"rank {rank}: trained, mpi={launcher != 'gloo'}" in output
    if launcher == "gloo":
        assert output.count("start the job with mpirun") == 2  # what transport="mpi" says there


@pytest.mark.slow
@pytest.mark.parametrize(("np", "launcher"), [(4, "mpirun"), (2, "gloo")])
def test_a_rank_that_is_killed_ends_the_job(np: int, launcher: str) -> None:
    ended = job(np, "killed", launcher=launcher)
    status, output = ended.status, ended.output
    assert status != 0
    assert "rank 1: is killed" in output


@pytest.mark.slow
def test_frames_that_are_damaged_on_their_way_to_one_rank_end_the_job() -> None:
    ended = job(4, "receiving")
    status, output = ended.status, ended.output
    assert status != 0
    assert "rank 1: QSGDError: tensor '1.weight'" in output
    assert "its checksum does not match" in output


STALLED = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "2", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "4"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["counting", "transports"])
def test_what_only_horovod_s_stall_check_ends(name: str) -> None:
    """Tensors or transports that a rank does not have: as with stock Horovod, others wait for it, and say so."""
    ended = job(2, name, **STALLED)
    status, output = ended.status, ended.output
    assert status != 0
    assert "Missing ranks" in output
    assert "allgather.qsgd:1." in output
    assert "HorovodInternalError" in output


@pytest.mark.slow
def test_disagreements_are_told_and_leave_nothing_that_hangs() -> None:
    ended = job(4, "disagreeing")
    status, output = ended.status, ended.output
    assert status == 0
    for rank in range(4):
        assert f"rank {rank}: min_size: HorovodInternalError: Mismatched ALLREDUCE tensor shapes" in output
        assert f"rank {rank}: name: QSGDError: the ranks do not mean the same" in output
        assert f"rank {rank}: compression: HorovodInternalError: Mismatched ALLREDUCE tensor shapes" in output
        assert f"rank {rank}: goes on" in output
        assert f"rank {rank}: process_set" not in output


@functools.cache
def started_again() -> Ended:
    return job(2, "again")


@pytest.mark.slow
def test_horovod_shut_down_and_started_again() -> None:
    status, output = started_again().status, started_again().output
    assert status == 0
    assert output.count("went on") == 2


@pytest.mark.slow
def test_other_operations_after_starting_again() -> None:
    assert started_again().output.count("others are well") == 6
