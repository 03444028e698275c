"""The comparison of several training runs: a table and a plot, from the JSON files that the examples write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

Run = dict[str, Any]
STYLE = {  # colours that colour-blind readers can tell apart, and wide below narrow: curves often coincide
    "none": {"color": "#9aa5b1", "linewidth": 4.5, "markersize": 11},
    "fp16": {"color": "#0072b2", "linewidth": 2.6, "markersize": 8},
    "qsgd": {"color": "#d55e00", "linewidth": 1.4, "markersize": 5},
}
GRID = "#e5e8eb"
FRAMEWORKS = {"torch": "PyTorch", "tensorflow": "TensorFlow", "keras": "Keras"}
COLUMNS = (
    ("test accuracy", "{accuracy:.2%}"),
    ("MB sent per rank and step", "{megabytes:.2f}"),
    ("bits per coordinate", "{bits_per_coordinate:.2f}"),
    ("compression ratio", "{compression_ratio:.2f}"),
    ("seconds per step", "{seconds_per_step:.3f}"),
    ("seconds of training", "{seconds_training:.0f}"),
)


def label(run: Run) -> str:
    """What to call a run."""
    if run["compression"] != "qsgd":
        return {"none": "uncompressed", "fp16": "float16"}[run["compression"]]
    settings = dict(run["quantization"])
    bits = [f"{settings.pop('bits')} bits"] if "bits" in settings else []
    return " ".join(["QSGD", ", ".join(bits + [f"{name}={value}" for name, value in settings.items()])]).strip()


def table(runs: Sequence[Run]) -> str:
    """A line for each run, under headings of two lines."""
    headings = [("", "")] + [_halves(heading) for heading, _ in COLUMNS]
    lines = [[first for first, _ in headings], [second for _, second in headings]]
    for run in runs:
        values = {**run, "accuracy": run["test_accuracy"][-1], "megabytes": run["bytes_per_step"] / 1e6}
        lines.append([label(run)] + [form.format(**values) for _, form in COLUMNS])
    widths = [max(map(len, column)) for column in zip(*lines)]
    rows = [
        "  ".join([line[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(line[1:], widths[1:])]) for line in lines
    ]
    return "\n".join([*rows[:2], "-" * len(rows[0]), *rows[2:]])


def _halves(heading: str) -> tuple[str, str]:
    """A heading in two lines of about equal length."""
    words = heading.split()
    splits = [(" ".join(words[:n]), " ".join(words[n:])) for n in range(1, len(words))]
    return min(splits, key=lambda lines: max(map(len, lines)))


def plot(runs: Sequence[Run], path: Path) -> None:
    """Training loss and test accuracy of all runs against epochs, and what they sent, as a PNG file."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True})
    figure, (loss, accuracy, sent) = plt.subplots(
        1, 3, figsize=(13, 4.4), layout="constrained", gridspec_kw={"width_ratios": [5, 4, 3.4]}
    )
    for run in runs:
        epochs = len(run["test_accuracy"])
        ends = np.arange(1, epochs + 1)
        steps = np.arange(1, len(run["loss"]) + 1) / run["steps_per_epoch"]
        line = {name: value for name, value in STYLE[run["compression"]].items() if name != "markersize"}
        loss.plot(steps, smooth(run["loss"]), label=label(run), **line)
        accuracy.plot(ends, run["test_accuracy"], marker="o", label=label(run), **STYLE[run["compression"]])
    _finish_loss(loss)
    _finish_accuracy(accuracy, epochs)
    _draw_sent(sent, runs)
    first = runs[0]
    figure.suptitle(
        f"MNIST, perceptron 784-4096-10, Horovod with {FRAMEWORKS[first['framework']]}, {first['ranks']} ranks",
        fontweight="bold",
    )
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def smooth(values: Sequence[float]) -> NDArray[np.float64]:
    """The mean of each value and its neighbours within a fiftieth of the run."""
    reach = len(values) // 50
    total = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - reach, 0)
    end = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    means: NDArray[np.float64] = (total[end] - total[first]) / (end - first)
    return means


def _finish_loss(axes: Axes) -> None:
    axes.set(title="Training loss (smoothed)", xlabel="epoch", ylabel="cross entropy", yscale="log", xlim=(0, None))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=GRID)
    axes.legend(frameon=False)


def _finish_accuracy(axes: Axes, epochs: int) -> None:
    axes.set(title="Test accuracy", xlabel="epoch", xlim=(0.7, epochs + 0.3))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes.margins(y=0.15)
    axes.grid(color=GRID)


def _draw_sent(axes: Axes, runs: Sequence[Run]) -> None:
    bars = axes.bar(
        [label(run).replace(" ", "\n", 1) for run in runs],
        [run["bytes_per_step"] / 1e6 for run in runs],
        color=[STYLE[run["compression"]]["color"] for run in runs],
        width=0.6,
    )
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.margins(x=0.12, y=0.1)
    axes.set(title="MB sent per rank and step", yticks=[])
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="x", length=0, labelsize=9.5)
