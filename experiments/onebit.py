"""1-bit SGD with and without error feedback, and SGD: test accuracy on MNIST, trained by real Horovod ranks.

    python -m experiments.onebit [--data-dir DIR] [--quick]

The perceptron 784-4096-10 of examples/torch_mnist.py, with its settings: batch 256, step size 0.1.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from mnist_data import find_mnist

from experiments import command, ranks
from experiments.figures import by_setting, draw_curve, new_figure, save
from experiments.runs import Row, run_all

RANKS = 2
METHODS = ("SGD", "1-bit SGD", "1-bit SGD without error feedback")
QUICK_IMAGES = 2560


def main(options: argparse.Namespace) -> None:
    find_mnist(options.data_dir)  # before the ranks look for it: one message instead of one from each
    path = command.csv_path(options, "onebit")
    data = [f"--data-dir={options.data_dir.resolve()}"] if options.data_dir else []

    def run(method: str, seed: int, images: int, epochs: int) -> Iterator[Row]:
        arguments = [*ranks.COMPRESSION[method], *data, f"--seed={seed}", f"--epochs={epochs}"]
        arguments += [f"--train-images={images}"] if options.quick else []
        record = ranks.train(RANKS, arguments, path.with_suffix(".log"))
        steps = record["steps_per_epoch"]
        for epoch, accuracy in enumerate(record["test_accuracy"]):
            losses = record["loss"][epoch * steps : (epoch + 1) * steps]
            yield {
                "epoch": epoch + 1,
                "loss": sum(losses) / steps,
                "test_accuracy": accuracy,
                "bits_per_coordinate": record["bits_per_coordinate"],
            }

    size = {"images": QUICK_IMAGES, "epochs": 2} if options.quick else {"images": 60_000, "epochs": 3}
    plan = [{"method": method, "seed": seed, **size} for seed in range(options.seeds) for method in METHODS]
    rows = run_all(path, plan, run)
    report(rows)
    plot(rows, path.with_suffix(".png"))


def report(rows: list[Row]) -> None:
    """The accuracies after the last epoch."""
    for method, own in by_setting(rows, "method").items():
        last = [points[-1] for points in by_setting(own, "seed").values()]
        accuracies = ", ".join(f"{row['test_accuracy']:.2%}" for row in last)
        print(f"{method}: test accuracy {accuracies}; {last[0]['bits_per_coordinate']:.2f} bits a coordinate")


def plot(rows: list[Row], path: Path) -> None:
    figure, axes = new_figure(2, f"1-bit SGD: MNIST, perceptron 784-4096-10, {RANKS} ranks, mean and range over seeds")
    for number, (method, own) in enumerate(by_setting(rows, "method").items()):
        draw_curve(axes[0], own, "epoch", "loss", method, number)
        draw_curve(axes[1], own, "epoch", "test_accuracy", method, number)
    axes[0].set(xlabel="epoch", ylabel="training loss", yscale="log")
    axes[1].set(xlabel="epoch", ylabel="test accuracy")
    axes[0].legend(frameon=False)
    save(figure, path)


if __name__ == "__main__":
    command.main(main, command.make_parser(__doc__))
