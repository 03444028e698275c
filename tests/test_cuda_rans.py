"""Frames of codec rans that the CUDA kernels make: the bytes of the CPU's kernels, which are the reference's."""

from __future__ import annotations

import ctypes
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import reference as ref
from cuda_support import Buffer, cuda_kernels
from support import DTYPES, KINDS, NORMS, Array, all_kernels, make_input, make_spec
from test_kernels_bytes import at, first_difference
from test_rans import MODES, matrix

from hvd_qsgd import native
from hvd_qsgd.native_cuda import Draw

LEVELS = (1, 7, 20, 127, 128, 900, 32767)


def compare(array: Array, offset: int = 0, **how: Any) -> bytes:
    how = {"codec": "rans", **how}
    expected = all_kernels()[0].encode(array, **how)
    frame = cuda_kernels().encode(array, offset=offset, **how)
    assert frame == expected, (array.size, how, first_difference(frame, expected), len(frame), len(expected))
    return frame


@pytest.mark.parametrize("levels", LEVELS)
def test_bytes(levels: int) -> None:
    """Of short tensors, whose sample is complete."""
    cases = itertools.product((0, 1, 15, 17, 511, 512, 513, 5000), (16, 100, 512, None))
    for k, (n, bucket_size) in enumerate(cases):
        how = {"levels": levels, "bucket_size": bucket_size, "norm": NORMS[k // 3 % 2], "dtype": DTYPES[k % 3]}
        array = make_input(KINDS[(k + levels) % len(KINDS)], n, how["dtype"])
        compare(array, k % 4, squared_norm=k % 2 == 1, **how, **at(k))


# Of 127 and 128 units, 255, 256 and 257: one stream or four, one stretch or two.
@pytest.mark.parametrize("n", [65_000, 65_025, 131_071, 131_073, 400_000])
def test_streams_and_stretches(n: int) -> None:
    for k, kind in enumerate(("gaussian", "sparse", "mixed", "zeros")):
        levels, bucket_size = ((7, 512), (300, None), (32767, 65536), (20, 1000))[(k + n) % 4]
        compare(make_input(kind, n), levels=levels, bucket_size=bucket_size, norm=NORMS[k % 2])


def test_matrices() -> None:
    """All modes are met, with and without escapes and low bits, where rows begin in the middle of a half-warp."""
    modes: Counter[int] = Counter()
    shapes = ((150, 784), (1000, 16), (700, 17), (64, 1000))
    for (rows, columns), spread, levels in itertools.product(shapes, (0.0, 1.0, 2.5), (7, 32767)):
        bucket_size, norm = (512, "max") if levels == 7 else (None, "l2")
        frame = compare(
            matrix(rows, columns, spread), levels=levels, bucket_size=bucket_size, norm=norm, columns=columns
        )
        modes[ref.payload_in(frame)[0]] += 1
    assert set(modes) == set(MODES)


def test_seed_and_step_from_memory() -> None:
    array = make_input("gaussian", 700)
    how = {"codec": "rans", "levels": 7, "bucket_size": 512, "tensor": 5, "rank": 2}
    frame = cuda_kernels().encode(array, draw=Draw(2**63 + 9, 77, 0), seed=1, step=1, **how)
    assert frame == ref.encode(array, seed=2**63 + 9, step=77, **how)


def test_wrong_arguments() -> None:
    c = cuda_kernels().c
    spec, room = make_spec(600, codec="rans", levels=7, bucket_size=512), ctypes.c_uint64()
    assert c.qsgd_cuda_encode_scratch(spec, room) == native.OK
    work, gradient, out = Buffer(room.value), Buffer(np.zeros(600, np.float32).tobytes()), Buffer(4096)
    packed = make_spec(600, levels=7, bucket_size=512)

    def begin(**wrong: Any) -> int:
        right = {
            "spec": spec, "gradient": gradient.address, "draw": None, "scratch": work.address, "room": room.value,
            "found": out.address,
        }  # fmt: skip
        return int(c.qsgd_cuda_encode_begin(*{**right, **wrong}.values(), None))

    def end(**wrong: Any) -> int:
        right = {
            "spec": spec, "frame": out.address, "size": 4096, "scratch": work.address, "room": room.value
        }  # fmt: skip
        return int(c.qsgd_cuda_encode_end(*{**right, **wrong}.values(), None))

    assert begin() == end() == 0
    for name, value in (
        ("spec", None), ("spec", packed), ("gradient", None), ("gradient", gradient.address + 2), ("draw", 4),
        ("scratch", None), ("scratch", work.address + 4), ("room", room.value - 1), ("found", None),
        ("found", out.address + 4),
    ):  # fmt: skip
        assert begin(**{name: value}) == 1, (name, value)
    for name, value in (
        ("spec", None), ("spec", packed), ("frame", None), ("frame", out.address + 4), ("scratch", None),
        ("scratch", work.address + 4), ("room", room.value - 1), ("size", 4088),
    ):  # fmt: skip
        assert end(**{name: value}) == 1, (name, value)
    assert end(size=96) == 2
