"""QSGD's table of accuracies: 2, 4 and 8 bits, in dense layers only or in all, beside 32 bits; a convolutional net.

    python -m experiments.bits [--images-dir DIR] [--quick]

Workers are simulated in one process: each encodes the gradient of its share of a batch, and all frames are decoded and
added up. Bits go with the bucket sizes of the paper's experiments (hvd_qsgd/presets.py); biases are sent as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from experiments import command
from experiments.data import load_images
from experiments.figures import by_setting, draw_curve, mean_and_range, new_figure, save
from experiments.models import convolutional
from experiments.runs import Row, run_all
from experiments.training import Task, train
from experiments.workers import Exchange
from hvd_qsgd import presets

PRESETS = {2: "qsgd-2bit-64", 4: "qsgd-4bit-512", 8: "qsgd-8bit-512"}
SETTINGS = {"32 bits": (None, "no")} | {
    f"{bits} bits, {layers} layers": (bits, layers) for bits in PRESETS for layers in ("dense", "all")
}
WORKERS, BATCH_SIZE, STEP_SIZE, MOMENTUM = 4, 256, 0.05, 0.9
FULL: dict[str, Any] = {"images": 60_000, "tests": 10_000, "channels": 16, "steps": 468, "points": 6}  # two epochs
QUICK: dict[str, Any] = {"images": 2560, "tests": 1000, "channels": 4, "steps": 30, "points": 3}


def convolutional_task(data_dir: Path | None, images: int, tests: int, channels: int, seed: int) -> Task:
    """The convolutional net with weights of that seed, and what trains and tests it."""
    data = load_images(data_dir, images, tests)
    torch.manual_seed(seed)
    model = convolutional(data.train_images.shape[1:], channels)
    return Task(model, torch.optim.SGD(model.parameters(), lr=STEP_SIZE, momentum=MOMENTUM), *data)


def main(options: argparse.Namespace) -> None:
    def run(setting: str, seed: int, data: str, steps: int, points: int, **net: int) -> Iterator[Row]:
        bits, layers = SETTINGS[setting]

        def compressed(name: str, gradient: torch.Tensor) -> bool:
            return bits is not None and gradient.dim() > 1 and (layers == "all" or name.startswith(layers))

        task = convolutional_task(options.images_dir or options.data_dir, seed=seed, **net)
        exchange = Exchange(None if bits is None else presets.arguments(PRESETS[bits]), seed)
        yield from train(
            task,
            exchange,
            workers=WORKERS,
            batch_size=BATCH_SIZE,
            steps=steps,
            points=points,
            seed=seed,
            compressed=compressed,
        )

    path = command.csv_path(options, "bits")
    data = (options.images_dir or Path("MNIST")).resolve().name
    size = QUICK if options.quick else FULL
    settings = [{"setting": setting, "seed": seed} for seed in range(options.seeds) for setting in SETTINGS]
    rows = run_all(path, [{**setting, "data": data, **size} for setting in settings], run)
    report(rows)
    plot(rows, data, path.with_suffix(".png"))


def report(rows: list[Row]) -> None:
    """Each setting after the last step."""
    for setting, own in by_setting(rows, "setting").items():
        last = [points[-1] for points in by_setting(own, "seed").values()]
        accuracy = mean_and_range([row["test_accuracy"] for row in last], ".2%")
        loss = mean_and_range([row["loss"] for row in last], ".3f")
        print(f"{setting}: test accuracy {accuracy}; loss {loss}; {last[0]['megabits']:,.0f} megabits from a worker")


def plot(rows: list[Row], data: str, path: Path) -> None:
    figure, axes = new_figure(
        2, f"{data}, convolutional net, {WORKERS} workers (simulated in one process): mean and range over seeds"
    )
    for number, (setting, own) in enumerate(by_setting(rows, "setting").items()):
        draw_curve(axes[0], own, "step", "loss", setting, number)
        draw_curve(axes[1], own, "step", "test_accuracy", setting, number)
    axes[0].set(xlabel=f"step (batch {BATCH_SIZE})", ylabel="training loss", yscale="log")
    axes[1].set(xlabel=f"step (batch {BATCH_SIZE})", ylabel="test accuracy")
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    command.main(main, command.make_parser(__doc__))
