"""The experiments' commands, made so small that they take seconds; their numbers are in docs/results.md."""

import argparse

import numpy as np
import pytest
import torch
from test_examples import write_idx

from experiments import bits, bucket_sizes, effective_floats, parallel, ranks, tradeoff
from experiments.runs import ExperimentError
from experiments.scheduled import ScheduledExchange
from hvd_qsgd.schedule import Budget

TINY = {"inputs": 64, "tests": 16, "width": 8, "batch_size": 16, "steps": 2, "points": 2}
SMALL_NET = {"hidden": 16, "images": 600, "steps": 2, "points": 1}
CASES = [
    (bucket_sizes, SMALL_NET, 4),
    (bits, {"channels": 2, "images": 600, "tests": 16, "steps": 1, "points": 1}, 7),
    (effective_floats, SMALL_NET, 1),
    (tradeoff, {"images": TINY}, len(tradeoff.SETTINGS)),
]


@pytest.fixture(autouse=True)
def one_thread():
    """As for the commands."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_and_continue(experiment, options, runs, capsys):
    """Run the command, as if stopped in the last of its runs, go on, and ask for it once more.

    Returns what it printed at first, and the lines of its CSV file.
    """
    experiment.main(options)
    printed = capsys.readouterr().out
    assert f"run {runs} of {runs}" in printed
    (csv,) = options.output_dir.glob("*.csv")
    first = csv.read_text()
    lines = first.splitlines(keepends=True)
    assert csv.with_suffix(".png").stat().st_size > 0

    csv.write_text("".join(lines[: -(len(lines) // runs)]))
    experiment.main(options)
    assert csv.read_text() == first
    capsys.readouterr()
    experiment.main(options)
    assert f"{runs} of {runs} runs are" in capsys.readouterr().out
    assert csv.read_text() == first
    return printed, lines


@pytest.mark.parametrize(("experiment", "smaller", "runs"), CASES, ids=[case[0].__name__ for case in CASES])
def test_the_command_and_its_continuation(experiment, smaller, runs, tmp_path, monkeypatch, capsys):
    for name, value in smaller.items():
        monkeypatch.setitem(experiment.QUICK, name, value)
    run_and_continue(experiment, small_options(tmp_path, tasks=["images"]), runs, capsys)


def small_options(folder, **others):
    write_idx(folder, images=600, tests=16)
    same = {"data_dir": folder, "images_dir": None, "output_dir": folder / "out", "quick": True, "seeds": 1}
    return argparse.Namespace(**same, **others)


def test_the_text_task(tmp_path, monkeypatch, capsys):
    words = np.random.default_rng(0).integers(8, size=(100, 1)) + np.arange(tradeoff.CONTEXT + 1)
    monkeypatch.setattr(tradeoff, "shuffled_text", lambda: torch.from_numpy(words))
    monkeypatch.setitem(tradeoff.QUICK, "text", {**TINY, "steps": 12})
    monkeypatch.setattr(
        tradeoff, "SETTINGS", [setting for setting in tradeoff.SETTINGS if setting[2] in (None, 7, 2.5)]
    )
    printed, lines = run_and_continue(tradeoff, small_options(tmp_path, tasks=["text"]), 4, capsys)
    loss = lines[0].split(",").index("loss")
    for first, last in zip(lines[1::2], lines[2::2]):
        assert float(last.split(",")[loss]) < float(first.split(",")[loss]) - 0.3, "it learns to count"
    assert "Budget, alpha 0.99, 2.5: test accuracy" in printed


def test_a_schedule_spends_its_bits_on_several_tensors():
    exchange, steps, shapes = ScheduledExchange(Budget(2.5, 60), tradeoff.HOW), 60, ((64, 512), (7, 1000))
    draws = np.random.default_rng(0)
    for step in range(steps):
        for tensor, shape in enumerate(shapes):
            exchange.mean([draws.normal(size=shape).astype(np.float32) for _ in range(2)], step=step, tensor=tensor)
    assert exchange.bits_sent / (steps * sum(rows * columns for rows, columns in shapes)) == pytest.approx(
        2.5, rel=0.01
    )


def test_parallel_reports_when_an_accuracy_is_reached(tmp_path, monkeypatch, capsys):
    """The command and its continuation, with jobs that are not run."""

    def train(number, arguments, log, launch):
        assert launch == (None if number == 1 else "start {ranks}")
        return {"seconds": [1.5 * number, 3.0 * number], "test_accuracy": [0.8, 0.84], "bits_per_coordinate": 4.0}

    monkeypatch.setattr(ranks, "train", train)
    printed, lines = run_and_continue(parallel, small_options(tmp_path, launch="start {ranks}"), 3, capsys)
    assert len(lines) == 1 + 3 * 2
    assert "2 ranks, QSGD, 4 bits: 0.750 (0.750 … 0.750) s a step; 80% after 3.0 (3.0 … 3.0) s; 85% not" in printed


def test_launch_must_say_how_many(tmp_path):
    with pytest.raises(ExperimentError, match=r"write \{ranks\} there"):
        parallel.main(small_options(tmp_path, launch="mpirun -n 2"))


@pytest.mark.ranks
@pytest.mark.torch
def test_ranks_by_a_command_of_the_user(tmp_path):
    write_idx(tmp_path, images=600, tests=16)
    arguments = [*ranks.COMPRESSION["QSGD, 4 bits"], f"--data-dir={tmp_path}", "--steps-per-epoch=1", "--epochs=2"]
    record = ranks.train(2, arguments, tmp_path / "job.log", "mpirun -n {ranks}")
    assert (record["ranks"], record["steps_per_epoch"], len(record["loss"])) == (2, 1, 2)
    assert len(record["test_accuracy"]) == 2
    assert 0 < record["seconds"][0] < record["seconds"][1] == record["seconds_training"]
