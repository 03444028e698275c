"""The trade-off on deep nets: accuracy and loss against the bits sent, by fixed levels, DQSGD and Budget.

    python -m experiments.tradeoff [--images-dir DIR] [--tasks images text] [--quick]

A small convolutional net on images (SGD with momentum), and a small transformer (Adam) that predicts each next word of
a text. Workers are simulated in one process: each encodes the gradient of its share of a batch (codec "rans"), and all
frames are decoded and added up. Bits are those of whole frames, and of small tensors, which are sent as they are.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mnist_data import DataError
from small_models import Transformer
from text_data import load_rows

from experiments import command
from experiments.bits import WORKERS, convolutional_task
from experiments.figures import by_setting, draw_bars, mean_and_range, new_figure, save
from experiments.runs import Row, run_all
from experiments.scheduled import ScheduledExchange
from experiments.training import Task, train
from experiments.workers import Exchange
from hvd_qsgd.schedule import DQSGD, Budget

HOW: dict[str, Any] = {"norm": "max", "bucket_size": 512, "codec": "rans"}
EXACT, FIXED = "uncompressed", "fixed levels"
# By method: the levels; or alpha, and bits a coordinate or k.
SETTINGS = [
    (EXACT, None, None),
    *[(FIXED, None, levels) for levels in (1, 2, 3, 5, 7, 15, 31)],
    *[("Budget", alpha, bits) for alpha in (1.0, 0.99) for bits in (1.5, 2.5, 3.5)],
    *[("DQSGD", alpha, k) for alpha in (1.0, 0.99) for k in (2, 8, 32)],
]
VOCABULARY, CONTEXT, ADAM_STEP_SIZE = 1024, 32, 5e-3
# Inputs to train on and to test on, how wide the net is, inputs a step.
FULL: dict[str, dict[str, int]] = {
    "images": {"inputs": 60_000, "tests": 10_000, "width": 4, "batch_size": 128, "steps": 156, "points": 2},
    "text": {"inputs": 12_800, "tests": 1280, "width": 32, "batch_size": 32, "steps": 100, "points": 2},
}
QUICK: dict[str, dict[str, int]] = {
    "images": {"inputs": 1280, "tests": 500, "width": 2, "batch_size": 64, "steps": 10, "points": 1},
    "text": {"inputs": 640, "tests": 64, "width": 16, "batch_size": 16, "steps": 10, "points": 1},
}


@functools.cache  # once for all runs
def shuffled_text() -> torch.Tensor:
    """Rows of CONTEXT + 1 words."""
    return torch.from_numpy(np.random.default_rng(0).permutation(load_rows(VOCABULARY, CONTEXT + 1)))


def text_task(inputs: int, tests: int, width: int, seed: int) -> Task:
    """The transformer with weights of that seed; rows of the text to train and to test it."""
    rows = shuffled_text()
    if len(rows) < inputs + tests:
        raise DataError(f"the text has {len(rows)} rows of {CONTEXT + 1} words, and {inputs + tests} are needed")
    own, test = rows[:inputs], rows[inputs : inputs + tests]
    torch.manual_seed(seed)
    model = Transformer(VOCABULARY, CONTEXT, width)
    optimizer = torch.optim.Adam(model.parameters(), lr=ADAM_STEP_SIZE)
    return Task(model, optimizer, own[:, :-1], own[:, 1:], test[:, :-1], test[:, 1:])


def make_exchange(method: str, alpha: float | None, value: Any, steps: int, seed: int) -> Exchange:
    """What the workers do with their gradients."""
    if method == EXACT:
        return Exchange(None)
    if alpha is None:
        return Exchange({"levels": value, **HOW}, seed)
    schedule = Budget(value, steps, alpha) if method == "Budget" else DQSGD(value, alpha, steps)
    return ScheduledExchange(schedule, HOW, seed)


def main(options: argparse.Namespace) -> None:
    for name in options.tasks:
        explore(name, options)


def explore(name: str, options: argparse.Namespace) -> None:
    """All settings on one of the tasks; a CSV file and a plot."""
    folder = options.images_dir or options.data_dir
    data = "CMake's manual" if name == "text" else folder.resolve().name if folder else "MNIST"

    def run(
        method: str,
        alpha: float | None,
        value: Any,
        seed: int,
        data: str,
        inputs: int,
        tests: int,
        width: int,
        steps: int,
        **how: int,
    ) -> Iterator[Row]:
        if name == "text":
            task = text_task(inputs, tests, width, seed)
        else:
            task = convolutional_task(folder, inputs, tests, width, seed)
        exchange = make_exchange(method, alpha, value, steps, seed)
        yield from train(task, exchange, workers=WORKERS, steps=steps, seed=seed, **how)

    path = command.csv_path(options, f"tradeoff_{name}")
    size = (QUICK if options.quick else FULL)[name]
    plan = [
        {"method": method, "alpha": alpha, "value": value, "seed": seed, "data": data, **size}
        for seed in range(options.seeds)
        for method, alpha, value in SETTINGS
    ]
    last = [row for row in run_all(path, plan, run) if row["step"] == size["steps"]]
    report(last)
    plot(last, f"{data}, {WORKERS} workers (simulated in one process), {size['steps']} steps", path.with_suffix(".png"))


def curves(last: list[Row]) -> dict[str, list[Row]]:
    """The runs' last points, by method and alpha."""
    names = {
        (method, alpha): method if alpha is None else f"{method}, alpha {alpha:g}" for method, alpha, _ in SETTINGS
    }
    return by_setting([{**row, "curve": names[row["method"], row["alpha"]]} for row in last], "curve")


def report(last: list[Row]) -> None:
    """Each setting at the end; a schedule's loss also beside that of fixed levels at the same bits."""
    fixed = by_setting(curves(last)[FIXED], "seed")
    for curve, own in curves(last).items():
        for value, runs in by_setting(own, "value").items():
            accuracy, loss, megabits = (
                mean_and_range([row[column] for row in runs], form)
                for column, form in (("test_accuracy", ".2%"), ("loss", ".4f"), ("megabits", ".4g"))
            )
            print(f"{curve}, {value}: test accuracy {accuracy}; loss {loss}; megabits from a worker {megabits}")
            if curve not in (EXACT, FIXED):
                more = [run["loss"] - loss_at(run["megabits"], fixed[run["seed"]]) for run in runs]
                print(f"    beside fixed levels at the same bits: loss {mean_and_range(more, '+.4f')} more")


def loss_at(megabits: float, runs: list[Row]) -> float:
    """Of a setting between ``runs``, by linear interpolation over the logarithm of the bits."""
    known = np.log([run["megabits"] for run in runs])
    return float(np.interp(np.log(megabits), known, [run["loss"] for run in runs]))


def plot(last: list[Row], title: str, path: Path) -> None:
    figure, axes = new_figure(2, f"{title}: mean and range over seeds")
    for panel, column in zip(axes, ("test_accuracy", "loss")):
        for number, (curve, own) in enumerate(curves(last).items()):
            if curve == EXACT:
                panel.axhline(np.mean([row[column] for row in own]), color="gray", linestyle="--", label=EXACT)
            else:
                draw_bars(panel, own, "megabits", column, curve, number - 1)
        panel.set(xlabel="megabits that a worker sends", xscale="log")
    axes[0].set(ylabel="test accuracy")
    axes[1].set(ylabel="training loss, mean of the last half")
    labels = axes[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside right center", frameon=False, fontsize=8)
    save(figure, path)


def make_parser() -> argparse.ArgumentParser:
    """The options of all experiments, and --tasks."""
    parser = command.make_parser(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=tuple(FULL), default=list(FULL), help="default: both")
    return parser


if __name__ == "__main__":
    command.main(main, make_parser())
