"""benchmarks.gpu, on the emulated GPU: that it makes all of its tables. Its times mean nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks import gpu, resnet50

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_all_tables(tmp_path: Path) -> None:
    file = tmp_path / "report.md"
    ended = run("--emulated", "--n", "9", "--output", str(file))
    assert ended.returncode == 0, ended.stderr
    assert file.read_text(encoding="utf-8") == ended.stdout
    rows = [line for line in ended.stdout.splitlines() if line.startswith("| ")]
    kernels = 2 * (len(gpu.SETTINGS) + 2 * len(gpu.HALVES))
    tables = [1 + kernels + 1, 4, 3, 5]  # copy and torch's; ResNet-50; hooks; overlap
    assert len(rows) == sum(1 + table for table in tables), ended.stdout
    assert sum("≥ 0.8" in row for row in rows) == len(gpu.BARS)


def test_without_a_gpu_it_says_so() -> None:
    ended = run()
    assert ended.returncode == 1
    assert "sees no GPU" in ended.stderr


@pytest.mark.parametrize(
    ("value", "at_least", "cell"), [(2.0, True, "≥ 2: yes"), (1.9, True, "≥ 2: NO"), (2.1, False, "≤ 2: NO")]
)
def test_bars(value: float, at_least: bool, cell: str) -> None:
    assert gpu.judged(value, 2, at_least) == cell


def test_a_failing_part_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no such table")

    class NoDevice:
        name = "none"

        def release(self) -> None:
            pass

    monkeypatch.setattr(gpu, "kernels_table", fail)
    monkeypatch.setattr(gpu, "step_table", lambda _: iter([("head",), ("row",)]))
    for table in ("hooks_table", "overlap_table"):
        monkeypatch.setattr(gpu, table, lambda _: iter([("head",), ("line",)]))
    texts, made = zip(*gpu.report(NoDevice(), 9))
    text = "\n".join(texts)
    assert made == (True, False, True, True, True)
    assert "n = 2^9: failed: no such table" in text
    assert "| row " in text


def test_the_model() -> None:
    shapes = resnet50.shapes()
    assert (len(shapes), sum(map(resnet50.elements, shapes))) == (161, 25_557_032)
