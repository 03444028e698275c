"""QSVRG beside QSGD and SVRG: how far f is from its minimum, by what a worker has sent (QSGD, theorem 3.6).

    python -m experiments.variance_reduction [--data-dir DIR] [--quick]

l2-regularized logistic regression, 3 or 8 of MNIST, one image a worker and step. Workers are simulated in one process:
each encodes its vector, and all frames are decoded and added up. Weights are float64, what is sent in a step is
float32 or a frame; at the start of an epoch SVRG and QSVRG exchange float64 gradients.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments import command
from experiments.figures import by_setting, draw_curve, mean_and_range, new_figure, save
from experiments.problems import LogisticRegression, mnist_3_or_8
from experiments.runs import Row, run_all
from experiments.workers import Exchange

DOUBLE_BITS = 64
L2 = {"norm": "l2", "bucket_size": None}
QUANTIZATIONS: dict[str, dict[str, Any] | None] = {
    "QSGD, s = √n": {"levels": "sqrt", "codec": "elias-dense", **L2},
    "SVRG, float32": None,
    "QSVRG, s = √n": {"levels": "sqrt", "codec": "elias-dense", **L2},
    "QSVRG, s = 7": {"levels": 7, "codec": "elias-sparse", **L2},
}
STEP_SIZE, REGULARIZATION = 2.0, 0.01
REACHED = 1e-10  # where bits are compared
ROUNDING = 1e-16  # of f, below which a gap is drawn as this
FULL: dict[str, Any] = {"images": 2000, "workers": 8, "epochs": 20, "steps": 100}
QUICK: dict[str, Any] = {"images": 400, "workers": 4, "epochs": 12, "steps": 100}


def descend(
    problem: LogisticRegression, method: str, *, workers: int, epochs: int, steps: int, seed: int
) -> Iterator[Row]:
    """Minimize by one of the methods, from 0. An epoch has so many steps, and begins at the last iterate.

    Yields:
        After each epoch: step; bits, sent by one worker so far, a coordinate; gap, f - f*.
    """
    exchange, reduced = Exchange(QUANTIZATIONS[method], seed), "SVRG" in method
    shards = np.array_split(np.random.default_rng(seed).permutation(problem.examples), workers)
    draws = np.random.default_rng((seed, 1))
    x = np.zeros(problem.size)
    for epoch in range(epochs):
        y = x
        full = np.mean([problem.gradient(y, shard) for shard in shards], axis=0)
        exchange.bits_sent += DOUBLE_BITS * problem.size if reduced else 0
        for step in range(epoch * steps, (epoch + 1) * steps):
            own = [_estimate(problem, x, y, full, draws.choice(shard, 1), reduced) for shard in shards]
            x = x - STEP_SIZE * exchange.mean(own, step=step, tensor=0)
        gap = max(problem.value(x) - problem.minimum, ROUNDING)
        yield {"step": (epoch + 1) * steps, "bits": exchange.bits_sent / problem.size, "gap": gap}


def _estimate(
    problem: LogisticRegression,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    full: NDArray[np.float64],
    rows: NDArray[np.int64],
    reduced: bool,
) -> NDArray[np.float32]:
    """A worker's estimate of ∇f(x), as it is sent."""
    gradient = problem.gradient(x, rows)
    if reduced:
        gradient = gradient - problem.gradient(y, rows) + full
    return gradient.astype(np.float32)


def main(options: argparse.Namespace) -> None:
    size = QUICK if options.quick else FULL
    problem = mnist_3_or_8(options.data_dir, size["images"], REGULARIZATION)

    def run(method: str, seed: int, images: int, **how: int) -> Iterator[Row]:
        return descend(problem, method, seed=seed, **how)

    path = command.csv_path(options, "variance_reduction")
    plan = [{"method": method, "seed": seed, **size} for seed in range(options.seeds) for method in QUANTIZATIONS]
    rows = run_all(path, plan, run)
    report(rows)
    plot(rows, size["workers"], path.with_suffix(".png"))


def report(rows: list[Row]) -> None:
    """Each method: the least gap of an epoch, the last one's, and what it took to get near the minimum."""
    for method, own in by_setting(rows, "method").items():
        runs = list(by_setting(own, "seed").values())
        least, last = (mean_and_range(gaps, ".1e") for gaps in zip(*[(min(_gaps(r)), _gaps(r)[-1]) for r in runs]))
        near = [next((row for row in run if row["gap"] < REACHED), None) for run in runs]
        if None in near:
            reached = f"{REACHED:g} not reached"
        else:
            bits, steps = (mean_and_range([row[name] for row in near], ",.0f") for name in ("bits", "step"))
            reached = f"{REACHED:g} after {bits} bits a coordinate, {steps} steps"
        print(f"{method}: f - f* at least {least}, at last {last}; {reached}")


def _gaps(run: list[Row]) -> list[float]:
    return [row["gap"] for row in run]


def plot(rows: list[Row], workers: int, path: Any) -> None:
    figure, axes = new_figure(
        2, f"logistic regression, MNIST 3 or 8, {workers} workers (simulated in one process): mean and range over seeds"
    )
    for number, (method, own) in enumerate(by_setting(rows, "method").items()):
        for panel, x in zip(axes, ("bits", "step")):
            draw_curve(panel, own, x, "gap", method, number)
    axes[0].set(xlabel="bits a coordinate, sent by a worker", ylabel="f - f*", xscale="log", yscale="log")
    axes[1].set(xlabel="step", yscale="log")
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    command.main(main, command.make_parser(__doc__))
