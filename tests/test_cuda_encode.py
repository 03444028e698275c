"""Frames that the CUDA kernels make: the bytes of the CPU's kernels, which are the reference's."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import numpy as np
import pytest
import reference as ref
from cuda_support import Buffer, cuda_kernels
from support import DTYPES, FIXED_CODERS, GUARD_BYTE, KINDS, NORMS, all_kernels, make_input, make_spec
from test_kernels_bytes import at, first_difference

from hvd_qsgd import native
from hvd_qsgd.native_cuda import Draw

LENGTHS = (0, 1, 15, 16, 17, 79, 80, 81, 511, 512, 513, 5000)
BUCKETS = (1, 16, 100, 512, 1024, 4096, 5120, None)
SOME = 5  # of so many cases one is tried: the next turn's are others


def compare(kind: str, n: int, offset: int = 0, **how: Any) -> None:
    array = make_input(kind, n, how["dtype"])
    expected = all_kernels()[0].encode(array, **how)
    frame = cuda_kernels().encode(array, offset=offset, **how)
    assert frame == expected, (kind, n, how, first_difference(frame, expected), len(frame))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("codec", "levels"), FIXED_CODERS)
def test_bytes(codec: str, levels: int, norm: str) -> None:
    """A sample of the product of dtype, bucket size and length, inputs in turn."""
    everything = itertools.product(DTYPES, BUCKETS, LENGTHS)
    for k, (dtype, bucket_size, n) in enumerate(everything):
        if (k + levels) % SOME == 0:
            how = {"codec": codec, "levels": levels, "bucket_size": bucket_size, "norm": norm, "dtype": dtype}
            compare(KINDS[k // SOME % len(KINDS)], n, k % 4, squared_norm=k % 2 == 1, **how, **at(k))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("codec", ["packed", "ternary"])
def test_several_turns_of_every_block(codec: str, norm: str) -> None:
    for k, bucket_size in enumerate((16, 512, 1024, 2048, 4096, 8192, 70001)):
        how = {"codec": codec, "levels": 1 if codec == "ternary" else 5, "bucket_size": bucket_size, "norm": norm}
        compare(KINDS[k % len(KINDS)], 70001, squared_norm=True, dtype=DTYPES[k % 3], **how, **at(k))


def test_trees_of_several_levels() -> None:
    """More than 1024 blocks of a bucket, and more than 1024 buckets."""
    for bucket_size, n in ((None, 4096 * 1100 + 5), (5000, 5000 * 3 + 1), (1, 1500)):
        for norm in NORMS:
            compare("mixed", n, levels=7, bucket_size=bucket_size, norm=norm, dtype="bfloat16", squared_norm=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_input(kind: str, dtype: str) -> None:
    """With both norms, and scales found with and apart from the codes; against the reference itself."""
    for norm, bucket_size in itertools.product(NORMS, (512, 100)):
        how = {"levels": 7, "bucket_size": bucket_size, "norm": norm, "dtype": dtype, **at(bucket_size)}
        array = make_input(kind, 1300, dtype)
        assert cuda_kernels().encode(array, **how) == ref.encode(array, **how)


def test_seed_and_step_from_memory() -> None:
    array = make_input("gaussian", 700)
    how = {"levels": 7, "bucket_size": 512, "tensor": 5, "rank": 2}
    frame = cuda_kernels().encode(array, draw=Draw(2**63 + 9, 77, 0), seed=1, step=1, **how)
    assert frame == ref.encode(array, seed=2**63 + 9, step=77, **how)
    assert frame != ref.encode(array, seed=1, step=1, **how)


def test_every_half_is_read() -> None:
    for dtype in ("float16", "bfloat16"):
        array = np.arange(2**16, dtype=np.uint16).view(np.float16 if dtype == "float16" else np.uint16)
        how = {"levels": 127, "bucket_size": 16, "dtype": dtype}
        assert cuda_kernels().encode(array, **how) == all_kernels()[0].encode(array, **how)


@pytest.mark.parametrize(("sign", "step"), [(1, 382), (-1, 773)])
def test_codes_are_limited_to_the_levels(sign: int, step: int) -> None:
    """Of a scale that times its inverse step is more than s levels, where a random number is almost 1 or 0."""
    scale, top = np.float32(1.171875), np.float32(127 * 2**24)
    inverse = top / scale
    assert scale * inverse > top  # docs/wire_format.md, section 5
    array = np.full(600, sign * scale)
    unlimited = np.int64(sign * scale * inverse) + ref.random_bits(array.size, 0, 0, 0, step) >> 24
    assert np.abs(unlimited).max() == 128
    for kernels in (*all_kernels(), cuda_kernels()):
        frame = kernels.encode(array, levels=127, bucket_size=512, step=step)
        assert frame == ref.encode(array, levels=127, bucket_size=512, step=step), kernels.isa


def test_wrong_arguments() -> None:
    c, spec, room = cuda_kernels().c, make_spec(600, levels=7, bucket_size=512), ctypes.c_uint64()
    coded, impossible = make_spec(600, codec="rans", levels=7, bucket_size=512), make_spec(600, levels=0, bucket_size=1)
    size = native.frame_bytes(spec)
    assert c.qsgd_cuda_encode_scratch(spec, room) == native.OK
    assert [c.qsgd_cuda_encode_scratch(*wrong) for wrong in ((None, room), (spec, None), (impossible, room))] == [1] * 3
    gradient, frame, work = Buffer(np.ones(600, np.float32).tobytes()), Buffer(size), Buffer(room.value)
    right = {
        "spec": spec, "gradient": gradient.address, "frame": frame.address, "capacity": size, "draw": None,
        "scratch": work.address, "room": room.value,
    }  # fmt: skip

    def encode(**wrong: Any) -> int:
        return int(c.qsgd_cuda_encode(*{**right, **wrong}.values(), None))

    for name, value in (
        ("spec", None), ("spec", coded), ("spec", impossible), ("gradient", None), ("gradient", gradient.address + 2),
        ("frame", None), ("frame", frame.address + 4), ("draw", frame.address + 4), ("scratch", None),
        ("scratch", work.address + 4), ("room", room.value - 1),
    ):  # fmt: skip
        assert encode(**{name: value}) == 1, (name, value)
    assert encode(capacity=size - 1) == 2
    assert frame.read() == bytes([GUARD_BYTE]) * size  # nothing was done
    assert encode() == native.OK
    assert frame.read() == ref.encode(np.ones(600, np.float32), levels=7, bucket_size=512)
