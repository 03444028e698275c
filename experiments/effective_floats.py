"""Floats' worth of bits that a step of QSGD with one level sends: what the theorems say, and real frames.

    python -m experiments.effective_floats [--data-dir DIR] [--quick]

"Quantized SGD: Communication versus Convergence" prints "effective floats" for each bucket size beside its figure 1.
Here are, for the gradients of the perceptron 784-4096-10 (MNIST, batch 256, while SGD trains it): theorem 3.2 and the
first version's formula for each bucket, 32 bits more for its scale, and frames in two codecs. Biases are sent as they
are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

from mnist_data import CLASSES, PIXELS

from experiments import command
from experiments.bucket_sizes import BATCH_SIZE, QUICK, perceptron_task, quantization
from experiments.figures import by_setting, new_figure, save
from experiments.runs import Row, run_all
from experiments.theorems import one_level_bits_bound, sparse_bits_bound
from experiments.training import Task, compressed_by_default, train
from experiments.workers import FLOAT_BITS, Exchange

PRINTED = {256: 88_000, 1024: 49_000, 4096: 29_000}  # in the paper, in thousands
CODECS = ("elias-sparse", "rans")
FULL: dict[str, Any] = {"images": 60_000, "hidden": 4096, "steps": 468, "points": 6}


def bound_floats(bits_per_bucket: Callable[[int], float], bucket_size: int, hidden: int = 4096) -> float:
    """A step's floats if each bucket takes so many bits and a float: the two weight matrices, and the biases."""
    buckets = (PIXELS + CLASSES) * hidden / bucket_size
    return buckets * (bits_per_bucket(bucket_size) / FLOAT_BITS + 1) + hidden + CLASSES


def theorem_floats(bucket_size: int, hidden: int = 4096) -> float:
    """By theorem 3.2 with s = 1."""
    return bound_floats(lambda n: sparse_bits_bound(n, 1), bucket_size, hidden)


def first_version_floats(bucket_size: int, hidden: int = 4096) -> float:
    """By the first version's formula."""
    return bound_floats(one_level_bits_bound, bucket_size, hidden)


def frame_floats(task: Task, bucket_size: int, codec: str, step: int, seed: int) -> float:
    """Of real frames, headers and all, for the gradients that the model has now."""
    exchange = Exchange({**quantization(bucket_size), "codec": codec}, seed)
    for tensor, (name, parameter) in enumerate(task.model.named_parameters()):
        if compressed_by_default(name, parameter.grad):
            exchange.mean([parameter.grad.numpy()], step=step, tensor=tensor)
        else:
            exchange.exact_mean([parameter.grad.numpy()])
    return exchange.bits_sent / FLOAT_BITS


def main(options: argparse.Namespace) -> None:
    def run(seed: int, images: int, hidden: int, steps: int, points: int) -> Iterator[Row]:
        task = perceptron_task(options.data_dir, images, hidden, seed)
        for point in train(
            task, Exchange(None), workers=1, batch_size=BATCH_SIZE, steps=steps, points=points, seed=seed
        ):
            for bucket_size in PRINTED:
                floats = {codec: frame_floats(task, bucket_size, codec, point["step"], seed) for codec in CODECS}
                yield {"step": point["step"], "bucket_size": bucket_size, **floats}

    path = command.csv_path(options, "effective_floats")
    size = QUICK if options.quick else FULL
    rows = run_all(path, [{"seed": seed, **size} for seed in range(options.seeds)], run)
    report(rows, size["hidden"])
    plot(rows, size["hidden"], path.with_suffix(".png"))


def columns(rows: list[Row], hidden: int) -> dict[str, list[float]]:
    """By name, a figure for each bucket size; of the frames, the mean over steps and seeds."""
    measured = by_setting(rows, "bucket_size")
    means = {
        f"frames, {codec}": [sum(row[codec] for row in own) / len(own) for own in measured.values()] for codec in CODECS
    }
    bounds = {"theorem 3.2": theorem_floats, "first version": first_version_floats}
    printed = {"printed in the paper": list(map(float, PRINTED.values()))} if hidden == FULL["hidden"] else {}
    return {
        **printed,
        **{name: [bound(bucket_size, hidden) for bucket_size in measured] for name, bound in bounds.items()},
        **means,
    }


def report(rows: list[Row], hidden: int) -> None:
    """A line for each column, and how far frames differ between steps and seeds."""
    for name, floats in columns(rows, hidden).items():
        print(f"{name}: " + ", ".join(f"{value:,.0f} (bucket {size})" for size, value in zip(PRINTED, floats)))
    for codec in CODECS:
        values = [row[codec] for row in rows if row["bucket_size"] == 256]
        print(f"{codec}, bucket 256: {min(values):,.0f} to {max(values):,.0f} over all steps and seeds")


def plot(rows: list[Row], hidden: int, path: Path) -> None:
    figure, (axes,) = new_figure(1, f"Floats a step, perceptron 784-{hidden}-10, s = 1, l2 norm")
    for number, (name, floats) in enumerate(columns(rows, hidden).items()):
        axes.bar([index + 0.16 * (number - 2) for index in range(len(floats))], floats, width=0.15, label=name)
    axes.set_xticks(range(len(PRINTED)), [f"bucket {size}" for size in PRINTED])
    axes.set(ylabel="bits a step / 32")
    axes.legend(frameon=False, fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    command.main(main, command.make_parser(__doc__))
