"""Frames of the Elias codecs that the CUDA kernels make: the bytes of the CPU's kernels, which are the reference's."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import reference as ref
import reference_elias as elias
from cuda_support import cuda_kernels
from support import DTYPES, KINDS, NORMS, Array, all_kernels, make_input
from test_kernels_bytes import at, first_difference
from test_kernels_elias import CODECS, CODERS

from hvd_qsgd.native_cuda import Draw


def compare(array: Array, offset: int = 0, **how: Any) -> bytes:
    expected = all_kernels()[0].encode(array, **how)
    frame = cuda_kernels().encode(array, offset=offset, **how)
    assert frame == expected, (array.size, how, first_difference(frame, expected), len(frame), len(expected))
    return frame


@pytest.mark.parametrize(("codec", "levels"), CODERS)
def test_bytes(codec: str, levels: int) -> None:
    cases = itertools.product((0, 1, 31, 33, 511, 512, 513, 5000), (16, 100, 512, None))
    for k, (n, bucket_size) in enumerate(cases):
        how = {"codec": codec, "levels": levels, "bucket_size": bucket_size, "norm": NORMS[k // 3 % 2]}
        array = make_input(KINDS[(k + levels) % len(KINDS)], n, DTYPES[k % 3])
        compare(array, k % 4, dtype=DTYPES[k % 3], squared_norm=k % 2 == 1, **how, **at(k))


@pytest.mark.parametrize("kind", KINDS)
def test_every_input(kind: str) -> None:
    """NaN and infinity, too; against the reference itself."""
    for codec, norm, bucket_size in itertools.product(CODECS, NORMS, (512, None)):
        how = {"codec": codec, "levels": 7, "bucket_size": bucket_size, "norm": norm}
        array = make_input(kind, 1300)
        assert cuda_kernels().encode(array, **how) == ref.encode(array, **how)


@pytest.mark.parametrize(("codec", "levels"), CODERS[1::2])
def test_codes_of_all_magnitudes(codec: str, levels: int) -> None:
    """With a scale for all, as large as the levels, codes are the values; the longest strings, too."""
    rng = np.random.default_rng(levels)
    for n, density in itertools.product((512, 1300), (0.002, 0.05, 0.3, 0.9, 1)):
        magnitudes = np.exp2(rng.uniform(0, np.log2(levels + 0.9), n)).astype(np.int64)
        codes = np.where(rng.random(n) < density, magnitudes * rng.choice([-1, 1], n), 0)
        codes[rng.integers(n)] = levels
        compare(codes.astype(np.float32), codec=codec, levels=levels, bucket_size=None)
    compare(np.full(1300, -1, np.float32), codec=codec, levels=levels, bucket_size=512)


# One stretch or more, whole ones and others; several turns of every block of threads.
@pytest.mark.parametrize("n", [131_071, 131_073, 400_000])
def test_stretches(n: int) -> None:
    for k, (codec, levels) in enumerate(itertools.product(CODECS, (7, 300))):
        compare(make_input(KINDS[k], n), codec=codec, levels=levels, bucket_size=512)


@pytest.mark.parametrize(
    ("levels", "n", "block"),
    [(1, 2**18 + 700, 2**15), (1, 3_000, 2048), (3, 150_000, 2**13), (1, 4_300_000, 2**17)],
)
def test_large_blocks(levels: int, n: int, block: int) -> None:
    """Of several units; of a stretch or less. Few nonzeros, none, more than are expected."""
    how = {"codec": "elias-sparse", "levels": levels, "norm": "l2", "bucket_size": None}
    assert elias.block_size(True, levels, n, n, "l2") == block
    sparse = np.zeros(n, np.float32)
    sparse[[0, n - 1]] = 1, -1
    for array in (make_input("gaussian", n), make_input("sparse", n), sparse)[: 3 if n < 2**20 else 1]:
        compare(array, **how)


def test_seed_and_step_from_memory() -> None:
    array = make_input("gaussian", 700)
    for codec in CODECS:
        how = {"codec": codec, "levels": 7, "bucket_size": 512, "tensor": 5, "rank": 2}
        frame = cuda_kernels().encode(array, draw=Draw(2**63 + 9, 77, 0), seed=1, step=1, **how)
        assert frame == ref.encode(array, seed=2**63 + 9, step=77, **how)
