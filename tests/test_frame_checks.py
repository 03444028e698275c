"""Frames that must not be decoded, and what is said about them: nothing crashes, nothing wrong is accepted, and what is
accepted is decoded as the reference does it."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any

import numpy as np
import pytest
import reference as ref
from support import FIXED_CODERS, SOME_CODERS, Array, RefusedError, all_kernels, forge, make_input, reseal, same_bits

import hvd_qsgd
from hvd_qsgd import native

DTYPE_NAMES = {number: name for name, number in ref.DTYPES.items()}
WHERE = {"tensor": 6, "step": 7}
STATUSES = {
    "1": {10, 11, 12, 13, 14, 15, 16},
    "2": {10, 16, 17, 18, 19, 20},
    "3": {16},
    "4": {21},
    "6": {22},
    "checksum": {35},
    "payload": {0, 23},  # blocks and streams are checked when they are decoded
    "trailing": {0, 22, 23, 35},  # it may be followed by others
}  # check of the reference -> what the kernels may call it


def small(n: int = 3, kind: str = "gaussian", **how: Any) -> bytes:
    how = {"levels": 7, "bucket_size": 2, **WHERE, **how}
    return ref.encode(make_input(kind, n, how.get("dtype", "float32")), **how)


ERROR = ref.error_frame("out of memory", count=3, dtype="float32", rank=0, **WHERE)
FRAMES = {
    "packed": small(),
    "packed-127": small(20, levels=127, bucket_size=16, seed=2**63),
    "packed-1": small(0, levels=1, bucket_size=16),
    "ternary": small(90, codec="ternary", levels=1, bucket_size=None),
    "l2-float16": small(17, levels=2, norm="l2", dtype="float16", squared_norm=True),
    "bfloat16": small(3, dtype="bfloat16"),
    "rans": small(3, codec="rans", levels=1000, bucket_size=16),
    "elias-dense": small(40, codec="elias-dense", levels=300, bucket_size=40),
    "elias-sparse": small(40, codec="elias-sparse", levels=5, bucket_size=16, norm="l2"),
    "onebit": small(20, codec="onebit", levels=1, bucket_size=16, kind="special"),
    "error": ERROR,
}


def refused(frame: bytes) -> str:
    """The sentence with which `decode` refuses it; the kernels do too, although they expect what it claims to be."""
    with pytest.raises(hvd_qsgd.QSGDError) as caught:
        hvd_qsgd.decode(frame)
    header = ref.parse(frame) if len(frame) >= 96 else ref.Header()
    where = {"tensor": header.tensor, "step": header.step, "first_rank": header.rank}
    where["dtype"] = DTYPE_NAMES.get(header.dtype, "float32")
    for kernels in all_kernels():
        with pytest.raises(RefusedError):
            kernels.decode_sum([frame], count=header.count if header.count < 10**6 else 3, **where)
    return str(caught.value)


@pytest.mark.parametrize("name", FRAMES)
def test_every_flipped_bit(name: str) -> None:
    frame = FRAMES[name]
    header = ref.parse(frame)
    where = {"count": header.count, "dtype": DTYPE_NAMES[header.dtype], **WHERE}
    for kernels in all_kernels() if name != "error" else ():
        assert kernels.decode_sum([frame], **where).size == header.count  # it is the flip that is refused
    for k in range(8 * len(frame)):
        flipped = bytearray(frame)
        flipped[k // 8] ^= 1 << k % 8
        with pytest.raises(hvd_qsgd.QSGDError):
            hvd_qsgd.inspect(bytes(flipped))
        with pytest.raises(hvd_qsgd.QSGDError):
            hvd_qsgd.decode(bytes(flipped))
        for kernels in all_kernels():
            with pytest.raises(RefusedError):
                kernels.decode_sum([flipped], **where)


@pytest.mark.parametrize("name", FRAMES)
def test_every_length(name: str) -> None:
    frame = FRAMES[name]
    for size in range(len(frame)):
        assert "cut short" in refused(frame[:size])
        with pytest.raises(hvd_qsgd.QSGDError, match="cut short"):
            hvd_qsgd.inspect(frame[:size])
    if name != "error":
        assert hvd_qsgd.decode(frame).size == ref.parse(frame).count
        for more in (b"\0", b"\0" * 16, frame):
            assert "followed by bytes that belong to no frame" in refused(frame + more)


def test_garbage() -> None:
    rng = np.random.default_rng(1)
    for k in range(2000):
        garbage = rng.bytes(rng.integers(0, 400))
        if k % 2:
            garbage = b"QSGD\1" + bytes(rng.integers(0, 4, 3, np.uint8)) + garbage[:88] + bytes(100)
        refused(garbage)
        if len(garbage) >= 96:
            refused(reseal(garbage))
    for byte in (0, 255):
        for size in (95, 96, 1000):
            refused(bytes([byte]) * size)


HUGE = [2**32, 2**47, 2**48, 2**48 + 1, 2**60, 2**62, 2**63, 2**64 - 512, 2**64 - 1]
HOSTILE: dict[str, list[int]] = {
    "magic": [0, 0x44475350, 2**32 - 1],
    "version": [0, 2, 255],
    "codec": [0, 2, 3, 6, 255],
    "norm": [0, 3, 255],
    "dtype": [0, 4, 255],
    "flags": [4, 5, 256, 2**31, 2**32 - 1],
    "levels": [0, 1, 128, 200, 255, 256, 2**31, 2**32 - 1],
    "count": [0, 81, 1100, 10**9, *HUGE],
    "bucket_size": [0, 1, *HUGE[3:]],
    "zero52": [1, 2**32 - 1],
    "zero80": [1, 2**63],
    "coded_bytes": [0, 95, 96, 10**9, *HUGE],
    "frame_bytes": [0, 8, 95, 96, 104, 10**9, *HUGE],
    "squared_norm": [1, 2**63, 0x7FF8000000000000],
}


TARGET = small(600, bucket_size=100)  # every field that is changed changes the lengths


@pytest.mark.parametrize("field", HOSTILE)
def test_hostile_headers(field: str) -> None:
    """With a checksum that is right: the fields themselves are checked."""
    for value in HOSTILE[field]:
        refused(forge(TARGET, **{field: value}))
        refused(forge(TARGET + bytes(4096), **{field: value}))
        for other in ("count", "bucket_size", "coded_bytes", "frame_bytes"):
            for huge in HUGE:
                refused(forge(TARGET, **{field: value, other: huge}))


@pytest.mark.parametrize("huge", HUGE)
def test_lengths_that_wrap_around(huge: int) -> None:
    refused(forge(TARGET, coded_bytes=huge, frame_bytes=huge))
    for levels in (1, 7, 127):
        for bucket_size in (1, 2**32, huge):
            coded = ref.layout(1, levels, huge, bucket_size)[2] % 2**64
            sizes = {"coded_bytes": coded, "frame_bytes": ref.roundup(coded, 16) % 2**64}
            refused(forge(TARGET, count=huge, bucket_size=bucket_size, levels=levels, **sizes))
            refused(forge(TARGET, count=huge, bucket_size=bucket_size, coded_bytes=96, frame_bytes=96))


@pytest.mark.parametrize(("codec", "levels"), FIXED_CODERS)
def test_any_payload_decodes_as_the_page_says(codec: str, levels: int) -> None:
    """Also numbers that no encoder writes, and ternary bytes above 242."""
    rng = np.random.default_rng(levels)
    for n, dtype in ((2561, "float32"), (2 * 2560, "float32"), (80, "float16"), (600, "bfloat16")):
        made = [small(n, codec=codec, levels=levels, bucket_size=512, dtype=dtype, rank=rank) for rank in range(2)]
        start = ref.layout(ref.CODECS[codec], levels, n, 512)[1]
        hostile = [reseal(frame[:start] + rng.bytes(len(frame) - start)) for frame in made]
        for sent in (hostile[:1], hostile):
            expected = ref.decode_sum(sent, count=n, dtype=dtype, **WHERE)
            for kernels in all_kernels():
                assert same_bits(kernels.decode_sum(sent, count=n, dtype=dtype, **WHERE), expected), kernels.isa


def test_damage_that_the_sum_of_all_checksums_does_not_show() -> None:
    """Two frames with a word exchanged: each is damaged, and each checksum says so."""
    made = [small(600, bucket_size=512, rank=rank, seed=rank) for rank in range(2)]
    cuts = [slice(at, at + 8) for at in range(96, len(made[0]), 8)]
    differing = [cut for cut in cuts if made[0][cut] != made[1][cut]]
    assert len(differing) > 20
    for cut in (differing[0], differing[9], differing[-1]):
        swapped = [bytearray(frame) for frame in made]
        swapped[0][cut], swapped[1][cut] = made[1][cut], made[0][cut]
        for kernels in all_kernels():
            with pytest.raises(RefusedError) as caught:
                kernels.decode_sum(swapped, count=600, **WHERE)
            assert (caught.value.status, caught.value.frame) == (35, 0)


# ---- as the reference does it ----


def reference_outcome(frame: bytes) -> Array | str:
    """The values, or the number of the check that fails; a frame among its like, at the place that it says."""
    if len(frame) < 96:
        return "1"
    header = ref.parse(frame)
    dtype = DTYPE_NAMES.get(header.dtype, "float32")
    where = {"count": header.count, "dtype": dtype, "tensor": header.tensor, "step": header.step}
    try:
        ref.check_itself(frame, 0)
        if header.frame_bytes != len(frame):
            return "trailing"
        ref.check_scales(frame, 0)
        ref.verify_checksum(frame, header, 0)
        return ref.decode_sum([forge(frame, rank=0)], **where)
    except ref.FrameError as error:
        return error.check


def compare_outcomes(frame: bytes) -> str:
    """The kernels accept what the reference accepts, and decode it to the same bits. Returns the reference's check."""
    expected = reference_outcome(frame)
    if isinstance(expected, str):
        refused(frame)
        data = np.frombuffer(frame, np.uint8)
        status, _ = native.check(data.ctypes.data, data.size) if frame else (10, 0)
        assert status in STATUSES[expected], (expected, status, frame.hex())
        return expected
    values = hvd_qsgd.decode(frame)
    assert same_bits(values.view(expected.dtype), expected), frame.hex()
    return "accepted"


SCALES = [0, 1, 0x7FFFFF, 0x800000, 0x17800000, 0x177FFFFF, 0x3F800000, 0x7F7FFFFF, 0x7FC00000]
IMPOSSIBLE = [0x80000000, 0x80000001, 0x97800000, 0xBF800000, 0xFF7FFFFF, 0xFF800000, 0xFFC00000, 0x7F800000]
IMPOSSIBLE += [0x7F800001, 0x7FBFFFFF, 0x7FC00001, 0x7FFFFFFF, 0xFFFFFFFF]


@pytest.mark.parametrize("n", [3, 5120])
@pytest.mark.parametrize("bits", SCALES + IMPOSSIBLE, ids=hex)
def test_scales(bits: int, n: int) -> None:
    """Of a frame whose checksum and header are right: refused, or decoded as the page says by every path."""
    for codec, levels in SOME_CODERS:
        frame = small(n, codec=codec, levels=levels, bucket_size=512)
        for place in {96, 96 + 4 * ((n - 1) // 512)}:  # the first, the last
            outcome = compare_outcomes(reseal(frame[:place] + struct.pack("<I", bits) + frame[place + 4 :]))
            assert outcome == ("accepted" if bits in SCALES else "6")


def mutate(rng: np.random.Generator) -> bytes:
    names = list(FRAMES)
    frame = bytearray(FRAMES[names[rng.integers(len(names))]])
    kind = rng.integers(6)
    if kind == 0:  # a header field
        field = list(HOSTILE)[rng.integers(len(HOSTILE))]
        frame = bytearray(forge(bytes(frame), **{field: HOSTILE[field][rng.integers(len(HOSTILE[field]))]}))
    elif kind == 1:  # length
        frame = frame[: rng.integers(len(frame) + 1)] if rng.integers(2) else frame + rng.bytes(rng.integers(1, 40))
    elif kind == 2:  # the front of one, the back of another
        frame = frame[: 8 * rng.integers(12, 16)] + FRAMES[names[rng.integers(len(names))]][8 * rng.integers(12, 16) :]
    elif kind == 3 and len(frame) > 100:  # a scale
        frame[96:100] = struct.pack("<I", rng.choice([*SCALES, *IMPOSSIBLE]))
    for _ in range(rng.integers(1 if kind > 3 else 0, 4)):
        if frame:
            at = rng.integers(96 if kind == 4 else 0, max(len(frame), 97)) % len(frame)
            frame[at] ^= 1 << rng.integers(8)
    return reseal(frame) if len(frame) >= 96 and rng.integers(8) else bytes(frame)


@pytest.mark.parametrize("part", range(10))
def test_mutated_frames(part: int) -> None:
    rng = np.random.default_rng([9, part])
    outcomes: Counter[str] = Counter()
    for _ in range(2000):
        outcomes[compare_outcomes(mutate(rng))] += 1
    every = ("1", "2", "3", "4", "6", "checksum", "payload", "trailing", "accepted")
    assert min(outcomes[key] for key in every) >= 10, outcomes
