"""1-bit SGD's codec: what it is, its checks, and long, odd and hostile frames; `test_kernels_bytes.py` has the rest."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import pytest
import reference as ref
from support import KINDS, RefusedError, all_kernels, forge, make_input, make_spec, reseal, same_bits

import hvd_qsgd
from hvd_qsgd import QSGDError, native
from hvd_qsgd.config import Quantization

ONE: dict[str, Any] = {"codec": "onebit", "levels": 1}


def encode(values: Any, bucket_size: int | None = None) -> bytes:
    return hvd_qsgd.encode(np.array(values, np.float32), codec="onebit", bucket_size=bucket_size)


# ---- what it is ----


def test_signs_and_the_means_of_either_side() -> None:
    values = [1.0, -2.0, 3.0, -0.0, -4.0, 0.0, 1e-45]
    above, below = (1 + 3 + 0 + 0 + 1e-45) / 5, (2 + 4) / 2
    frame = encode(values)
    assert np.frombuffer(frame, "<f4", 2, 96).tolist() == [np.float32(above), np.float32(below)]
    expected = [below * -1 if v < 0 else above for v in values]
    assert hvd_qsgd.decode(frame).tolist() == np.array(expected, np.float32).tolist()
    words = np.frombuffer(frame, "<u4", 16, 112)
    assert words.tolist() == [v < 0 for v in values] + [0] * 9  # row 0 is bit 0 of each lane's word
    assert len(frame) == 96 + 16 + 64


@pytest.mark.parametrize("values", [[2.0, 3.0], [-2.0, -3.0], [-0.0], [0.0, 0.0], [-1e-45], []])
def test_a_side_without_elements(values: list[float]) -> None:
    decoded = hvd_qsgd.decode(encode(values))
    mean = np.mean(values, dtype=np.float64).astype(np.float32) if values else 0
    assert decoded.tolist() == [mean] * len(values)
    assert not (values and mean == 0 and np.signbit(decoded).any())


def test_large_values_have_finite_means() -> None:
    largest = np.finfo(np.float32).max
    for n in (1, 17, 5000):
        assert set(hvd_qsgd.decode(encode([largest, -largest] * n))) == {largest, -largest}


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("n", "bucket_size"), [(700, 100), (3000, 512), (10_000, 2560), (70_000, 65_536)])
def test_what_is_not_finite_makes_its_bucket_nan(bad: float, n: int, bucket_size: int) -> None:
    values = make_input("gaussian", n).copy()
    place = bucket_size + 3
    values[place] = bad
    decoded = hvd_qsgd.decode(encode(values, bucket_size))
    assert np.isnan(decoded).nonzero()[0].tolist() == list(range(bucket_size, min(2 * bucket_size, n)))
    assert encode(values, bucket_size) == ref.encode(values, **ONE, bucket_size=bucket_size)


def test_the_mean_of_values_is_kept() -> None:
    """The quantizer is biased, but its sum over a bucket is the bucket's."""
    values = make_input("gaussian", 5120)
    decoded = hvd_qsgd.decode(encode(values, 512)).reshape(-1, 512).astype(np.float64)
    assert np.allclose(decoded.sum(axis=1), [math.fsum(row) for row in values.reshape(-1, 512)], rtol=0, atol=1e-4)


# ---- frames of every size ----


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    ("bucket_size", "dtype"),
    [(512, "float32"), (1000, "bfloat16"), (65_536, "float32"), (None, "float16"), (3, "float32"), (2**21, "bfloat16")],
)
def test_large(bucket_size: int | None, dtype: str, threads: int) -> None:
    n = 2**21 + 700
    array = make_input("special" if bucket_size == 1000 else "gaussian", n, dtype)
    how = {**ONE, "bucket_size": bucket_size, "dtype": dtype, "squared_norm": True}
    frames = [ref.encode(array, **how, rank=rank) for rank in range(2)]
    expected = ref.decode_sum(frames, count=n, dtype=dtype, tensor=0, step=0, factor=0.5)
    for kernels in all_kernels():
        assert kernels.encode(array, threads=threads, **how) == frames[0], kernels.isa
        decoded = kernels.decode_sum(frames, count=n, dtype=dtype, factor=0.5, threads=threads)
        assert same_bits(decoded, expected), kernels.isa


def test_any_bits_and_scales_decode_as_the_page_says() -> None:
    """Also bits past the end, and one NaN of two."""
    rng = np.random.default_rng(1)
    for n, dtype, bucket_size in ((2561, "float32", 512), (5120, "float32", 100), (600, "bfloat16", 512)):
        frames = []
        for rank in range(2):
            frame = ref.encode(make_input("gaussian", n, dtype), **ONE, bucket_size=bucket_size, dtype=dtype, rank=rank)
            scales, start, _ = ref.layout(6, 1, n, bucket_size)
            changed = np.frombuffer(frame, "<f4", scales, 96).copy()
            changed[rng.integers(0, scales, 3)] = [np.nan, 0, 1e-45]
            head = frame[:96] + changed.tobytes() + frame[96 + 4 * scales : start]
            frames.append(reseal(head + rng.bytes(len(frame) - start)))
        for sent in (frames[:1], frames):
            expected = ref.decode_sum(sent, count=n, dtype=dtype, tensor=0, step=0)
            for kernels in all_kernels():
                assert same_bits(kernels.decode_sum(sent, count=n, dtype=dtype), expected), (kernels.isa, n)


def test_headers_that_no_encoder_writes() -> None:
    frame = ref.encode(make_input("gaussian", 600), **ONE, bucket_size=100)
    assert hvd_qsgd.decode(frame).size == 600
    header = ref.parse(frame)
    wrong = {"norm": (1, 2, 3), "levels": (0, 2, 127), "flags": (2, 3, 4), "bucket_size": (99, 200), "count": (1, 1025)}
    wrong |= {field: [getattr(header, field) + k for k in (-16, 16)] for field in ("coded_bytes", "frame_bytes")}
    for field, values in wrong.items():
        for value in values:
            forged = forge(frame + bytes(64), **{field: value})
            with pytest.raises(QSGDError):
                hvd_qsgd.decode(forged)
            with pytest.raises(ref.FrameError):
                ref.check_itself(forged[: len(frame)], 0)
            for kernels in all_kernels():
                with pytest.raises(RefusedError):
                    kernels.decode_sum([forged], count=600)
    other = ref.encode(make_input("gaussian", 600), levels=1, bucket_size=100)
    with pytest.raises(QSGDError, match="norm"):
        hvd_qsgd.decode(forge(other, norm=0))


# ---- arguments ----


@pytest.mark.parametrize(
    "given", [{"bits": 4}, {"levels": 7}, {"variance": 0.1}, {"norm": "max"}, {"dither": "subtractive"}], ids=str
)
def test_what_does_not_apply(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(QSGDError, match=rf"{name}=.* does not apply to codec='onebit'.*: leave {name} out"):
        Quantization.create(codec="onebit", **given)


def test_changing_to_it_and_back() -> None:
    start = Quantization.create(variance=0.1, bucket_size=64)
    onebit = start.changed(codec="onebit")
    assert onebit == Quantization(1, 64, "none", "onebit") == Quantization.create(codec="onebit", bucket_size=64)
    assert onebit.changed(bucket_size=None) == Quantization(1, None, "none", "onebit")
    assert onebit.changed(codec="packed", bits=3) == Quantization(3, 64, "max", "packed")
    with pytest.raises(QSGDError, match="norm='l2' does not apply"):
        onebit.changed(norm="l2")
    with pytest.raises(QSGDError, match="norm='none' is unknown"):
        Quantization.create(norm="none")


def test_no_levels_are_solved_for_it() -> None:
    values, levels = make_input("gaussian", 100), ctypes.c_uint32()
    spec = make_spec(100, **ONE, bucket_size=512)
    for kernels in all_kernels():
        status = kernels.c.qsgd_solve_levels(spec, values.ctypes.data, 0.1, 1, levels)
        assert status == 1


# ---- error feedback's kernels ----

CODINGS = [
    {"levels": 7, "bucket_size": 512}, {"levels": 3, "bucket_size": 100},
    {"codec": "ternary", "levels": 1, "bucket_size": 512},
    {"codec": "rans", "levels": 500, "bucket_size": None}, {"codec": "elias-sparse", "levels": 2, "bucket_size": 64},
    {"levels": 1, "bucket_size": 64, "subtractive": True}, {**ONE, "bucket_size": 512}, {**ONE, "bucket_size": 70},
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coding", CODINGS, ids=str)
def test_what_a_frame_leaves(coding: dict[str, Any], kind: str) -> None:
    for n, dtype, offset in ((1, "float32", 0), (6000, "bfloat16", 1), (2560, "float16", 4)):
        gradient, before = make_input(kind, n, dtype), make_input("gaussian", n) * np.float32(1e-3)
        with np.errstate(all="ignore"):
            total = ref.widen(gradient, dtype) + before
            frame = ref.encode(total, **coding, rank=3, tensor=4, step=5)
            rest = total - ref.dequantize(frame)
        expected = np.where(np.isfinite(rest), rest, np.float32(0))
        for kernels in all_kernels():
            memory = np.zeros(4 * n + 64, np.uint8)
            residual = memory[offset : offset + 4 * n]
            residual[:] = before.view(np.uint8)
            given = gradient.tobytes()
            where = residual.ctypes.data
            assert kernels.c.qsgd_add_gradient(given, ref.DTYPES[dtype], n, where, 2) == native.OK
            after = residual.view(np.uint8).tobytes()
            assert np.array_equal(np.frombuffer(after, np.float32), total, equal_nan=True), kernels.isa
            own = native.Expectation(n, 4, 5, 1, 3)
            assert kernels.c.qsgd_subtract_frame(frame, len(frame), ctypes.byref(own), where, 2) == native.OK
            assert same_bits(np.frombuffer(residual.tobytes(), np.float32), expected), (kernels.isa, n)
            assert not memory[offset + 4 * n :].any()


def test_a_frame_that_is_not_its_own_is_refused() -> None:
    frame = ref.encode(make_input("gaussian", 100), **ONE, bucket_size=512)
    residual = np.zeros(100, np.float32)
    for kernels in all_kernels():
        subtract, where = kernels.c.qsgd_subtract_frame, residual.ctypes.data
        for count, size, status in ((100, len(frame), 0), (99, len(frame), 30), (100, len(frame) - 1, 10)):
            expected = native.Expectation(count, 0, 0, 1, 0)
            assert subtract(frame, size, ctypes.byref(expected), where, 1) == status
        assert kernels.c.qsgd_add_gradient(frame, 4, 10, where, 1) == 1
