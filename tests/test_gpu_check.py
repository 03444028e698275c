"""`make gpu-check`, as far as it goes without a GPU."""

import contextlib
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import psutil
import pytest
from cuda_support import EMULATED

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
import gpu_check  # noqa: E402

torch = pytest.importorskip("torch")


def run(*command, **environment):
    how = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT), **environment}}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, **how)


def test_without_a_gpu_it_says_so():
    done = run("tools/gpu_check.py", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "no PyTorch that sees a GPU: nothing was checked" in done.stderr


def test_parts_that_fail_stop_no_other(monkeypatch, capfd):
    commands = [("good", "pass", 60), ("bad", "raise SystemExit(3)", 60), ("slow", "import time; time.sleep(60)", 0.01)]
    parts = [gpu_check.Part(name, [sys.executable, "-c", code], limit) for name, code, limit in commands]
    monkeypatch.setattr(gpu_check, "compute_capability", lambda: "90")
    monkeypatch.setattr(
        gpu_check, "parts", lambda *_: [*parts, parts[0], gpu_check.Part("none", ["./is not there"], 1)]
    )
    assert gpu_check.main([]) == 1
    lines = capfd.readouterr().out.splitlines()
    ends = ["passed", "FAILED", "STOPPED", "passed", "FAILED"]
    expected = [[name, end] for name, end in zip(("good", "bad", "slow", "good", "none"), ends)]
    at_once = [line.split()[1:3] for line in lines if line.startswith("-- ")]
    assert at_once == expected
    assert [line.split()[:2] for line in lines if not line.startswith(("==", "--"))] == expected


def test_what_a_part_has_started_ends_with_it(tmp_path):
    """Interrupted or, where interrupts are ignored, as in the background of a shell, killed."""
    number = tmp_path / "number"
    child = f"import os, time; open({str(number)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    ended, _ = gpu_check.run(gpu_check.Part("slow", [sys.executable, "-c", code], 3))
    assert ended == "STOPPED after 3 s"
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.Process(int(number.read_text())).status() == psutil.STATUS_ZOMBIE


def test_what_is_missing_shows(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda _: None)
    monkeypatch.setitem(sys.modules, "horovod.torch", None)
    parts = gpu_check.parts("90", None)
    assert sum(part.limit for part in parts) <= 9 * 60
    monkeypatch.setattr(gpu_check, "compute_capability", lambda: "90")
    monkeypatch.setattr(gpu_check, "parts", lambda *_: [part for part in parts if part.missing])
    assert gpu_check.main([]) == 0
    table = capsys.readouterr().out.rpartition("\n-- ")[2].partition("\n")[2]
    assert table.count("left out: no compute-sanitizer") == 2
    assert "left out: Horovod cannot be imported (" in table


def part_of_ranks(monkeypatch, *built, launchers=True):
    """Where a Horovod was built with these, and there are launchers."""
    names = {f"{name}_built": lambda name=name: name in built for name in ("cuda", "nccl", "mpi", "gloo")}
    of_torch = types.SimpleNamespace(**names)
    monkeypatch.setitem(sys.modules, "horovod", types.SimpleNamespace(torch=of_torch))
    monkeypatch.setitem(sys.modules, "horovod.torch", of_torch)
    monkeypatch.setattr(gpu_check.launch.shutil, "which", lambda name, path: f"there/{name}" if launchers else None)
    return gpu_check.ranks_part()


def test_two_ranks_where_a_horovod_can(monkeypatch):
    assert part_of_ranks(monkeypatch, "cuda", "mpi", "gloo").command[0] == "there/mpirun"
    assert {"there/horovodrun", "--gloo"} <= set(part_of_ranks(monkeypatch, "cuda", "gloo").command)
    assert "without CUDA" in part_of_ranks(monkeypatch, "mpi", "gloo").missing
    assert "NCCL" in part_of_ranks(monkeypatch, "cuda", "mpi", "nccl").missing
    assert "mpirun not found" in part_of_ranks(monkeypatch, "cuda", "mpi", launchers=False).missing


@pytest.mark.ranks
@pytest.mark.slow
def test_two_ranks_that_share_a_gpu_which_is_pretended():
    if not EMULATED.exists():
        pytest.skip("the emulated CUDA kernels are not there: make cuda-emulated")
    ended, _ = gpu_check.run(gpu_check.Part("two ranks", [*gpu_check.ranks_command(mpi=True), "pretended"], 200))
    assert ended == "passed"


@pytest.mark.ranks
def test_ranks_that_are_stopped_end(tmp_path):
    code = f"import os, time; open({str(tmp_path)!r} + f'/{{os.getpid()}}', 'w'); time.sleep(200)"
    command, env = gpu_check.launch.mpirun_command(2, ["-c", code])
    process = subprocess.Popen(command, env=env, start_new_session=True)
    while len(ranks := {int(file.name) for file in tmp_path.iterdir()}) < 2:
        time.sleep(0.05)
    gpu_check.end(process)
    assert process.returncode is not None
    _, alive = psutil.wait_procs([found for found in psutil.process_iter() if found.pid in ranks], timeout=20)
    assert not alive


def test_all_parts_name_tests_that_are_there():
    files = [word for part in gpu_check.parts("90", None) for word in part.command if word.startswith("tests/")]
    assert files
    assert all((ROOT / file).exists() for file in files)
    named = gpu_check.FEW.split(" or ")
    sources = "".join(path.read_text() for path in (ROOT / "tests").glob("test_cuda_*.py"))
    assert all(f"def {name}(" in sources for name in named)
