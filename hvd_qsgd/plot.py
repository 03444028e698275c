"""The comparison of codecs as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvd_qsgd.compare import Result
from hvd_qsgd.errors import QSGDError

COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")


def plot(results: Sequence[Result], title: str, path: Path) -> None:
    """Variance against bits with the entropy beside them, and the speeds, in a PNG file.

    Raises:
        QSGDError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise QSGDError("--plot needs Matplotlib: run `pip install matplotlib`, or leave --plot out") from None
    figure = Figure(figsize=(12, 5), layout="constrained")
    bits, speed = figure.subplots(1, 2, width_ratios=[3, 2])
    names = list(dict.fromkeys(result.codec for result in results))
    colors = {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}
    _draw_bits(bits, results, colors)
    _draw_speed(speed, results, colors)
    figure.suptitle(title)
    figure.savefig(path, dpi=120, format="png")


def label(result: Result) -> str:
    """The setting in a few words."""
    scales = "one scale" if result.bucket_size is None else f"bucket {result.bucket_size}"
    return f"{result.codec}, s = {result.levels}, {result.norm}, {scales}"


def _draw_bits(axes: Any, results: Sequence[Result], colors: dict[str, str]) -> None:
    for result in results:
        color = colors[result.codec]
        axes.plot([result.entropy, result.bits], [result.variance] * 2, color=color, linewidth=1, alpha=0.5)
        axes.plot(result.entropy, result.variance, "|", color=color, markersize=12)
        axes.plot(result.bits, result.variance, "o", color=color)
    for (levels, _), result in {(result.levels, result.bucket_size): result for result in results}.items():
        axes.annotate(
            f"s = {levels}", (result.entropy, result.variance), xytext=(4, 5), textcoords="offset points", size=8
        )
    for name, color in colors.items():
        axes.plot([], [], "o", color=color, label=name)
    axes.plot([], [], "|", color="gray", markersize=12, label="entropy of the codes")
    axes.set(xlabel="bits a coordinate", ylabel="relative variance", xlim=(0, None))
    if all(result.variance > 0 for result in results):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _draw_speed(axes: Any, results: Sequence[Result], colors: dict[str, str]) -> None:
    rows = range(len(results))
    for offset, kind, alpha in ((-0.2, "encode", 1.0), (0.2, "decode", 0.5)):
        axes.barh(
            [row + offset for row in rows],
            [getattr(result, f"{kind}_gbps") for result in results],
            height=0.38,
            color=[colors[result.codec] for result in results],
            alpha=alpha,
        )
    axes.set_yticks(rows, [label(result) for result in results], size=8)
    axes.invert_yaxis()
    axes.set(xlabel="GB/s: encode (dark), decode (light)")
    axes.grid(axis="x", alpha=0.3)
