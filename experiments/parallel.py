"""Figure 2 of "Quantized SGD: Communication versus Convergence": test accuracy against time, on 1, 2 and 4 real ranks.

    python -m experiments.parallel [--data-dir DIR] [--launch "mpirun -n {ranks} --host ..."] [--quick]

The perceptron 784-4096-10 of examples/torch_mnist.py on MNIST, step size 0.1, the same batch of 256 images whatever the
number of ranks, which divide it among themselves. Seconds are those of training, without tests. What ranks send on one
machine takes little time; --launch starts them where the network is that is to be measured, and one rank, which sends
nothing, always here. Each seed is a turn of all methods, so that slow moments hit all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mnist_data import find_mnist

from experiments import command, ranks
from experiments.figures import by_setting, draw_curve, mean_and_range, new_figure, save
from experiments.runs import ExperimentError, Row, run_all

METHODS = ("SGD", "QSGD, 4 bits", "QSGD, variance 0.1", "1-bit SGD")
RANKS = (1, 2, 4)
JOBS = [(number, method) for number in RANKS for method in METHODS if number > 1 or method == "SGD"]
BATCH_SIZE = 256
REACHED = (0.80, 0.85)  # test accuracies, whose times are compared
FULL: dict[str, Any] = {"images": 60_000, "steps": 10, "points": 6}  # a test after so many steps
QUICK: dict[str, Any] = {"images": 2560, "steps": 4, "points": 2}


def main(options: argparse.Namespace) -> None:
    if options.launch is not None and "{ranks}" not in options.launch:
        raise ExperimentError(
            f"--launch {options.launch!r} does not say where the number of ranks goes: write {{ranks}} there, as in "
            '"mpirun -n {ranks}"'
        )
    find_mnist(options.data_dir)  # before the ranks look for it: one message instead of one from each
    path = command.csv_path(options, "parallel")
    data = [f"--data-dir={options.data_dir.resolve()}"] if options.data_dir else []

    def run(
        number: int, method: str, seed: int, launch: str | None, images: int, steps: int, points: int
    ) -> Iterator[Row]:
        arguments = [*ranks.COMPRESSION[method], *data, f"--seed={seed}", f"--batch-size={BATCH_SIZE}"]
        arguments += [f"--train-images={images}", f"--steps-per-epoch={steps}", f"--epochs={points}"]
        record = ranks.train(number, arguments, path.with_suffix(".log"), launch if number > 1 else None)
        for point, (seconds, accuracy) in enumerate(zip(record["seconds"], record["test_accuracy"]), 1):
            yield {
                "step": point * steps,
                "seconds": seconds,
                "test_accuracy": accuracy,
                "bits_per_coordinate": record["bits_per_coordinate"],
            }

    size = QUICK if options.quick else FULL
    plan = [
        {"number": number, "method": method, "seed": seed, "launch": options.launch, **size}
        for seed in range(options.seeds)
        for number, method in (JOBS[:3] if options.quick else JOBS)
    ]
    rows = run_all(path, plan, run)
    report(rows)
    plot(rows, path.with_suffix(".png"))


def report(rows: list[Row]) -> None:
    """Seconds a step, when some accuracies were reached, and the last one."""
    for number, some in by_setting(rows, "number").items():
        for method, own in by_setting(some, "method").items():
            runs = list(by_setting(own, "seed").values())
            last = [run[-1] for run in runs]
            step = mean_and_range([row["seconds"] / row["step"] for row in last], ".3f")
            reached = "; ".join(f"{accuracy:.0%} {_when(runs, accuracy)}" for accuracy in REACHED)
            print(
                f"{number} rank{'s' * (number > 1)}, {method}: {step} s a step; {reached}; at last "
                f"{mean_and_range([row['test_accuracy'] for row in last], '.2%')}; "
                f"{last[0]['bits_per_coordinate']:.2f} bits a coordinate"
            )


def _when(runs: list[list[Row]], accuracy: float) -> str:
    """At which of the tests the accuracy was reached."""
    first = [next((row["seconds"] for row in run if row["test_accuracy"] >= accuracy), None) for run in runs]
    return "not reached" if None in first else f"after {mean_and_range(first, '.1f')} s"


def plot(rows: list[Row], path: Path) -> None:
    groups = by_setting(rows, "number")
    figure, axes = new_figure(
        len(groups), f"MNIST, perceptron 784-4096-10, batch {BATCH_SIZE} in all: mean and range over seeds"
    )
    for panel in axes[1:]:
        panel.sharex(axes[0])
        panel.sharey(axes[0])
    for panel, (number, some) in zip(axes, groups.items()):
        for method, own in by_setting(some, "method").items():
            draw_curve(panel, own, "seconds", "test_accuracy", method, METHODS.index(method))
        panel.set(title=f"{number} rank{'s' * (number > 1)}", xlabel="seconds of training", xscale="log")
    axes[0].set(ylabel="test accuracy")
    axes[-1].legend(frameon=False, fontsize=8, loc="upper left")
    save(figure, path)


def make_parser() -> argparse.ArgumentParser:
    """The options of all experiments, and --launch."""
    parser = command.make_parser(__doc__)
    parser.add_argument(
        "--launch",
        metavar="COMMAND",
        help="what starts several ranks, instead of mpirun on this machine: it stands before the command of a rank, "
        "with {ranks} for their number",
    )
    return parser


if __name__ == "__main__":
    command.main(main, make_parser())
