"""The Elias codecs' kernels against the reference: the same bytes on every instruction set, the same values or the same
refusal for whatever a payload holds."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import reference as ref
import reference_elias as elias
from support import (
    BUCKETS,
    DTYPES,
    KINDS,
    NORMS,
    Array,
    RefusedError,
    all_kernels,
    forge,
    make_input,
    reseal,
    same_bits,
)
from test_kernels_bytes import LENGTHS, at, check_sum, compare

CODECS = ("elias-dense", "elias-sparse")
LEVELS = (1, 2, 7, 14, 15, 16, 30, 31, 127, 128, 1805, 32767)  # around where strings are made and read in other ways
CODERS = list(itertools.product(CODECS, LEVELS))
WHERE = {"tensor": 0, "step": 0}
BAD_CHECKSUM, BAD_PAYLOAD = 35, 23


@pytest.mark.parametrize(("codec", "levels"), CODERS)
def test_bytes_and_values(codec: str, levels: int) -> None:
    turn = itertools.count(levels)
    for n, dtype, norm in itertools.product(LENGTHS, DTYPES, NORMS):
        k = next(turn)
        how = {"codec": codec, "levels": levels, "norm": norm, "dtype": dtype, "squared_norm": k % 2 == 1, **at(k)}
        compare(make_input(KINDS[k % len(KINDS)], n, dtype), {**how, "bucket_size": BUCKETS[k % len(BUCKETS)]})


@pytest.mark.parametrize("kind", KINDS)
def test_every_input(kind: str) -> None:
    """Over several pieces and, with large blocks, several blocks."""
    turn = itertools.count()
    for (codec, levels), norm, bucket_size in itertools.product(CODERS[::2], NORMS, (512, None)):
        how = {"codec": codec, "levels": levels, "norm": norm, "bucket_size": bucket_size, **at(next(turn))}
        compare(make_input(kind, 9000), {**how, "dtype": "float32"})


def with_codes(codes: Array, codec: str, levels: int, block: int = 512, bucket_size: int = 512) -> bytes:
    """A frame that holds them; its scales are 1."""
    n, number = codes.size, ref.CODECS[codec]
    raw = np.ones(ref.ceil_div(n, bucket_size), "<f4").tobytes()
    header = ref.Header(codec=number, norm=1, dtype=1, levels=levels, count=n, bucket_size=bucket_size)
    payload = elias.pack(codes, ref.SPARSE[number], block)
    return ref.seal(header, raw.ljust(ref.roundup(len(raw), 16), b"\0") + payload)


@pytest.mark.parametrize(("codec", "levels"), CODERS)
def test_any_mixture_of_small_and_large_codes(codec: str, levels: int) -> None:
    """With a scale for all and levels as large as it, codes are the values: every path of encoder and decoder."""
    rng = np.random.default_rng(levels)
    for n, density, spread in itertools.product((512, 1300, 6000), (0.002, 0.05, 0.3, 0.9, 1), (1, 4, 12)):
        magnitudes = np.minimum(np.exp2(rng.uniform(0, spread, n)), levels).astype(np.int64)
        codes = np.where(rng.random(n) < density, magnitudes * rng.choice([-1, 1], n), 0)
        codes[rng.integers(n)] = levels
        how = {"codec": codec, "levels": levels, "bucket_size": None, "dtype": "float32"}
        frame = ref.encode(codes.astype(np.float32), **how)
        assert np.array_equal(ref.decode_codes(frame), codes)
        compare(codes.astype(np.float32), how)


@pytest.mark.parametrize(("codec", "levels"), CODERS)
def test_no_frame_is_longer_than_its_bound(codec: str, levels: int) -> None:
    """All codes as long as they can be; the buffer lies between guard bytes."""
    for n in (1, 512, 513, 5000):
        array = np.full(n, -1, np.float32)
        how = {"codec": codec, "levels": levels, "bucket_size": 512, "dtype": "float32"}
        compare(array, how)
        payload = elias.payload_bound(codec == "elias-sparse", levels, n, 512)
        assert ref.parse(ref.encode(array, **how)).coded_bytes == ref.layout(3, levels, n, 512)[1] + payload


@pytest.mark.parametrize(("levels", "n", "block"), [(1, 300_000, 2**15), (1, 2**18 + 700, 2**15), (3, 150_000, 2**13)])
def test_large_blocks(levels: int, n: int, block: int) -> None:
    """Which hold many units, several of them a stretch, or several stretches."""
    how = {"codec": "elias-sparse", "levels": levels, "norm": "l2", "bucket_size": None, "dtype": "float32"}
    assert elias.block_size(True, levels, n, n, "l2") == block
    for kind in ("gaussian", "sparse", "special"):
        compare(make_input(kind, n), how)
        compare(make_input(kind, n), how, threads=2)


@pytest.mark.parametrize("block", [512, 1024, 4096, 2**14, 2**17])
def test_blocks_of_any_size_are_decoded(block: int) -> None:
    """Whatever encoders choose today; also where gaps have 17 binary digits."""
    n, rng = 2**18 + 1234, np.random.default_rng(block)
    for density in (0, 1e-5, 0.001, 0.2):
        codes = rng.integers(-5, 5, n, endpoint=True) * (rng.random(n) < density)
        codes[[block - 1, n - 1]] = -5
        frame = with_codes(codes, "elias-sparse", 5, block)
        expected = ref.decode_sum([frame], count=n, dtype="float32", **WHERE)
        for kernels in all_kernels():
            assert same_bits(kernels.decode_sum([frame], count=n), expected), (kernels.isa, density)
            assert same_bits(kernels.decode_sum([frame], count=n, threads=2), expected), (kernels.isa, density)


def test_the_number_of_threads_changes_nothing() -> None:
    n = 2**22 + 12345  # enough for four
    array = make_input("patchwork", n)
    for codec, bucket_size, norm in itertools.product(CODECS, (512, None), NORMS):
        how = {"codec": codec, "levels": 7, "bucket_size": bucket_size, "norm": norm}
        for kernels in all_kernels():
            alone = kernels.encode(array, **how)
            values = kernels.decode_sum([alone], count=n)
            for threads in (2, 3, 4):
                assert kernels.encode(array, **how, threads=threads) == alone
                assert same_bits(kernels.decode_sum([alone], count=n, threads=threads), values)


@pytest.mark.parametrize("count", range(1, 5))
def test_sum_of_frames_of_many_kinds(count: int) -> None:
    rng = np.random.default_rng(count)
    coders = [*CODERS, ("packed", 7), ("packed", 100), ("ternary", 1)]
    for k, n in itertools.product(range(10), (1, 80, 513, 5121)):
        codings: list[dict[str, Any]] = []
        for _ in range(count):
            codec, levels = coders[rng.integers(len(coders))]
            bucket_size = BUCKETS[rng.integers(len(BUCKETS))]
            codings.append({"codec": codec, "levels": levels, "bucket_size": bucket_size, "norm": NORMS[k % 2]})
        check_sum(codings, n, DTYPES[k % 3], 0.5, k, offset=k % 4)


# ---- payloads that no encoder writes ----


def outcome(frame: bytes) -> str:
    """What the reference says, which the kernels must say too."""
    n = ref.parse(frame).count
    try:
        expected = ref.decode_sum([frame], count=n, dtype="float32", **WHERE)
    except ref.FrameError as found:
        error = found
    else:
        for kernels in all_kernels():
            assert same_bits(kernels.decode_sum([frame], count=n), expected), kernels.isa
        return "accepted"
    assert error.check == "payload", error
    for kernels in all_kernels():
        with pytest.raises(RefusedError) as caught:
            kernels.decode_sum([frame], count=n)
        assert caught.value.status == BAD_PAYLOAD, (kernels.isa, error)
    return "refused"


def hostile_frames(codec: str, levels: int, n: int, block: int) -> tuple[bytes, int, int]:
    """A good frame, and where its payload begins and ends."""
    rng = np.random.default_rng([levels, n])
    codes = rng.integers(-levels, levels, n, endpoint=True) * (rng.random(n) < 0.4)
    frame = with_codes(codes, codec, levels, block)
    assert outcome(frame) == "accepted"
    return frame, ref.layout(3, levels, n, 512)[1], ref.parse(frame).coded_bytes


SMALL_FRAMES = [(codec, levels, n) for codec in CODECS for levels, n in ((3, 40), (7, 530), (40, 60), (32767, 40))]


@pytest.mark.parametrize(("codec", "levels", "n"), SMALL_FRAMES)
def test_every_flipped_bit_of_a_payload(codec: str, levels: int, n: int) -> None:
    frame, begin, end = hostile_frames(codec, levels, n, 512)
    seen = Counter[str]()
    for k in range(8 * begin, 8 * end):
        flipped = bytearray(frame)
        flipped[k // 8] ^= 1 << k % 8
        seen[outcome(reseal(flipped))] += 1
    assert seen["refused"] > 20, seen
    assert seen["accepted"] > 0, seen  # a sign may be flipped


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("codec", "block"), [("elias-dense", 512), ("elias-sparse", 512), ("elias-sparse", 2048)])
def test_garbage(codec: str, block: int, seed: int) -> None:
    """Blocks, lengths or all of a payload by chance, of zeros and of ones."""
    rng = np.random.default_rng([seed, block])
    seen = Counter[str]()
    for turn in range(60):
        levels, n = int(rng.choice([1, 7, 50, 32767])), int(rng.choice([5, 512, 1100, 5000]))
        frame, begin, end = hostile_frames(codec, levels, n, block)
        blocks = begin + 8 + 2 * ref.ceil_div(n, block)
        first, last = ((blocks, end), (begin + 8, blocks), (begin, end))[turn % 3]
        junk = rng.bytes(last - first) if turn % 4 else bytes([rng.choice([0, 255])]) * (last - first)
        seen[outcome(reseal(frame[:first] + junk + frame[last:]))] += 1
        at = int(rng.integers(blocks, end))  # damage that the beginning of a block does not show
        seen[outcome(reseal(frame[:at] + rng.bytes(1) + frame[at + 1 :]))] += 1
    assert seen["refused"] > 30, seen


@pytest.mark.parametrize("codec", CODECS)
def test_a_block_that_is_longer_or_shorter_than_it_says(codec: str) -> None:
    frame, begin, end = hostile_frames(codec, 7, 1100, 512)
    lengths = np.frombuffer(frame, "<u2", 3, begin + 8).astype(np.int64)
    for k, (j, more) in enumerate(itertools.product(range(3), (-1, 1, -100, 100))):
        moved = lengths.copy()
        moved[j] += more
        moved[(j + 1 + k % 2) % 3] -= more
        assert outcome(reseal(frame[: begin + 8] + moved.astype("<u2").tobytes() + frame[begin + 14 :])) == "refused"
    longer = forge(frame + bytes(16), coded_bytes=end + 1, frame_bytes=len(frame) + 16)
    assert outcome(longer) == "refused"
    assert outcome(forge(frame + bytes(16), frame_bytes=len(frame) + 16)) == "accepted"  # more padding
    for shorter in range(begin, end):
        assert outcome(forge(frame, coded_bytes=shorter)) == "refused"


@pytest.mark.parametrize("codec", CODECS)
def test_block_sizes_that_are_refused(codec: str) -> None:
    frame, begin, _ = hostile_frames(codec, 7, 400, 512)
    for size in (0, 1, 256, 511, 513, 768, 1024, 2**17, 2**18, 2**31, 2**32 - 1):
        good = codec == "elias-sparse" and size in (1024, 2**17)
        changed = frame[:begin] + size.to_bytes(4, "little") + frame[begin + 4 :]
        assert outcome(reseal(changed)) == ("accepted" if good else "refused"), size


def test_the_frame_at_fault_is_named() -> None:
    good = with_codes(np.arange(-3, 3), "elias-dense", 3)
    start = ref.layout(3, 3, 6, 512)[1] + 10
    bad = reseal(good[:start] + bytes([good[start] ^ 0x10]) + good[start + 1 :])
    for kernels in all_kernels():
        with pytest.raises(RefusedError) as caught:
            kernels.decode_sum([good, forge(bad, rank=1)], count=6)
        assert (caught.value.status, caught.value.frame) == (BAD_PAYLOAD, 1)
        with pytest.raises(RefusedError) as caught:  # a checksum comes first
            kernels.decode_sum([bad, forge(good, rank=1)[:88] + bytes(8) + good[96:]], count=6)
        assert (caught.value.status, caught.value.frame) == (BAD_CHECKSUM, 1)
