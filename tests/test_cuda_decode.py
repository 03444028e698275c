"""Sums that the CUDA kernels make: to the last bit the reference's, and the CPU kernels'; what they refuse."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import reference as ref
import test_frame_checks as checks
from cuda_support import cuda_kernels
from support import (
    BUCKETS,
    DTYPES,
    FIXED_CODERS,
    KINDS,
    NORMS,
    RefusedError,
    all_kernels,
    forge,
    make_input,
    reseal,
    same_bits,
)
from test_kernels_bytes import FACTORS, at, expectation

from hvd_qsgd.native_cuda import Draw


def check_sum(codings: list[dict[str, Any]], n: int, dtype: str, factor: float, seed: int, offset: int = 0) -> None:
    """Of frames that the CPU makes; the CPU's sum is the reference's (test_kernels_bytes.py)."""
    cpu = all_kernels()[0]
    where = at(seed)
    frames = [
        cpu.encode(
            make_input(KINDS[(seed + rank) % len(KINDS)], n, dtype, seed=rank),
            dtype=dtype,
            **coding,
            **{**where, "rank": rank, "seed": rank + seed},
        )
        for rank, coding in enumerate(codings)
    ]
    expected = cpu.decode_sum(frames, factor=factor, **expectation(frames, dtype))
    values = cuda_kernels().decode_sum(frames, factor=factor, offset=offset, **expectation(frames, dtype))
    assert same_bits(values, expected), (n, dtype, factor, codings)


@pytest.mark.parametrize(("codec", "levels"), FIXED_CODERS)
def test_sum_of_frames_of_one_kind(codec: str, levels: int) -> None:
    cases = itertools.product((1, 2, 5), (1, 16, 64, 100, 512, 4096, None), (0, 1, 17, 513, 5000, 5121))
    for k, (ranks, bucket_size, n) in enumerate(cases):
        if (k + levels) % 3 == 0:
            same = {"codec": codec, "levels": levels, "bucket_size": bucket_size}
            codings = [{**same, "norm": NORMS[(k + r) % 2]} for r in range(ranks)]
            check_sum(codings, n, DTYPES[k // 3 % 3], FACTORS[k % len(FACTORS)], k, offset=k % 4)
