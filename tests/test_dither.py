"""Subtractive dither: the same bytes and values as the reference, and an error that does not depend on the value."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import reference as ref
from support import (
    BUCKETS,
    DTYPES,
    KINDS,
    NORMS,
    Array,
    all_kernels,
    forge,
    make_input,
    make_spec,
    reseal,
    same_bits,
)
from test_variance import solve

import hvd_qsgd
from hvd_qsgd import QSGDError, native

Case = dict[str, Any]
CODERS = [("packed", 1), ("packed", 5), ("packed", 7), ("packed", 127), ("ternary", 1)]
PLACE: Case = {"tensor": 9, "step": 8, "seed": 2**64 - 1}


def expected_sum(frames: list[bytes], dtype: str = "float32") -> Array:
    with np.errstate(all="ignore"):
        return ref.decode_sum(frames, count=ref.parse(frames[0]).count, dtype=dtype, tensor=9, step=8)


def compare(frames: list[bytes], dtype: str = "float32", **call: Any) -> None:
    values = expected_sum(frames, dtype)
    for kernels in all_kernels():
        decoded = kernels.decode_sum(frames, count=values.size, dtype=dtype, tensor=9, step=8, **call)
        assert same_bits(decoded, values), (kernels.isa, ref.parse(frames[0]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_frames_and_values_are_the_references(kind: str, dtype: str) -> None:
    """The frame is the plain one with a flag; only the decoder does anything."""
    for (codec, levels), bucket_size, n in itertools.product(CODERS, BUCKETS, (0, 1, 81, 513, 6000)):
        array = make_input(kind, n, dtype)
        how: Case = {"codec": codec, "levels": levels, "bucket_size": bucket_size, "dtype": dtype, **PLACE}
        frame = ref.encode(array, **how, norm="l2", subtractive=True)
        plain = ref.encode(array, **how, norm="l2")
        assert forge(frame, flags=0) == plain
        for kernels in all_kernels():
            assert kernels.encode(array, **how, norm="l2", subtractive=True) == frame
        compare([frame], dtype, offset=n % 3)


def test_sums_of_all_sorts() -> None:
    """With other frames, of other seeds and buckets; many blocks, threads, and writing around the caches."""
    for n, threads in ((20_000, 1), (2**21 + 12345, 4)):
        hows: list[Case] = [
            {"codec": codec, "levels": levels, "bucket_size": bucket_size, "subtractive": subtractive, "seed": 3 * k}
            for k, ((codec, levels), bucket_size, subtractive) in enumerate([
                (("packed", 7), 512, True), (("ternary", 1), 512, True), (("packed", 7), 512, False),
                (("packed", 100), None, True), (("packed", 3), 100, True),
            ])
        ]  # fmt: skip
        frames = [
            ref.encode(make_input("gaussian", n, seed=k), **how, rank=k, tensor=9, step=8) for k, how in enumerate(hows)
        ]
        compare(frames, threads=threads)
        compare(frames[:1], threads=threads)


def test_beside_frames_of_a_variable_length() -> None:
    n, where = 300_000, {"tensor": 9, "step": 8}
    for codec in ("packed", "ternary"):
        frames = [
            hvd_qsgd.encode(make_input("gaussian", n), codec=codec, dither="subtractive", seed=5, **where),
            hvd_qsgd.encode(make_input("sparse", n), codec="rans", rank=1, **where),
            hvd_qsgd.encode(make_input("mixed", n), codec=codec, rank=2, **where),
        ]
        expected = sum((hvd_qsgd.decode(frame) for frame in frames[1:]), hvd_qsgd.decode(frames[0]))
        for kernels in all_kernels():
            assert same_bits(kernels.decode_sum(frames, count=n, **where), expected)


# ---- the error ----

DRAWS = 100_000
NUMBERS = np.array(
    [1, -1, 0, 0.5, 1 / 14, -1 / 14, 1 / 7, 0.999999, 1e-6, -0.3, 0.77, 2 / 7, -6 / 7, 0.123, -1e-30, 0.9]
)  # fmt: skip


@pytest.mark.parametrize(("codec", "levels"), [("packed", 7), ("packed", 1), ("ternary", 1), ("packed", 127)])
@pytest.mark.parametrize("norm", NORMS)
def test_the_error_is_uniform_whatever_the_value(norm: str, codec: str, levels: int) -> None:
    """Unbiased, of variance step^2 / 12, at both ends and at zero as well, and no two errors are correlated."""
    values = np.tile(NUMBERS, DRAWS).astype(np.float32)
    frame = hvd_qsgd.encode(
        values, levels=levels, codec=codec, norm=norm, bucket_size=NUMBERS.size, dither="subtractive", seed=1
    )
    scale = ref.scales_of(NUMBERS.astype(np.float32), NUMBERS.size, norm)[0]
    errors = (hvd_qsgd.decode(frame).astype(np.float64) - values).reshape(DRAWS, -1) / (scale / levels)
    slack = levels * 2.0**-21
    assert np.abs(errors).max() <= 0.5 + slack
    assert (np.abs(errors.mean(axis=0)) < 5 / np.sqrt(12 * DRAWS)).all()
    assert np.square(errors).mean(axis=0) == pytest.approx(1 / 12, rel=0.02)
    counts = np.array([np.histogram(column, bins=20, range=(-0.5, 0.5))[0] for column in errors.T])
    assert np.abs(counts - DRAWS / 20).max() < 5.5 * np.sqrt(DRAWS / 20)
    assert np.abs(np.corrcoef(errors.T) - np.eye(NUMBERS.size)).max() < 5.5 / np.sqrt(DRAWS)


def test_half_the_variance_for_the_same_bits() -> None:
    array = make_input("gaussian", 200_000)
    for how, least, most in (({"bits": 8}, 1.95, 2.1), ({"bits": 4}, 1.9, 2.1), ({"codec": "ternary"}, 1.6, 1.9)):
        frames = [hvd_qsgd.encode(array, **how, dither=dither) for dither in ("nonsubtractive", "subtractive")]
        assert len(frames[0]) == len(frames[1])
        errors = [hvd_qsgd.decode(frame) - array for frame in frames]
        assert least < np.square(errors[0]).sum() / np.square(errors[1]).sum() < most


def test_buckets_of_zeros_stay_exact() -> None:
    array = make_input("gaussian", 2048).copy()
    array[512:1024] = 0
    array[1500] = np.nan
    values = hvd_qsgd.decode(hvd_qsgd.encode(array, dither="subtractive"))
    assert not np.signbit(values[512:1024]).any()
    assert (values[512:1024] == 0).all()
    assert np.isnan(values[1024:1536]).all()
    assert np.isfinite(values[[*range(512), *range(1536, 2048)]]).all()


def test_levels_for_a_variance() -> None:
    """Every element brings a twelfth of a squared step, whatever it is."""
    for kind, norm, bucket_size in itertools.product(("gaussian", "zeros"), NORMS, (100, 512, None)):
        array = make_input(kind, 50_001)
        width = array.size if bucket_size is None else bucket_size
        lengths = np.diff([*range(0, array.size, width), array.size])
        scales = ref.scales_of(array, width, norm).astype(np.float64)
        one = float((lengths * scales**2).sum()) / 12 / float(np.square(array, dtype=np.float64).sum())
        for variance in (0.01, 0.3, 100.0):
            levels = solve(
                all_kernels()[0], array, variance, limit=127, bucket_size=bucket_size, norm=norm, subtractive=True
            )
            assert one / levels**2 <= 1.0001 * variance or levels == 127
            assert levels == 1 or one / (levels - 1) ** 2 > 0.9999 * variance
            assert solve(
                all_kernels()[0], array, variance, limit=2, bucket_size=bucket_size, norm=norm, subtractive=True
            ) == min(levels, 2)


# ---- what is refused ----


def test_only_with_a_fixed_width() -> None:
    values = make_input("gaussian", 600)
    frame = hvd_qsgd.encode(values, codec="rans")
    with pytest.raises(QSGDError, match="reserved"):
        hvd_qsgd.inspect(reseal(frame[:8] + b"\2" + frame[9:]))
    spec = make_spec(600, levels=7, bucket_size=512, subtractive=True)
    size = native.c_uint64()
    for codec, status in ((1, native.OK), (2, 1), (5, 1)):
        spec.codec = codec
        assert all_kernels()[0].c.qsgd_frame_bytes(spec, size) == status  # 7 levels are too many for codec 2
