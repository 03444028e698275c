"""Figure 1 of "Quantized SGD: Communication versus Convergence": QSGD with one level at several bucket sizes, and SGD.

    python -m experiments.bucket_sizes [--data-dir DIR] [--quick]

The perceptron 784-4096-10 on MNIST, batch 256, step size 0.1; s = 1, l2 norm, the sparse code of theorem 3.2. One
worker, whose gradient is encoded and decoded as if it were sent.
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
from experiments.models import perceptron
from experiments.runs import Row, run_all
from experiments.training import Task, train
from experiments.workers import FLOAT_BITS, Exchange

BUCKET_SIZES = (None, 256, 1024, 4096)  # None: without quantization
BATCH_SIZE, STEP_SIZE = 256, 0.1
FULL: dict[str, Any] = {"images": 60_000, "hidden": 4096, "steps": 468, "points": 12}  # two epochs
QUICK: dict[str, Any] = {"images": 2560, "hidden": 256, "steps": 40, "points": 4}


def quantization(bucket_size: int) -> dict[str, Any]:
    """Arguments of ``hvd_qsgd.encode``."""
    return {"levels": 1, "norm": "l2", "bucket_size": bucket_size, "codec": "elias-sparse"}


def perceptron_task(data_dir: Path | None, images: int, hidden: int, seed: int) -> Task:
    """The perceptron with weights of that seed, and what trains and tests it."""
    torch.manual_seed(seed)
    model = perceptron(hidden)
    return Task(model, torch.optim.SGD(model.parameters(), lr=STEP_SIZE), *load_images(data_dir, images))


def main(options: argparse.Namespace) -> None:
    def run(bucket_size: int | None, seed: int, images: int, hidden: int, steps: int, points: int) -> Iterator[Row]:
        task = perceptron_task(options.data_dir, images, hidden, seed)
        exchange = Exchange(None if bucket_size is None else quantization(bucket_size), seed)
        for point in train(task, exchange, workers=1, batch_size=BATCH_SIZE, steps=steps, points=points, seed=seed):
            yield {**point, "floats_per_step": exchange.bits_sent / FLOAT_BITS / point["step"]}

    path = command.csv_path(options, "bucket_sizes")
    size = QUICK if options.quick else FULL
    plan = [{"bucket_size": d, "seed": seed, **size} for seed in range(options.seeds) for d in BUCKET_SIZES]
    rows = run_all(path, plan, run)
    report(rows)
    plot(rows, size, path.with_suffix(".png"))


def label(bucket_size: int | None) -> str:
    return "SGD" if bucket_size is None else f"QSGD, bucket {bucket_size}"


def report(rows: list[Row]) -> None:
    """Each method after the last step."""
    for bucket_size, own in by_setting(rows, "bucket_size").items():
        last = [points[-1] for points in by_setting(own, "seed").values()]
        floats, loss, accuracy = (
            mean_and_range([row[column] for row in last], form)
            for column, form in (("floats_per_step", ",.0f"), ("loss", ".3f"), ("test_accuracy", ".2%"))
        )
        print(f"{label(bucket_size)}: {floats} effective floats a step; loss {loss}; test accuracy {accuracy}")


def plot(rows: list[Row], size: dict[str, Any], path: Path) -> None:
    figure, axes = new_figure(
        2, f"MNIST, perceptron 784-{size['hidden']}-10, s = 1, l2 norm, one worker: mean and range over seeds"
    )
    for number, (bucket_size, own) in enumerate(by_setting(rows, "bucket_size").items()):
        draw_curve(axes[0], own, "step", "loss", label(bucket_size), number)
        draw_curve(axes[1], own, "step", "test_accuracy", label(bucket_size), number)
    axes[0].set(xlabel=f"step (batch {BATCH_SIZE})", ylabel="training loss", yscale="log")
    axes[1].set(xlabel=f"step (batch {BATCH_SIZE})", ylabel="test accuracy")
    axes[0].legend(frameon=False)
    save(figure, path)


if __name__ == "__main__":
    command.main(main, command.make_parser(__doc__))
