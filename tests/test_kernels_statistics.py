"""What comes out of the kernels, as a random variable: unbiased, of the variance that QSGD promises, independent.

Each vector fills a bucket and is repeated, so that a step draws it many times; a million draws in all. Seeds are
fixed: a test that passes, passes always.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import reference as ref
from support import NORMS, Array, all_kernels, make_spec

from hvd_qsgd import native

WIDTH = 64
STEPS = 8
ROWS = 125_000  # draws a step
DRAWS = STEPS * ROWS
ONE = 2**24


def vectors() -> dict[str, Array]:
    rng = np.random.default_rng(20)
    gaussian = rng.standard_normal(WIDTH)
    gaussian[[5, 6]] = [0.0, -0.0]
    one_hot = np.zeros(WIDTH)
    one_hot[17] = -1
    mixed = gaussian * 2.0 ** -(np.arange(WIDTH)[::-1] ** 1.0)
    named = {
        "gaussian": gaussian,
        "one-hot": one_hot,
        "tiny": gaussian * 1e-38,
        "huge": gaussian * 1e38,
        "mixed": mixed,
    }
    return {name: values.astype(np.float32) for name, values in named.items()}


VECTORS = vectors()
CODINGS = [
    *itertools.product([("packed", 7), ("packed", 127), ("ternary", 1)], NORMS, VECTORS),
    *itertools.product([("packed", 1), ("packed", 2), ("packed", 100)], NORMS, ["gaussian", "mixed"]),
]


def probabilities(values: Array, levels: int, norm: str) -> tuple[float, Array, Array]:
    """From the format: the scale, the lower code of each value, and how many of the 2^24 random numbers round it up."""
    scales = ref.scales_of(values, values.size, norm)

    def codes(bits: Array) -> Array:
        return ref.quantize(values, scales, values.size, levels, bits.astype(np.uint32))

    low = codes(np.zeros(values.size))
    first = np.zeros(values.size, np.int64)  # the least R that rounds up, or 2^24
    for bit in reversed(range(24)):
        first += (codes(first + (1 << bit) - 1) == low) * (1 << bit)
    first += (first == ONE - 1) & (codes(np.minimum(first, ONE - 1)) == low)
    return float(scales[0]), low.astype(np.int64), ONE - first


def two_sided_tail(k: int, n: int, p: float) -> float:
    """Twice the exact probability that a binomial variable is k or still farther from its mean, on k's side."""
    if p in (0, 1):
        return float(k == n * p)
    if k < n * p:
        k, p = n - k, 1 - p
    log_probability = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    log_probability += k * math.log(p) + (n - k) * math.log1p(-p)
    j = np.arange(k, min(n, k + 50_000), dtype=np.float64)
    ratios = np.cumprod((n - j) / (j + 1) * (p / (1 - p)))  # of the probabilities of k + 1, k + 2, ... to that of k
    return min(1.0, 2 * math.exp(log_probability) * (1 + float(ratios.sum())))


def test_tail() -> None:
    for n, p in itertools.product((1, 2, 30), (Fraction(1, 1000), Fraction(1, 3), Fraction(1, 2), Fraction(9, 10))):
        mass = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        for k in range(n + 1):
            exact = 2 * sum(mass[k:] if k >= n * p else mass[: k + 1])
            assert two_sided_tail(k, n, float(p)) == pytest.approx(min(1.0, float(exact)), rel=1e-9)
    assert two_sided_tail(0, 10**6, 0.0) == 1
    assert two_sided_tail(1, 10**6, 0.0) == 0
    assert two_sided_tail(503_000, 10**6, 0.5) == pytest.approx(1.97e-9, rel=0.01)  # six standard deviations
    assert two_sided_tail(20, 10**6, 1e-6) < 1e-17


class Sampler:
    """A vector repeated, encoded and decoded without copies by the best kernels of this machine."""

    def __init__(self, values: Array, codec: str, levels: int, norm: str) -> None:
        self.c = all_kernels()[0].c
        self.gradient = np.tile(values, ROWS)
        self.out = np.empty((ROWS, values.size), np.float32)
        self.how = {"codec": codec, "levels": levels, "norm": norm, "bucket_size": values.size, "seed": 42}

    def draw(self, step: int) -> Array:
        n = self.gradient.size
        spec = make_spec(n, step=step, **self.how)
        size, bad = ctypes.c_uint64(), ctypes.c_uint32()
        assert self.c.qsgd_frame_bytes(ctypes.byref(spec), ctypes.byref(size)) == native.OK
        frame = np.empty(size.value, np.uint8)
        where = native.Expectation(n, spec.tensor, step, spec.dtype, spec.rank)
        at, to = frame.ctypes.data, self.out.ctypes.data
        assert self.c.qsgd_encode(ctypes.byref(spec), self.gradient.ctypes.data, at, size.value, 2, size) == native.OK
        args = (at, size.value, 1, ctypes.byref(where), 1.0, to, 2, ctypes.byref(bad))
        assert self.c.qsgd_decode_sum(*args) == native.OK
        return self.out


@pytest.mark.parametrize(
    ("coder", "norm", "name"), CODINGS, ids=lambda x: "-".join(map(str, x)) if isinstance(x, tuple) else x
)
def test_distribution(coder: tuple[str, int], norm: str, name: str) -> None:
    values, levels = VECTORS[name], coder[1]
    scale, low, chances = probabilities(values, levels, norm)
    grid = scale / levels
    exact = values.astype(np.float64)
    # What the format promises is what QSGD says, but for the rounding of x to float32 and T to an integer.
    assert np.abs(low + chances / ONE - exact / grid).max() <= levels * 2.0**-22 + 2.0**-24
    assert low.min() >= -levels
    assert (low + (chances > 0)).max() <= levels
    certain = (exact == 0) | (np.abs(exact) == scale)
    assert (chances[certain] == 0).all()

    sampler = Sampler(values, *coder, norm)
    middle = ((low + 0.5) * grid).astype(np.float32)
    ups = np.zeros(WIDTH, np.int64)
    for step in range(STEPS):
        drawn = sampler.draw(step)
        ups += np.count_nonzero(drawn > middle, axis=0)
        assert (drawn.min(axis=0) >= (low - 0.001) * grid).all()
        assert (drawn.max(axis=0) <= (low + (ups > 0) + 0.001) * grid).all()
        if step == 0:
            errors = (drawn - values) / np.float64(grid)
            squared_error = float(np.vdot(errors, errors)) / ROWS
            squared_sum = float(np.square(errors.sum(axis=1)).mean())
    assert not drawn[:, exact == 0].any()

    tails = [two_sided_tail(int(k), DRAWS, int(chance) / ONE) for k, chance in zip(ups, chances)]
    assert min(tails) > 1e-9, (int(np.argmin(tails)), ups[np.argmin(tails)], chances[np.argmin(tails)] / ONE)
    assert (ups[certain] == 0).all()
    variance = float((chances / ONE * (1 - chances / ONE)).sum())
    assert squared_error == pytest.approx(variance, rel=0.02, abs=1e-12)
    assert squared_sum == pytest.approx(
        variance, rel=0.02, abs=1e-9
    )  # and so no two elements of a bucket are correlated


# ---- independence ----

CHANCES = (0.5, 0.25, 0.1, 1 / 64)
BASE = {"seed": 7, "rank": 3, "tensor": 5, "step": 9}
OTHERS = [
    {"rank": 4}, {"rank": 2}, {"rank": 0}, {"tensor": 6}, {"tensor": 4}, {"tensor": 2**31 + 5},
    {"step": 10}, {"step": 8}, {"step": 2**31 + 9}, {"seed": 8}, {"seed": 6}, {"seed": 7 + 2**32}, {"seed": 7 + 2**63},
    {"tensor": 9, "step": 5}, {"seed": 3, "rank": 7}, {"rank": 4, "step": 10}, {"rank": 4, "tensor": 4},
]  # fmt: skip
LAGS = [*range(1, 18), 31, 32, 33, 48, 64, 80, 128, 255, 256, 257, 511, 512, 513, 2560, 4096, 2**16, 2**19]


def centered(p: float, **where: int) -> Array:
    """For each of 2^20 elements that are rounded up with probability p: (1 or 0) - p, by its standard deviation."""
    values = np.full(2**20, p, np.float32)
    values[::512] = 1  # sets the scale, and is certain
    kernels = all_kernels()[0]
    frame = kernels.encode(values, levels=1, bucket_size=512, **where)
    at = {"tensor": where["tensor"], "step": where["step"], "first_rank": where["rank"]}
    up = kernels.decode_sum([frame], count=values.size, **at)
    result = (up - p) / math.sqrt(p * (1 - p))
    result[::512] = 0
    return result


def deviations(products: Array) -> float:
    """How many standard deviations the sum of products of independent variables of variance 1 is off zero."""
    return abs(float(products.sum(dtype=np.float64))) / math.sqrt(np.count_nonzero(products))


@pytest.mark.parametrize("p", CHANCES)
def test_streams_are_uncorrelated(p: float) -> None:
    base = centered(p, **BASE)
    assert deviations(base) < 5
    for other in OTHERS:
        assert deviations(base * centered(p, **{**BASE, **other})) < 5, other


@pytest.mark.parametrize("p", CHANCES)
def test_neighbours_are_uncorrelated(p: float) -> None:
    base = centered(p, **BASE)
    for lag in LAGS:
        assert deviations(base[:-lag] * base[lag:]) < 5, lag


@pytest.mark.parametrize("p", CHANCES)
def test_elements_that_share_a_word_are_uncorrelated(p: float) -> None:
    """Eight rows draw from one word of the generator: pairs, triples, fours, and where they are common enough all."""
    rows = centered(p, **BASE).reshape(-1, 8, 16)  # words, rows, lanes
    for size in range(2, 9 if p == 0.5 else 5):
        for chosen in itertools.combinations(range(8), size):
            assert deviations(rows[:, chosen].prod(axis=1)) < 5, chosen


@pytest.mark.parametrize(("power", "low", "high"), [(8, 0.999, 1.001), (12, 0.98, 1.02), (14, 0.9, 1.2), (16, 1, 2)])
def test_rare_events_that_share_a_word_are_as_rare_together_as_independent_ones(
    power: int, low: float, high: float
) -> None:
    """Of all 2^32 words, those of which two elements are below 2^-power, beside the number expected."""
    below = np.arange(2 ** (32 - power), dtype=np.uint32)
    for ratio in ref.MULTIPLIERS[1:]:  # of two elements' multipliers; w times the first is any number
        together = np.count_nonzero(below * ratio < below.size) / 2 ** (32 - 2 * power)
        assert low <= together <= high, (ratio, together)
