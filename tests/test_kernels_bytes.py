"""The kernels of every instruction set against the reference: the same bytes, and the same sums to the last bit."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
import reference as ref
from support import (
    BUCKETS,
    CODERS,
    DTYPES,
    FIXED_CODERS,
    KINDS,
    NORMS,
    VARIABLE_CODERS,
    Array,
    all_kernels,
    make_input,
    same_bits,
)

LENGTHS = (0, 1, 15, 16, 17, 79, 80, 81, 511, 512, 513, 2559, 2560, 2561)
MILLION = 10**6 + 3
FACTORS = (1.0, 0.5, 1 / 3, -1.0, 0.0, -0.0, 1e-30, 1e30, 3e38, 1e-45, np.inf, -np.inf, np.nan)
Case = dict[str, Any]


@functools.cache
def at(seed: int) -> Case:
    """Where in the run a frame belongs, in numbers that use all their bits."""
    rng = np.random.default_rng(seed)
    tensor, step, rank = (int(x) for x in rng.integers(0, 2**32, 3))
    return {"seed": int(rng.integers(0, 2**64, dtype=np.uint64)), "tensor": tensor, "step": step, "rank": rank}


def expected_values(frames: list[bytes], dtype: str, factor: float = 1.0) -> Array:
    """`reference.decode_sum` without the checks of rank, tensor and step."""
    acc = np.zeros(ref.parse(frames[0]).count, np.float32)
    with np.errstate(all="ignore"):
        for frame in frames:
            acc = acc + ref.dequantize(frame)
        return ref.narrow(acc * np.float32(factor), dtype)


def expectation(frames: list[bytes], dtype: str) -> Case:
    header = ref.parse(frames[0])
    return {
        "count": header.count,
        "dtype": dtype,
        "tensor": header.tensor,
        "step": header.step,
        "first_rank": header.rank,
    }


def compare(array: Array, how: Case, *, decode: bool = True, **call: Any) -> None:
    """Frame and values of one gradient, on every instruction set."""
    expected = ref.encode(array, **how)
    for kernels in all_kernels():
        frame = kernels.encode(array, **how, **call)
        assert frame == expected, (kernels.isa, array.size, how, first_difference(frame, expected))
    if not decode:
        return
    values = expected_values([expected], how["dtype"])
    for kernels in all_kernels():
        decoded = kernels.decode_sum([expected], **expectation([expected], how["dtype"]), **call)
        assert same_bits(decoded, values), (kernels.isa, array.size, how)


def first_difference(a: bytes, b: bytes) -> int:
    return next((k for k, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("codec", "levels"), CODERS)
def test_bytes_and_values(codec: str, levels: int, norm: str) -> None:
    """The full product of dtype, bucket size and length, inputs in turn. Payloads of variable length depend on codes
    alone: with a norm and levels, a bucket size meets one dtype."""
    turn = itertools.count()
    kinds = list(itertools.product(BUCKETS, DTYPES))
    if variable := (codec, levels) in VARIABLE_CODERS:
        first = NORMS.index(norm) + VARIABLE_CODERS.index((codec, levels))
        kinds = [(bucket_size, DTYPES[(first + k) % 3]) for k, bucket_size in enumerate(BUCKETS)]
    for bucket_size, dtype in kinds:
        large = bucket_size is None or (bucket_size > 5000 and variable)  # see test_rans.py
        around = [] if large else [bucket_size - 1, bucket_size, bucket_size + 1]
        for n in sorted({*LENGTHS, *around}):
            k = next(turn)
            array = make_input(KINDS[k % len(KINDS)], n, dtype)
            compare(
                array,
                {
                    "codec": codec,
                    "levels": levels,
                    "bucket_size": bucket_size,
                    "norm": norm,
                    "dtype": dtype,
                    "squared_norm": k % 2 == 1,
                    **at(k),
                },
            )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_input(kind: str, dtype: str) -> None:
    """Every kind of input with every coder, over several blocks."""
    turn = itertools.count()
    for (codec, levels), norm in itertools.product(CODERS, NORMS):
        k = next(turn)
        how = {"codec": codec, "levels": levels, "norm": norm, "dtype": dtype, "squared_norm": True, **at(k)}
        compare(make_input(kind, 2 * 2560 + 700, dtype), {**how, "bucket_size": BUCKETS[k % len(BUCKETS)]})
        compare(make_input(kind, 2 * 2560 + 512, dtype), {**how, "bucket_size": (512, 1024, 2560, 160)[k % 4]})


@pytest.mark.parametrize("levels", [64, 100, 127])  # with fewer, R would have to be 0
def test_maxima_are_certain_whatever_the_random_bits(levels: int) -> None:
    """Where the least R meets a positive maximum and the largest a negative one, for scales whose inverse is rounded
    down: without the inverse's correction their codes would be one less."""
    n = 2**19
    random = ref.random_bits(n, seed=1, rank=0, tensor=0, step=0)
    scales = np.random.default_rng(levels).uniform(1, 2, 10_000).astype(np.float32)
    top = np.float32(levels * 2**24)
    scales = scales[(top / scales) * scales < top]
    assert scales.size > 100
    values = np.zeros(n, np.float32)
    rare = np.argsort(random)[[*range(10), *range(-10, 0)]]
    values[rare] = scales[:20] * np.repeat(np.float32([1, -1]), 10)
    compare(values, {"levels": levels, "bucket_size": 16, "seed": 1, "dtype": "float32"})
    codes = ref.decode_codes(all_kernels()[-1].encode(values, levels=levels, bucket_size=16, seed=1))
    assert codes[rare].tolist() == [levels] * 10 + [-levels] * 10


BIG: list[Case] = [
    {
        "codec": codec,
        "levels": levels,
        "bucket_size": BUCKETS[k % len(BUCKETS)],
        "norm": NORMS[k // 2 % 2],
        "dtype": DTYPES[k % 3 if k < 9 else k // 3 % 3],
        "squared_norm": k % 4 == 0,
    }
    for coders in (FIXED_CODERS[:-1], FIXED_CODERS[-1:] * 9)
    for k, (codec, levels) in enumerate(coders)
]


@pytest.mark.parametrize("k", range(len(BIG)))
def test_a_million_elements(k: int) -> None:
    compare(make_input(KINDS[k % len(KINDS)], MILLION, BIG[k]["dtype"]), {**BIG[k], **at(k)})


def test_a_million_elements_covers_every_value_with_every_codec() -> None:
    for codec in ("packed", "ternary"):
        cases = [case for case in BIG if case["codec"] == codec]
        assert {case["bucket_size"] for case in cases} == set(BUCKETS)
        assert {case["dtype"] for case in cases} == set(DTYPES)
        assert {case["norm"] for case in cases} == set(NORMS)
        assert len(cases) >= len(KINDS)
    assert {(case["codec"], case["levels"]) for case in BIG} == set(FIXED_CODERS)


# ---- half types ----


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_half_is_read(dtype: str) -> None:
    """With a bucket for each, the scales are their magnitudes."""
    array = np.arange(2**16, dtype=np.uint16).view(np.float16 if dtype == "float16" else np.uint16)
    for bucket_size, norm in itertools.product((1, 16, 512), NORMS):
        compare(array, {"levels": 127, "bucket_size": bucket_size, "norm": norm, "dtype": dtype})


def frame_of(scales: Array, bucket_size: int, dtype: str) -> bytes:
    """Whose values are these scales, with changing signs."""
    n = scales.size * bucket_size
    raw = scales.astype("<f4").tobytes()
    codes = np.resize([1, -1, 1, 1, -1], n)
    how = {"codec": 1, "norm": 1, "dtype": ref.DTYPES[dtype], "levels": 1, "count": n, "bucket_size": bucket_size}
    return ref.seal(ref.Header(**how), raw.ljust(ref.roundup(len(raw), 16), b"\0") + ref.pack(codes, 1, 1))


@pytest.mark.parametrize("bucket_size", [1, 16])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_half_is_rounded_to(dtype: str, bucket_size: int) -> None:
    """All that lie in the middle between two, and their neighbours in float32."""
    halves = np.arange(0x7C00 if dtype == "float16" else 0x7F80, dtype=np.uint16)
    exact = ref.widen(halves.view(np.float16) if dtype == "float16" else halves, dtype).astype(np.float64)
    exact = np.append(exact, 2 * exact[-1] - exact[-2])  # where the next one would be, is infinity
    middle = ((exact[1:] + exact[:-1]) / 2).astype(np.float32)
    around = [np.nextafter(middle, np.float32(0)), middle, np.nextafter(middle, np.float32(np.inf))]
    scales = np.concatenate([exact[:-1].astype(np.float32), *around])
    frame = frame_of(scales, bucket_size, dtype)
    expected = expected_values([frame], dtype)
    for kernels in all_kernels():
        assert same_bits(kernels.decode_sum([frame], count=expected.size, dtype=dtype), expected), kernels.isa


# ---- sums ----


def check_sum(codings: list[Case], n: int, dtype: str, factor: float, seed: int, offset: int = 0) -> None:
    frames = [
        ref.encode(
            make_input(KINDS[(seed + rank) % len(KINDS)], n, dtype, seed=rank),
            dtype=dtype,
            **coding,
            **{**at(seed), "rank": rank, "seed": rank + seed},
        )
        for rank, coding in enumerate(codings)
    ]
    where = expectation(frames, dtype)
    assert where.pop("first_rank") == 0
    expected = ref.decode_sum(frames, factor=factor, **where)
    for kernels in all_kernels():
        values = kernels.decode_sum(frames, factor=factor, offset=offset, **where)
        assert same_bits(values, expected), (kernels.isa, n, dtype, factor, codings)


@pytest.mark.parametrize("count", range(1, 6))
@pytest.mark.parametrize(("codec", "levels"), CODERS)
def test_sum_of_frames_of_one_kind(codec: str, levels: int, count: int) -> None:
    """Equal widths and buckets take a path of their own; levels may still differ, and buckets may be tiny."""
    turn = itertools.count(count)
    for bucket_size, n in itertools.product((3, 64, 512, 2048, None), (1, 513, 2560, 5121)):
        k = next(turn)
        same = {"codec": codec, "bucket_size": bucket_size}
        fewer = levels - (levels > 2 and levels & (levels - 1) > 0)  # of the same width
        codings = [{**same, "levels": (levels, fewer)[r % 2], "norm": NORMS[(k + r) % 2]} for r in range(count)]
        check_sum(codings, n, DTYPES[k % 3], FACTORS[k % len(FACTORS)], k, offset=k % 4)


@pytest.mark.parametrize("count", range(2, 6))
@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_of_frames_of_many_kinds(dtype: str, count: int) -> None:
    rng = np.random.default_rng(count)
    for k, n in itertools.product(range(12), (1, 80, 513, 5121)):
        codings = []
        for _ in range(count):
            codec, levels = CODERS[rng.integers(len(CODERS))]
            bucket_size = BUCKETS[rng.integers(len(BUCKETS))]
            coding = {"codec": codec, "levels": levels, "bucket_size": bucket_size, "norm": NORMS[rng.integers(2)]}
            codings.append(coding)
        check_sum(codings, n, dtype, FACTORS[(k + n) % len(FACTORS)], k)


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors(dtype: str) -> None:
    for factor, seed in itertools.product(FACTORS, range(len(KINDS))):
        codings: list[Case] = [{"levels": 7, "bucket_size": 512}, {"levels": 5, "bucket_size": 512}]
        check_sum(codings, 2561, dtype, factor, seed)
