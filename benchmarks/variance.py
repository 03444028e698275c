"""What it costs to solve levels for a variance, beside encoding with them, and how well the variance is met.

    python -m benchmarks.variance [GRADIENT.npy ...] [--variance 0.1]

Processor time on one core, medians of 15 in turns; one l2 scale a tensor, codec rans. Without files: noise.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

os.environ["HVD_QSGD_NUM_THREADS"] = "1"

import numpy as np

from hvd_qsgd import frames, native
from hvd_qsgd.__main__ import print_table
from hvd_qsgd.compare import Values, as_values
from hvd_qsgd.config import Quantization

TURNS = 15


def noise() -> dict[str, Values]:
    rng, n = np.random.default_rng(0), 1 << 20
    made = {
        "Gaussian": rng.standard_normal(n),
        "Laplace": rng.laplace(size=n),
        "Cauchy": rng.standard_cauchy(n),
        "Gaussian, 99.7 % zeros": rng.standard_normal(n) * (rng.random(n) < 0.003),
        "Gaussian, 2^24": rng.standard_normal(1 << 24),
        "Cauchy, 2^24": rng.standard_cauchy(1 << 24),
    }
    return {name: as_values(values.astype(np.float32)) for name, values in made.items()}


def exact_variance(values: Values, levels: int) -> float:
    """Relative variance with one l2 scale, by definition."""
    v = np.abs(values.ravel().astype(np.float64))
    unit = np.sqrt(v @ v) / levels
    f = v / unit % 1
    return float((f * (1 - f)).sum() / levels**2)


def make_spec(values: Values, levels: int) -> native.Spec:
    place = {"dtype": "float32", "seed": 0, "rank": 0, "tensor": 0, "step": 0}
    quantization = Quantization(levels, None, "l2", "rans")
    return frames.make_spec(quantization, count=values.size, columns=native.columns(values.shape), **place)


def measure(name: str, values: Values, variance: float) -> tuple[str, ...]:
    """A row of the table."""
    limits, address = make_spec(values, 32767), values.ctypes.data
    levels = native.solve_levels(limits, address, variance)
    spec = make_spec(values, levels)
    frame = np.empty(native.frame_bytes(spec), np.uint8)
    solving, encoding = [], []
    for _ in range(TURNS):
        start = time.process_time()
        native.solve_levels(limits, address, variance)
        middle = time.process_time()
        native.encode(spec, address, frame.ctypes.data, frame.size)
        solving.append(middle - start)
        encoding.append(time.process_time() - middle)
    solve, encode = (1e6 * statistics.median(each) for each in (solving, encoding))
    met = exact_variance(values, levels)
    return name, str(values.size), str(levels), f"{met:.4g}", f"{solve:.0f}", f"{encode:.0f}", f"{solve / encode:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", metavar="GRADIENT.npy", help="default: noise")
    parser.add_argument("--variance", type=float, default=0.1, metavar="W", help="default: 0.1")
    options = parser.parse_args()
    named = {file.stem: as_values(np.load(file)) for file in options.files} or noise()
    heading = ("gradient", "elements", "levels", "variance", "solve, us", "encode, us", "ratio")
    print_table([heading, *(measure(name, values, options.variance) for name, values in named.items())], "<>>>>>>")


if __name__ == "__main__":
    main()
