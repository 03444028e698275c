"""How a schedule spends bits on strongly convex problems: fixed levels, DQSGD and Budget, at the same total bits.

    python -m experiments.convex [--data-dir DIR] [--quick]

A quadratic function with condition number 10 and noisy gradients, and l2-regularized logistic regression, 3 or 8 of
MNIST. Workers are simulated in one process: their frames are real, of codec "rans". Excess is by how much f - f* after
the last step is more than that of exact training with the same noise. Each schedule gets the bits that the fixed levels
took.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

from experiments import command
from experiments.figures import by_setting, draw_curve, mean_and_range, new_figure, save
from experiments.problems import mnist_3_or_8
from experiments.runs import Row, run_all
from experiments.scheduled import ScheduledExchange
from experiments.workers import Exchange
from hvd_qsgd.schedule import DQSGD, Budget, Schedule

Vector = NDArray[np.float64]
METHODS = ("fixed", "DQSGD", "Budget")
LEVELS = (1, 2, 3, 4, 6, 10)
HOW: dict[str, Any] = {"norm": "max", "bucket_size": 512, "codec": "rans"}
FLOOR = 0.1  # bits a coordinate that every step of Budget gets
CONDITION, NOISE, REGULARIZATIONS, BATCH = 10.0, 0.1, (0.01, 0.03), 16
STEP_SIZES = {"quadratic": 0.1, "logistic": 2.0}
FULL: dict[str, Any] = {"size": 4096, "images": 10_000, "workers": 4, "steps": 300}
QUICK: dict[str, Any] = {"size": 512, "images": 400, "workers": 2, "steps": 100}
SEARCHES = 16  # of the k with which DQSGD takes as many bits


@dataclasses.dataclass(frozen=True)
class Problem:
    """What to minimize: f - f* at x, a worker's gradient at x, and by which a step contracts f - f*."""

    size: int
    gap: Callable[[Vector], float]
    gradient: Callable[[Vector, np.random.Generator], Vector]
    start: float  # of every coordinate
    step_size: float
    alpha: float


def contraction(mu: float, smoothness: float, step_size: float) -> float:
    """1 - 2μη + Lμη² (μ, L: least and largest curvature, η: step size), of gradient descent."""
    return 1 - 2 * mu * step_size + smoothness * mu * step_size**2


def quadratic(size: int) -> Problem:
    """f(x) = Σ λ_i x_i² / 2, λ from 1 to 10; normal noise of the same size in all coordinates."""
    curvature, step_size = np.linspace(1, CONDITION, size), STEP_SIZES["quadratic"]

    def gradient(x: Vector, draws: np.random.Generator) -> Vector:
        return curvature * x + NOISE * draws.normal(size=size)

    alpha = contraction(1, CONDITION, step_size)
    return Problem(size, lambda x: float(curvature @ x**2 / 2), gradient, 1.0, step_size, alpha)


def logistic(data_dir: Path | None, images: int, regularization: float) -> Problem:
    """MNIST, 3 or 8; the noise is that of batches."""
    regression, step_size = mnist_3_or_8(data_dir, images, regularization), STEP_SIZES["logistic"]

    def gradient(x: Vector, draws: np.random.Generator) -> Vector:
        return regression.gradient(x, draws.integers(regression.examples, size=BATCH))

    alpha = contraction(regularization, 0.25 + regularization, step_size)
    gap = lambda x: regression.value(x) - regression.minimum  # noqa: E731
    return Problem(regression.size, gap, gradient, 0.0, step_size, alpha)


def descend(problem: Problem, exchange: Exchange, workers: int, steps: int, seed: int) -> tuple[float, float]:
    """SGD. Returns f - f* after the last step, and the bits a coordinate and step that a worker sent."""
    draws = np.random.default_rng(seed)
    x = np.full(problem.size, problem.start)
    for step in range(steps):
        own = [problem.gradient(x, draws).astype(np.float32) for _ in range(workers)]
        x = x - problem.step_size * exchange.mean(own, step=step, tensor=0)
    return problem.gap(x), exchange.bits_sent / (problem.size * steps)


def compare(problem: Problem, method: str, levels: int, workers: int, steps: int, seed: int) -> Row:
    """One method, at the bits of the fixed levels, beside exact training."""

    def scheduled(schedule: Schedule) -> tuple[float, float]:
        return descend(problem, ScheduledExchange(schedule, HOW, seed), workers, steps, seed)

    exact, _ = descend(problem, Exchange(None, seed), workers, steps, seed)
    gap, bits = descend(problem, Exchange({"levels": levels, **HOW}, seed), workers, steps, seed)
    if method == "Budget":
        gap, bits = scheduled(Budget(bits, steps, problem.alpha, floor=min(FLOOR, bits)))
    elif method == "DQSGD":
        gap, bits = _at_bits(lambda k: scheduled(DQSGD(k, problem.alpha, steps)), bits)
    return {"bits": bits, "gap": gap, "exact_gap": exact, "excess": gap / exact - 1}


def _at_bits(run: Callable[[float], tuple[float, float]], bits: float) -> tuple[float, float]:
    """The run that takes so many bits, or just fewer, by bisection of the logarithm of its k."""
    low, high = -20.0, 40.0
    best = run(2.0**low)
    for _ in range(SEARCHES):
        middle = (low + high) / 2
        tried = run(2.0**middle)
        if tried[1] <= bits:
            low, best = middle, tried
        else:
            high = middle
    return best


def main(options: argparse.Namespace) -> None:
    size = QUICK if options.quick else FULL
    problems = {"quadratic": quadratic(size["size"])} | {
        f"logistic, λ = {value:g}": logistic(options.data_dir, size["images"], value) for value in REGULARIZATIONS
    }

    def run(problem: str, method: str, levels: int, seed: int, workers: int, steps: int, **_: int) -> Iterator[Row]:
        yield compare(problems[problem], method, levels, workers, steps, seed)

    path = command.csv_path(options, "convex")
    plan = [
        {"problem": problem, "method": method, "levels": levels, "seed": seed, **size}
        for problem in problems
        for seed in range(options.seeds)
        for method in METHODS
        for levels in (LEVELS[:3] if options.quick else LEVELS)
    ]
    rows = run_all(path, plan, run)
    report(rows)
    plot(rows, size["workers"], path.with_suffix(".png"))


def report(rows: list[Row]) -> None:
    """Excess of each method at the bits of each number of levels."""
    for problem, some in by_setting(rows, "problem").items():
        for levels, own in by_setting(some, "levels").items():
            print(f"{problem}, at the bits of s = {levels}:")
            for method, runs in by_setting(own, "method").items():
                excess = mean_and_range([run["excess"] for run in runs], ".3%")
                print(f"    {method}: excess {excess}; {np.mean([run['bits'] for run in runs]):.2f} bits a coordinate")


def plot(rows: list[Row], workers: int, path: Path) -> None:
    figure, axes = new_figure(
        3,
        f"excess of f - f* over exact training; {workers} workers, simulated in one process: mean and range over seeds",
    )
    for panel, (problem, some) in zip(axes, by_setting(rows, "problem").items()):
        for number, (method, own) in enumerate(by_setting(some, "method").items()):
            draw_curve(panel, [{**row, "excess": abs(row["excess"])} for row in own], "bits", "excess", method, number)
        panel.set(title=problem, xlabel="bits a coordinate", ylabel="|excess|", yscale="log")
    axes[0].legend(frameon=False)
    save(figure, path)


if __name__ == "__main__":
    command.main(main, command.make_parser(__doc__))
