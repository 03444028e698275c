"""Sums that the CUDA kernels make of frames of which some are of an Elias codec: the CPU's bits; what is refused."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import reference as ref
import test_frame_checks as checks
from cuda_support import cuda_kernels
from support import DTYPES, RefusedError, forge, reseal
from test_cuda_decode import compare_outcomes, where_of
from test_cuda_rans_decode import check_sum, frames_of
from test_kernels_bytes import FACTORS
from test_kernels_elias import CODECS, CODERS, with_codes

CODINGS: list[dict[str, Any]] = [
    {"codec": "elias-dense", "levels": 7, "bucket_size": 512},
    {"codec": "elias-sparse", "levels": 7, "bucket_size": 512},
    {"codec": "elias-sparse", "levels": 300, "bucket_size": None, "norm": "l2"},
    {"codec": "packed", "levels": 7, "bucket_size": 512},
    {"codec": "rans", "levels": 32767, "bucket_size": 1000, "norm": "l2"},
    {"codec": "elias-dense", "levels": 32767, "bucket_size": 100},
    {"codec": "elias-sparse", "levels": 1, "bucket_size": None, "norm": "l2"},
]


@pytest.mark.parametrize("n", [0, 1, 511, 512, 513, 5000])
def test_sums(n: int) -> None:
    """Alone, with each other, beside other codecs."""
    chosen = [[0], [1], [2], [5], [6], [0, 1], [3, 0], [1, 3, 4], [6, 2, 0, 4, 3, 5, 1], [0] * 4]
    for k, numbers in enumerate(chosen):
        dtype = DTYPES[k % 3]
        frames = frames_of(n, dtype, [CODINGS[c] for c in numbers], k)
        check_sum(frames, dtype, FACTORS[k % len(FACTORS)], k % 4)


# One stretch or more, whole ones and others; with large blocks, which are several units long.
@pytest.mark.parametrize("n", [131_071, 131_073, 300_000])
def test_stretches(n: int) -> None:
    check_sum(frames_of(n, "float32", [CODINGS[c] for c in (n % 2, 6, 3)], n))


def test_many_frames() -> None:
    check_sum(frames_of(700, "float32", [CODINGS[k % 3] for k in range(35)], 0), factor=0.5)


@pytest.mark.parametrize(("codec", "levels"), CODERS)
def test_codes_of_all_magnitudes(codec: str, levels: int) -> None:
    rng = np.random.default_rng(levels)
    for n, density in itertools.product((40, 1300), (0.005, 0.3, 1)):
        magnitudes = np.exp2(rng.uniform(0, np.log2(levels + 0.9), n)).astype(np.int64)
        codes = np.where(rng.random(n) < density, magnitudes * rng.choice([-1, 1], n), 0)
        codes[rng.integers(n)] = -levels
        check_sum([with_codes(codes, codec, levels)])


@pytest.mark.parametrize("block", [512, 1024, 2**14, 2**17])
def test_blocks_of_any_size(block: int) -> None:
    """Also where gaps have 17 binary digits, and 18 the number of nonzeros."""
    n, rng = 2**18 + 1234, np.random.default_rng(block)
    for density in (1e-5, 0.01):
        codes = rng.integers(-5, 5, n, endpoint=True) * (rng.random(n) < density)
        codes[[block - 1, n - 1]] = -5
        check_sum([with_codes(codes, "elias-sparse", 5, block)])
    frame = with_codes(np.ones(2**17, np.int64), "elias-sparse", 1, 2**17)
    check_sum([frame])


# ---- what is refused ----


def verdict(*frames: bytes, **where: Any) -> Any:
    where = {"count": ref.parse(frames[0]).count, **where}
    result = compare_outcomes(list(frames), variable=True, **where)
    return result if isinstance(result, tuple) else None


def good_frame(codec: str, levels: int, n: int, block: int = 512) -> tuple[bytes, int, int]:
    """A frame, and where its payload begins and ends."""
    rng = np.random.default_rng([levels, n])
    codes = rng.integers(-levels, levels, n, endpoint=True) * (rng.random(n) < 0.4)
    frame = with_codes(codes, codec, levels, block)
    return frame, ref.layout(3, levels, n, 512)[1], ref.parse(frame).coded_bytes


@pytest.mark.parametrize(("levels", "n"), [(3, 40), (7, 530), (40, 60), (32767, 40)])
@pytest.mark.parametrize("codec", CODECS)
def test_flipped_bits(codec: str, levels: int, n: int) -> None:
    """Of header and payload, with the right checksum and without."""
    frame, begin, end = good_frame(codec, levels, n)
    found = Counter[Any]()
    for bit in [*range(0, 768, 23), *range(8 * begin, 8 * end, 13 if n > 100 else 2)]:
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        for sent in (bytes(flipped), reseal(flipped)) if bit % 5 == 0 else (reseal(flipped),):
            if ref.parse(sent).codec != ref.CODECS["onebit"]:
                found[verdict(sent, count=n)] += 1
    assert min(found[23, 0], found[35, 0]) >= 10, found
    assert found[None] > 0, found  # a sign may be flipped


@pytest.mark.parametrize(("codec", "block"), [("elias-dense", 512), ("elias-sparse", 512), ("elias-sparse", 2048)])
def test_garbage(codec: str, block: int) -> None:
    """Strings, lengths or all of a payload by chance, of zeros and of ones; one byte."""
    rng, found = np.random.default_rng(block), Counter[Any]()
    for turn in range(60):
        levels, n = int(rng.choice([1, 7, 50, 32767])), int(rng.choice([5, 512, 1100, 2600]))
        frame, begin, end = good_frame(codec, levels, n, block)
        strings = begin + 8 + 2 * ref.ceil_div(n, block)
        first, last = ((strings, end), (begin + 8, strings), (begin, end))[turn % 3]
        junk = rng.bytes(last - first) if turn % 4 else bytes([rng.choice([0, 255])]) * (last - first)
        found[verdict(reseal(frame[:first] + junk + frame[last:]))] += 1
        at = int(rng.integers(strings, end))
        found[verdict(reseal(frame[:at] + rng.bytes(1) + frame[at + 1 :]))] += 1
    assert found[23, 0] > 60, found


@pytest.mark.parametrize("codec", CODECS)
def test_lengths(codec: str) -> None:
    frame, begin, end = good_frame(codec, 7, 1100)
    lengths = np.frombuffer(frame, "<u2", 3, begin + 8).astype(np.int64)
    for k, (j, more) in enumerate(itertools.product(range(3), (-1, 1, -100, 100))):
        moved = lengths.copy()
        moved[j] += more
        if k % 3:  # else they do not add up
            moved[(j + 1 + k % 2) % 3] -= more
        sent = reseal(frame[: begin + 8] + moved.astype("<u2").tobytes() + frame[begin + 14 :])
        assert verdict(sent) == (23, 0)
    longer = forge(frame + bytes(16), coded_bytes=end + 1, frame_bytes=len(frame) + 16)
    assert verdict(longer) == (23, 0)
    assert verdict(forge(frame + bytes(16), frame_bytes=len(frame) + 16)) is None  # more padding
    for shorter in [*range(begin, begin + 20), *range(begin + 20, end, 17)]:
        assert verdict(forge(frame, coded_bytes=shorter)) == (23, 0)
    for size in range(96, len(frame), 61):
        assert verdict(frame[:size]) == (10, 0)


@pytest.mark.parametrize(("codec", "codes"), [("elias-dense", [0] * 8), ("elias-sparse", [0, 1])])
def test_a_byte_behind_a_block(codec: str, codes: list[int]) -> None:
    """Whose string ends with its only byte."""
    frame = with_codes(np.array(codes), codec, 7)
    begin, end = ref.layout(3, 7, len(codes), 512)[1], ref.parse(frame).coded_bytes
    assert end == begin + 11
    assert verdict(forge(frame[: begin + 8] + b"\2" + frame[begin + 9 :], coded_bytes=end + 1)) == (23, 0)


@pytest.mark.parametrize("codec", CODECS)
def test_block_sizes(codec: str) -> None:
    frame, begin, _ = good_frame(codec, 7, 400)
    for size in (0, 1, 256, 511, 513, 768, 1024, 2**17, 2**18, 2**31, 2**32 - 1):
        good = codec == "elias-sparse" and size in (1024, 2**17)
        changed = reseal(frame[:begin] + size.to_bytes(4, "little") + frame[begin + 4 :])
        assert verdict(changed) == (None if good else (23, 0)), size
    assert verdict(reseal(frame[: begin + 4] + b"\1" + frame[begin + 5 :])) == (23, 0)


@pytest.mark.parametrize("codec", CODECS)
def test_no_payload(codec: str) -> None:
    frame = ref.encode(np.zeros(0, np.float32), codec=codec, levels=7, bucket_size=512)
    assert verdict(frame) is None
    padded = forge(frame + bytes(16), frame_bytes=len(frame) + 16)
    assert verdict(padded) is None
    assert verdict(forge(padded, coded_bytes=len(frame) + 4)) == (23, 0)


@pytest.mark.parametrize("codec", CODECS)
def test_the_first_check_that_fails_and_its_first_frame(codec: str) -> None:
    """A block that is wrong comes after a head that is wrong, that after a checksum, that after a scale."""
    good = [checks.small(600, codec=codec, levels=7, bucket_size=512, rank=rank, seed=rank) for rank in range(2)]
    ends = [ref.parse(frame).coded_bytes for frame in good]
    block = [reseal(f[: e - 1] + b"\xff" + f[e:]) for f, e in zip(good, ends, strict=True)]
    head = [reseal(frame[:112] + b"\3" + frame[113:]) for frame in good]
    checksum = [frame[:120] + bytes([frame[120] ^ 1]) + frame[121:] for frame in good]
    scale = [reseal(frame[:99] + b"\xff" + frame[100:]) for frame in good]
    kinds = [good, block, head, checksum, scale]
    found = {verdict(a[0], b[1], **checks.WHERE) for a, b in itertools.product(kinds, kinds)}
    assert found == {None, *itertools.product((22, 23, 35), range(2))}
    assert verdict(block[0], head[1], **checks.WHERE) == (23, 1)


def test_mutated_frames() -> None:
    rng, found = np.random.default_rng(6), Counter[int]()
    for _ in range(1200):
        frame = checks.mutate(rng)
        if len(frame) < 96 or ref.parse(frame).codec not in (3, 4):
            continue
        where = where_of(frame) if ref.parse(frame).dtype in checks.DTYPE_NAMES else {"count": 3, **checks.WHERE}
        result = verdict(frame, **{**where, "count": where["count"] if where["count"] < 10**6 else 3})
        found[result[0] if result else 0] += 1
    assert min(found[status] for status in (0, 10, 22, 23, 36)) >= 5, found


def test_memory_for_fixed_widths_alone() -> None:
    """A frame of variable length is refused before its payload is looked at."""
    frame, _, _ = good_frame("elias-dense", 7, 40)
    with pytest.raises(RefusedError) as caught:
        cuda_kernels().decode_sum([frame], count=40)
    assert (caught.value.status, caught.value.frame) == (13, 0)
