"""Plots of runs: a line for the mean over seeds, a band from the least to the greatest."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from experiments.runs import Row
from hvd_qsgd.plot import COLORS


def by_setting(rows: Iterable[Row], setting: str) -> dict[Any, list[Row]]:
    """The rows for each value of a setting, in the order in which they come."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[setting], []).append(row)
    return groups


def over_seeds(rows: Iterable[Row], column: str) -> np.ndarray:
    """A column of the runs that differ in nothing but ``seed``: a row for each seed, a column for each point."""
    return np.array([[row[column] for row in run] for run in by_setting(rows, "seed").values()], np.float64)


def draw_curve(axes: Any, rows: Sequence[Row], x: str, y: str, label: str, number: int) -> None:
    """Mean and range over the seeds of ``y`` against (the mean of) ``x``, in the colour of that number."""
    values, color = over_seeds(rows, y), COLORS[number % len(COLORS)]
    at = over_seeds(rows, x).mean(axis=0)
    axes.plot(at, values.mean(axis=0), color=color, label=label, linewidth=1.5)
    axes.fill_between(at, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2, linewidth=0)


def draw_bars(axes: Any, rows: Sequence[Row], x: str, y: str, label: str, number: int) -> None:
    """The same with a bar at each point for the range, where bands would hide each other."""
    values = over_seeds(rows, y)
    mean = values.mean(axis=0)
    axes.errorbar(
        over_seeds(rows, x).mean(axis=0),
        mean,
        yerr=(mean - values.min(axis=0), values.max(axis=0) - mean),
        color=COLORS[number % len(COLORS)],
        label=label,
        linewidth=1.5,
        elinewidth=0.7,
        marker="o",
        markersize=4,
        capsize=2,
    )


def mean_and_range(values: Sequence[float], form: str) -> str:
    """The mean, and in brackets the least and the greatest."""
    return f"{np.mean(values):{form}} ({min(values):{form}} … {max(values):{form}})"


def new_figure(panels: int, title: str) -> tuple[Figure, Sequence[Any]]:
    """A figure of panels side by side."""
    figure = Figure(figsize=(5 * panels, 3.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for each in axes:
        each.grid(alpha=0.3)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write a PNG file, small enough for the documentation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with io.BytesIO() as drawn:
        figure.savefig(drawn, dpi=80, format="png")
        Image.open(drawn).convert("RGB").quantize(256).save(path, format="png", optimize=True)
    print(f"plot: {path}")
