"""QSGD's theorems about lengths (Alistarh et al. 2017, theorems 3.2 and 3.3 and the lemmas behind them), on real codes.

The theorems leave out factors 1 + o(1). Where a bound fails without them, the test says so and holds the codes to one
with a constant: |Elias(k)| <= 1 + 2.5 log2(k) for every k.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import reference as ref
import reference_elias as elias

Array = ref.Array
BY_DIGITS = np.array([0, *(len(elias.elias(2**m)) for m in range(24))])
VECTORS = ("gaussian", "constant", "two magnitudes", "heavy tail", "one")
SIZES = (256, 1024, 4096, 16384)
DRAWS = 12


def vector(kind: str, n: int) -> Array:
    rng = np.random.default_rng([n, VECTORS.index(kind)])
    gaussian = rng.standard_normal(n)
    return {
        "gaussian": gaussian,
        "constant": np.ones(n),
        "two magnitudes": np.where(np.arange(n) < math.isqrt(n), 1, 0.01),
        "heavy tail": gaussian * np.exp(2 * rng.standard_normal(n)),
        "one": np.arange(n) == n // 3,
    }[kind].astype(np.float32)


def codes_of(kind: str, n: int, s: int, draws: int = DRAWS) -> list[Array]:
    """Q_s of the vector, in integers, some times."""
    values = vector(kind, n)
    scales = ref.scales_of(values, n, "l2")
    return [ref.quantize(values, scales, n, s, ref.random_bits(n, seed, 0, 0, 0)) for seed in range(draws)]


def total_length(numbers: Array) -> int:
    """Of their Elias codes; numbers of as many binary digits have codes of one length."""
    return int(BY_DIGITS[np.frexp(numbers)[1]].sum())


def dense_bits(codes: Array) -> int:
    """The string of Theorem 3.3, without the scale."""
    return total_length(abs(codes) + 1) + np.count_nonzero(codes)


def sparse_bits(codes: Array) -> int:
    """The string of Theorem 3.2, without the scale."""
    where = np.flatnonzero(codes)
    gaps = np.diff(where, prepend=-1)
    return len(elias.elias(where.size + 1)) + total_length(gaps) + where.size + total_length(abs(codes[where]))


class Estimate(NamedTuple):
    mean: float
    error: float  # of the mean, four standard deviations

    @classmethod
    def of(cls, values: list[int]) -> Estimate:
        return cls(float(np.mean(values)), 4 * float(np.std(values, ddof=1)) / math.sqrt(len(values)))

    def is_within(self, bound: float) -> bool:
        return self.mean - self.error <= bound


def nonzeros_bound(n: int, s: int) -> float:
    return s * (s + math.sqrt(n))


def sparse_bound(n: int, s: int) -> float:
    """Theorem 3.2 for s <= sqrt(n) / 2, with what bounds the nonzeros in its proof."""
    k = nonzeros_bound(n, s)
    return (3 + 1.5 * math.log2(2 * (s * s + n) / k)) * k


def mean_square(n: int, s: int) -> float:
    """Lemma 3.1: of a code."""
    return (s * s + min(n, s * math.sqrt(n))) / n


def dense_bound(n: int, s: int) -> float:
    """Theorem 3.3: at s = sqrt(n) this is 3.29 n. The paper's 2.8 n is without the 1 / 2 that comes from
    (1 + x)^2 <= 2 (1 + x^2)."""
    return ((math.log2(1 + mean_square(n, s)) + 1) / 2 + 2) * n


def dense_bound_with_constant(n: int, s: int) -> float:
    """The same for lengths up to 1 + 2.5 log2(k), with E log2(1 + |code|) <= log2(2 (1 + E code^2)) / 2."""
    return (1 + 2.5 * (math.log2(1 + mean_square(n, s)) + 1) / 2 + min(1, nonzeros_bound(n, s) / n)) * n


def levels_for(n: int) -> list[int]:
    root = math.isqrt(n)
    return sorted({1, 2, 4, 7, math.isqrt(root), root // 4, root // 2, root, 2 * root})


def test_lengths_of_numbers() -> None:
    """Lemma A.1: |Elias(k)| = (1 + o(1)) log2(k) + 1."""
    for k in (*range(1, 3000), *(2**m for m in range(200))):
        assert len(elias.elias(k)) <= 1 + 2.5 * math.log2(k) + 1e-9
        assert total_length(np.array([min(k, 2**23)])) == len(elias.elias(min(k, 2**23)))
    assert len(elias.elias(4)) == 1 + 2.5 * 2  # no smaller constant will do
    ratios = [(len(elias.elias(2 ** (2**j))) - 1) / 2**j for j in (1, 4, 7, 10, 13, 16)]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] < 1.001


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", VECTORS)
def test_nonzeros_and_squares(kind: str, n: int) -> None:
    """Lemma 3.1 (E code^2), and E |Q|_0 <= s (s + sqrt(n))."""
    for s in levels_for(n):
        codes = codes_of(kind, n, s)
        assert Estimate.of([np.count_nonzero(c) for c in codes]).is_within(nonzeros_bound(n, s)), s
        assert Estimate.of([int(np.square(c).sum()) for c in codes]).is_within(n * mean_square(n, s)), s


def test_the_printed_bound_of_nonzeros_is_wrong() -> None:
    """s^2 + sqrt(n): a Gaussian vector has more than twice as many."""
    found = Estimate.of([np.count_nonzero(c) for c in codes_of("gaussian", 16384, 8)])
    assert found.mean - found.error > 2 * (8**2 + math.sqrt(16384))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", VECTORS)
def test_sparse_lengths(kind: str, n: int) -> None:
    """Theorem 3.2, without any o(1)."""
    for s in levels_for(n):
        if s <= math.sqrt(n) / 2:
            assert Estimate.of([sparse_bits(c) for c in codes_of(kind, n, s)]).is_within(sparse_bound(n, s)), s


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", VECTORS)
def test_dense_lengths(kind: str, n: int) -> None:
    """Theorem 3.3: without its o(1) for s <= sqrt(n) / 2, with a constant in its place for all s."""
    for s in levels_for(n):
        found = Estimate.of([dense_bits(c) for c in codes_of(kind, n, s)])
        assert found.is_within(dense_bound_with_constant(n, s)), s
        assert found.is_within(dense_bound(n, s)) or s > math.sqrt(n) / 2, s


def test_at_sqrt_n_levels() -> None:
    """Where the paper says 2.8 n + 32 bits (section 3.2), Gaussian vectors need a little more, constant ones 4 n."""
    n, s = 4096, 64
    bits = {
        kind: [sum(map(length, codes_of(kind, n, s))) / DRAWS / n for length in (dense_bits, sparse_bits)]
        for kind in ("gaussian", "constant")
    }
    assert bits["gaussian"] == pytest.approx([2.94, 2.76], abs=0.02)
    assert bits["constant"] == pytest.approx([4.0, 3.0], abs=0.02)
    assert math.log2(3) / 2 + 2 == pytest.approx(2.8, abs=0.01)  # where 2.8 comes from


@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize("codec", ["elias-dense", "elias-sparse"])
def test_real_payloads(codec: str, kind: str) -> None:
    """A payload is the theorem's string, and for each block its length, at most seven bits of padding and, where it is
    sparse, its number of nonzeros: however few these are, little beside the theorem's bound."""
    sparse = codec == "elias-sparse"
    for n, s in ((2**14, 1), (2**18, 1), (2**20, 1), (2**18, 4), (2**14, 128), (2**14, 512)):
        how = {"codec": codec, "levels": s, "bucket_size": None, "norm": "l2"}
        frame = ref.encode(vector(kind, n), **how)
        codes, payload = ref.decode_codes(frame), ref.parse(frame).coded_bytes - ref.layout(4, s, n, n)[1]
        blocks = ref.ceil_div(n, elias.block_size(sparse, s, n, n, "l2"))
        string = sparse_bits(codes) if sparse else dense_bits(codes)
        assert 8 * payload <= string + 64 + blocks * (16 + 7 + sparse * 29)
        if sparse and s <= math.sqrt(n) / 2:
            assert 8 * payload <= 1.15 * sparse_bound(n, s) + 64
