"""Sums of frames of which some are of codec rans, made by the CUDA kernels: the CPU kernels' bits; what is refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import reference as ref
import test_frame_checks as checks
from cuda_support import cuda_kernels
from support import DTYPES, KINDS, RefusedError, all_kernels, forge, make_input, reseal, same_bits
from test_cuda_decode import compare_outcomes, where_of
from test_kernels_bytes import FACTORS, expectation
from test_rans import ends_of_streams, matrix, random_payloads, small_frames

CODINGS: list[dict[str, Any]] = [
    {"codec": "rans", "levels": 7, "bucket_size": 512},
    {"codec": "rans", "levels": 300, "bucket_size": None, "norm": "l2"},
    {"codec": "packed", "levels": 7, "bucket_size": 512},
    {"codec": "rans", "levels": 32767, "bucket_size": 1000, "norm": "l2"},
    {"codec": "ternary", "levels": 1, "bucket_size": 100},
    {"codec": "packed", "levels": 100, "bucket_size": 16, "subtractive": True},
    {"codec": "rans", "levels": 1, "bucket_size": 16},
]


def frames_of(n: int, dtype: str, codings: list[dict[str, Any]], seed: int) -> list[bytes]:
    cpu = all_kernels()[0]
    return [
        cpu.encode(make_input(KINDS[(seed + r) % len(KINDS)], n, dtype, seed=r), dtype=dtype, rank=r, seed=r, **coding)
        for r, coding in enumerate(codings)
    ]


def check_sum(frames: list[bytes], dtype: str = "float32", factor: float = 1.0, offset: int = 0) -> None:
    where = {"factor": factor, **expectation(frames, dtype)}
    expected = all_kernels()[0].decode_sum(frames, **where)
    assert same_bits(cuda_kernels(variable=True).decode_sum(frames, offset=offset, **where), expected)


@pytest.mark.parametrize("n", [0, 1, 511, 512, 513, 5000])
def test_sums(n: int) -> None:
    """Alone, with each other, beside fixed widths; and these alone."""
    chosen = [[0], [1], [3], [6], [0, 1], [2, 0], [0, 2, 1, 4, 3, 5, 6], [2], [2, 2], [4, 5]]
    for k, numbers in enumerate(chosen):
        dtype = DTYPES[k % 3]
        frames = frames_of(n, dtype, [CODINGS[c] for c in numbers], k)
        check_sum(frames, dtype, FACTORS[k % len(FACTORS)], k % 4)


# Of 127 and 128 units, 255, 256 and 257: one stream or four, one stretch or two.
@pytest.mark.parametrize("n", [65_000, 65_025, 131_071, 131_073, 300_000])
def test_streams_and_stretches(n: int) -> None:
    check_sum(frames_of(n, "float32", [CODINGS[c] for c in (n % 2, 2, 3)], n))


def test_matrices() -> None:
    modes = set()
    for (rows, columns), spread in (((150, 784), 1.0), ((700, 17), 2.5), ((1000, 16), 0.0)):
        how = {"codec": "rans", "levels": 32767, "bucket_size": None, "norm": "l2", "columns": columns}
        arrays = [matrix(rows, columns, spread, seed) for seed in range(2)]
        frames = [all_kernels()[0].encode(array, rank=r, **how) for r, array in enumerate(arrays)]
        modes |= {ref.payload_in(frame)[0] for frame in frames}
        check_sum(frames)
    assert modes == {1, 2}


def test_many_frames() -> None:
    check_sum(frames_of(700, "float32", [CODINGS[k % 2] for k in range(35)], 0), factor=0.5)


# ---- what is refused ----


def refused(frames: list[bytes], **where: Any) -> Any:
    return compare_outcomes(frames, variable=True, **where)


@pytest.mark.parametrize("k", range(3))
def test_flipped_bits(k: int) -> None:
    """Of header and payload, with the right checksum and without."""
    frame, count = small_frames()[k]
    rng, found = np.random.default_rng(k), Counter[int]()
    for bit in [*range(0, 768, 5), *rng.integers(768, 8 * len(frame), 250).tolist()]:
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        for sent in (bytes(flipped), reseal(flipped)):
            if ref.parse(sent).codec in (0, 1, 2, 5):
                result = refused([sent], count=count)
                found[result[0] if isinstance(result, tuple) else 0] += 1
    assert min(found[status] for status in (23, 35)) >= 50, found


def test_payloads_of_other_lengths() -> None:
    for frame, count in small_frames():
        h = ref.parse(frame)
        for coded in range(ref.layout(5, h.levels, h.count, h.bucket_size)[1], h.coded_bytes, 3):
            assert refused([forge(frame, coded_bytes=coded)], count=count) == (23, 0)
        longer = forge(frame + bytes(32), coded_bytes=h.coded_bytes + 2, frame_bytes=h.frame_bytes + 32)
        assert refused([longer], count=count) == (23, 0)
        padded = forge(frame + bytes(32), frame_bytes=h.frame_bytes + 32)
        assert isinstance(refused([padded], count=count), bytes)
        for size in range(16, len(frame), 61):
            assert refused([frame[:size]], count=count) == (10, 0)


def test_random_payloads() -> None:
    for frame, n in random_payloads(60):
        refused([frame], count=n)


def test_ends_of_streams() -> None:
    for frame, accepted in ends_of_streams():
        assert isinstance(refused([frame], count=512), bytes if accepted else tuple)


def test_no_payload() -> None:
    frame = ref.encode(np.zeros(0, np.float32), codec="rans", levels=7, bucket_size=512)
    assert refused([frame], count=0) == b""
    h = ref.parse(frame)
    padded = forge(frame + bytes(16), frame_bytes=h.frame_bytes + 16)
    assert refused([padded], count=0) == b""
    assert refused([padded[:-1] + b"\1"], count=0) == (35, 0)
    assert refused([forge(padded, coded_bytes=h.coded_bytes + 4)], count=0) == (23, 0)


def test_the_first_check_that_fails_and_its_first_frame() -> None:
    """A stream that ends wrong comes after a head that is wrong, that after a checksum, that after a scale."""
    good = [checks.small(600, codec="rans", levels=7, bucket_size=512, rank=rank, seed=rank) for rank in range(2)]
    ends = [ref.parse(frame).coded_bytes for frame in good]
    stream = [reseal(f[: e - 1] + bytes([f[e - 1] ^ 0x20]) + f[e:]) for f, e in zip(good, ends, strict=True)]
    head = [reseal(frame[:112] + b"\3" + frame[113:]) for frame in good]
    checksum = [frame[:120] + bytes([frame[120] ^ 1]) + frame[121:] for frame in good]
    scale = [reseal(frame[:99] + b"\xff" + frame[100:]) for frame in good]
    kinds = [good, stream, head, checksum, scale]
    found = Counter[Any]()
    for first in range(len(kinds)):
        for second in range(len(kinds)):
            result = refused([kinds[first][0], kinds[second][1]], count=600, **checks.WHERE)
            found[result if isinstance(result, tuple) else None] += 1
    assert set(found) == {None, *((status, frame) for status in (22, 23, 35) for frame in range(2))}, found
    assert refused([stream[0], head[1]], count=600, **checks.WHERE) == (23, 1)


def test_mutated_frames() -> None:
    rng, outcomes = np.random.default_rng(4), Counter[int]()
    for _ in range(1200):
        frame = checks.mutate(rng)
        if len(frame) < 96 or ref.parse(frame).codec != 5:
            continue
        where = where_of(frame) if ref.parse(frame).dtype in checks.DTYPE_NAMES else {"count": 3, **checks.WHERE}
        found = refused([frame], **{**where, "count": where["count"] if where["count"] < 10**6 else 3})
        outcomes[found[0] if isinstance(found, tuple) else 0] += 1
    assert min(outcomes[status] for status in (0, 10, 22, 23, 36)) >= 5, outcomes


def test_memory_for_fixed_widths_alone() -> None:
    """A frame of variable length is refused before its payload is looked at."""
    frame, count = small_frames()[0]
    with pytest.raises(RefusedError) as caught:
        cuda_kernels().decode_sum([frame], count=count)
    assert (caught.value.status, caught.value.frame) == (13, 0)
