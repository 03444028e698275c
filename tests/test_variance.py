"""`variance=`: how many levels bring a gradient the relative variance that is asked for, on every instruction set."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import numpy as np
import pytest
import reference as ref
from support import DTYPES, NORMS, Array, Kernels, all_kernels, make_input, make_spec, shifted

import hvd_qsgd
from hvd_qsgd import native

MOST = 32767


def variance_of(values: Array, levels: int, bucket_size: int | None, norm: str) -> float:
    """E||Q(v) - v||^2 / ||v||^2, by definition: (M/s)^2 f(1 - f) an element, f being |v| s/M without its whole part."""
    v = np.abs(values.ravel().astype(np.float64))
    width = max(v.size, 1) if bucket_size is None else bucket_size
    rows = np.pad(v, (0, -v.size % width)).reshape(-1, width)
    scales = rows.max(axis=1) if norm == "max" else np.sqrt((rows**2).sum(axis=1))
    units = scales[:, None] / levels
    f = np.divide(rows, units, out=np.zeros_like(rows), where=units > 0) % 1
    return float((units**2 * f * (1 - f)).sum() / (v @ v))


def solve(
    kernels: Kernels, array: Array, variance: float, *, limit: int = MOST, threads: int = 1, offset: int = 0, **how: Any
) -> int:
    spec = make_spec(array.size, levels=limit, **how)
    if not spec.flags:  # which go with a fixed width only
        spec.codec = native.CODEC_AUTO
    levels, gradient = ctypes.c_uint32(), shifted(array.tobytes(), offset)
    status = kernels.c.qsgd_solve_levels(
        ctypes.byref(spec), gradient.ctypes.data, variance, threads, ctypes.byref(levels)
    )
    assert status == native.OK
    return levels.value


def assert_met(array: Array, variance: float, bucket_size: int | None, norm: str, **how: Any) -> int:
    """Within 3 %, and with one level less it is not; on every instruction set alike."""
    found = {solve(k, array, variance, bucket_size=bucket_size, norm=norm, **how) for k in all_kernels()}
    assert len(found) == 1, found
    levels = found.pop()
    assert variance_of(array, levels, bucket_size, norm) <= 1.03 * variance
    assert levels == 1 or variance_of(array, levels - 1, bucket_size, norm) >= 0.97 * variance
    return levels


def gradient(kind: str, n: int) -> Array:
    rng = np.random.default_rng([n, *kind.encode()])
    if kind == "matrix":  # rows and columns of very different scales, some of them zero
        columns = 784
        rows = np.exp(2 * rng.standard_normal((n // columns + 1, 1))) * (rng.random((n // columns + 1, 1)) < 0.5)
        values = rng.standard_normal((rows.size, columns)) * rows * (rng.random(columns) < 0.7)
    else:
        values = {
            "gaussian": rng.standard_normal, "laplace": lambda n: rng.laplace(size=n),
            "cauchy": rng.standard_cauchy, "sparse": lambda n: rng.standard_normal(n) * (rng.random(n) < 0.003),
            "lumps": lambda n: rng.standard_normal(n) * np.repeat(rng.random(n // 500 + 1) < 0.1 + 300 / n, 500)[:n],
        }[kind](n)  # fmt: skip
    return np.ravel(values)[:n].astype(np.float32)


KINDS = ("gaussian", "laplace", "cauchy", "sparse", "lumps", "matrix")


@pytest.mark.parametrize("n", [3000, 70_001, 1_000_003])
@pytest.mark.parametrize("kind", KINDS)
def test_the_variance_is_met(kind: str, n: int) -> None:
    array = gradient(kind, n)
    buckets = (None, 512) if n > 100_000 else (None, 64, 100, 512, 4096)
    for norm, bucket_size, variance in itertools.product(NORMS, buckets, (0.01, 0.1, 1.0)):
        assert_met(array, variance, bucket_size, norm)


def test_many_levels_come_closer() -> None:
    """Where a level more or less changes little, the variance is met from both sides."""
    for kind in ("gaussian", "laplace", "matrix"):
        array = gradient(kind, 200_000)
        levels = assert_met(array, 0.1, None, "l2")
        assert levels > 100
        assert variance_of(array, levels, None, "l2") == pytest.approx(0.1, rel=0.03)


def test_heavy_tails_need_all_of_the_gradient() -> None:
    """A few large elements among millions make most of the variance, and most samples miss them."""
    array = np.full(2**22, 1e-9, np.float32)
    array[:: 2**22 // 40] = np.linspace(0.3, 1, 41)
    for variance in (0.001, 0.01):
        assert_met(array, variance, None, "l2")


def test_elements_that_a_sample_misses_count() -> None:
    """A few rows of an embedding, wherever they lie, among zeros or next to nothing."""
    for place, background in itertools.product((0, 999, 4321, 9999), (0.0, 1e-5)):
        values = np.full((10_000, 64), background, np.float32)
        values[place] = np.random.default_rng(place).standard_normal(64)
        assert_met(values.ravel(), 0.1, None, "l2")
        assert_met(values.ravel(), 0.01, 512, "max")


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_alignment(dtype: str) -> None:
    array = make_input("patchwork", 50_001, dtype)
    wide = ref.widen(array, dtype)
    for norm, bucket_size in itertools.product(NORMS, (1, 3, 16, 100, 512, None)):
        levels = {
            solve(kernels, array, 0.1, bucket_size=bucket_size, norm=norm, dtype=dtype, offset=offset)
            for kernels, offset in itertools.product(all_kernels(), (0, 3))
        }
        assert levels == {solve(all_kernels()[0], wide, 0.1, bucket_size=bucket_size, norm=norm)}


def test_threads() -> None:
    array = gradient("sparse", 2**22 + 12345)
    for kernels, (norm, bucket_size) in itertools.product(all_kernels(), [("l2", None), ("max", 1000)]):
        levels = {solve(kernels, array, 0.1, bucket_size=bucket_size, norm=norm, threads=t) for t in (0, 1, 3, 4)}
        assert len(levels) == 1


def test_any_magnitude() -> None:
    array = gradient("gaussian", 20_000) / 8
    for norm, bucket_size in itertools.product(NORMS, (512, None)):
        levels = assert_met(array, 0.1, bucket_size, norm)
        for exponent in (-100, 100):
            scaled = (array * 2.0**exponent).astype(np.float32)
            assert {solve(k, scaled, 0.1, bucket_size=bucket_size, norm=norm) for k in all_kernels()} == {levels}
        subnormal = (array * 2.0**-130).astype(np.float32)
        assert_met(subnormal, 0.1, bucket_size, norm)


@pytest.mark.parametrize("bucket_size", [None, 512])
@pytest.mark.parametrize("norm", NORMS)
def test_a_bucket_that_is_not_finite_does_not_count(norm: str, bucket_size: int | None) -> None:
    array = gradient("gaussian", 5120)
    for value in (np.nan, np.inf):
        spoilt = array.copy()
        spoilt[700] = value
        expected = 1 if bucket_size is None else solve(
            all_kernels()[0], np.delete(array, np.s_[512:1024]), 0.1, bucket_size=bucket_size, norm=norm
        )  # fmt: skip
        assert {solve(k, spoilt, 0.1, bucket_size=bucket_size, norm=norm) for k in all_kernels()} == {expected}


@pytest.mark.parametrize("array", [[], [0], [0] * 5000, [3], [-1, 1, 1, 0] * 50], ids=lambda a: f"{a[:1]} x {len(a)}")
def test_what_needs_no_level_between(array: list[int]) -> None:
    """With the max norm these are exact at one level."""
    for kernels, bucket_size in itertools.product(all_kernels(), (None, 100)):
        assert solve(kernels, np.array(array, np.float32), 1e-9, bucket_size=bucket_size, norm="max") == 1


def test_limits() -> None:
    """A target that is looser than one level, or finer than all there are."""
    array = gradient("gaussian", 5000)
    for kernels in all_kernels():
        assert solve(kernels, array, 50.0, bucket_size=512, norm="max") == 1
        assert solve(kernels, array, 1e-6, bucket_size=512, norm="max", limit=127) == 127
        assert solve(kernels, array, 1e-12, bucket_size=None, norm="l2") == MOST
        for limit in (1, 2, 3, 4):
            assert solve(kernels, array, 0.1, bucket_size=512, norm="max", limit=limit) == limit


@pytest.mark.parametrize("variance", [0.0, -0.1, float("inf"), float("nan")])
def test_wrong_variances(variance: float) -> None:
    spec, array, levels = make_spec(8, levels=7, bucket_size=None), np.ones(8, np.float32), ctypes.c_uint32(99)
    for kernels in all_kernels():
        call = kernels.c.qsgd_solve_levels
        arguments = [ctypes.byref(spec), array.ctypes.data, 0.1, 1, ctypes.byref(levels)]
        assert call(*arguments) == native.OK
        levels.value = 99
        assert call(*arguments[:2], variance, *arguments[3:]) == 1
        for k in (0, 1, 4):
            assert call(*arguments[:k], None, *arguments[k + 1 :]) == 1
    assert levels.value == 99


# ---- hvd_qsgd.encode ----


@pytest.mark.parametrize("how", [{}, {"codec": "packed", "norm": "max", "bucket_size": 64}], ids=str)
def test_frames_of_a_variance(how: dict[str, Any]) -> None:
    """What comes back is as far from the gradient as was asked for."""
    array = gradient("laplace", 300_000)
    target = 0.1 if not how else 0.05
    frame = hvd_qsgd.encode(array, variance=target, **how)
    header = hvd_qsgd.inspect(frame)
    assert header.norm == how.get("norm", "l2")
    assert header.bucket_size == how.get("bucket_size", array.size)
    error = hvd_qsgd.decode(frame) - array.astype(np.float64)
    expected = variance_of(array, header.levels, how.get("bucket_size"), header.norm)
    assert float(error @ error) / float(np.square(array, dtype=np.float64).sum()) == pytest.approx(expected, rel=0.02)
    assert expected <= 1.03 * target
    assert frame == hvd_qsgd.encode(array, levels=header.levels, **{"norm": "l2", "bucket_size": None, **how},
                                    **({} if how else {"codec": header.codec}))  # fmt: skip
