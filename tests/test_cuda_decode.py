"""Sums that the CUDA kernels make: to the last bit the reference's, and the CPU kernels'; what they refuse."""

from __future__ import annotations

import ctypes
import itertools
import struct
from collections import Counter
from typing import Any

import numpy as np
import pytest
import reference as ref
import test_frame_checks as checks
from cuda_support import Buffer, cuda_kernels
from support import (
    BUCKETS,
    DTYPES,
    FIXED_CODERS,
    GUARD_BYTE,
    KINDS,
    NORMS,
    RefusedError,
    all_kernels,
    forge,
    make_input,
    make_spec,
    reseal,
    same_bits,
)
from test_kernels_bytes import FACTORS, at, expectation, frame_of

from hvd_qsgd import native
from hvd_qsgd.native_cuda import Draw, Verdict


def check_sum(codings: list[dict[str, Any]], n: int, dtype: str, factor: float, seed: int, offset: int = 0) -> None:
    """Of frames that the CPU makes; the CPU's sum is the reference's (test_kernels_bytes.py)."""
    cpu = all_kernels()[0]
    where = at(seed)
    frames = [
        cpu.encode(
            make_input(KINDS[(seed + rank) % len(KINDS)], n, dtype, seed=rank),
            dtype=dtype,
            **coding,
            **{**where, "rank": rank, "seed": rank + seed},
        )
        for rank, coding in enumerate(codings)
    ]
    expected = cpu.decode_sum(frames, factor=factor, **expectation(frames, dtype))
    values = cuda_kernels().decode_sum(frames, factor=factor, offset=offset, **expectation(frames, dtype))
    assert same_bits(values, expected), (n, dtype, factor, codings)


@pytest.mark.parametrize(("codec", "levels"), FIXED_CODERS)
def test_sum_of_frames_of_one_kind(codec: str, levels: int) -> None:
    cases = itertools.product((1, 2, 5), (1, 16, 64, 100, 512, 4096, None), (0, 1, 17, 513, 5000, 5121))
    for k, (ranks, bucket_size, n) in enumerate(cases):
        if (k + levels) % 3 == 0:
            same = {"codec": codec, "levels": levels, "bucket_size": bucket_size}
            codings = [{**same, "norm": NORMS[(k + r) % 2]} for r in range(ranks)]
            check_sum(codings, n, DTYPES[k // 3 % 3], FACTORS[k % len(FACTORS)], k, offset=k % 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_of_frames_of_many_kinds(dtype: str) -> None:
    """Also with subtractive dither."""
    rng = np.random.default_rng(len(dtype))
    for k, n in itertools.product(range(8), (1, 80, 513, 5121)):
        codings = []
        for _ in range(1 + k % 5):
            codec, levels = FIXED_CODERS[rng.integers(len(FIXED_CODERS))]
            bucket_size, subtractive = BUCKETS[rng.integers(len(BUCKETS))], bool(rng.integers(2))
            coding = {"codec": codec, "levels": levels, "bucket_size": bucket_size, "norm": NORMS[rng.integers(2)]}
            codings.append({**coding, "subtractive": subtractive})
        check_sum(codings, n, dtype, FACTORS[(k + n) % len(FACTORS)], k)


def test_sum_of_frames_of_several_widths() -> None:
    """Nothing else tells them from frames of one width."""
    for levels in ((7, 100), (100, 7), (3, 3, 1)):
        check_sum([{"levels": s, "bucket_size": 512} for s in levels], 1600, "float32", 0.5, 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors(dtype: str) -> None:
    for factor, seed in itertools.product(FACTORS, range(len(KINDS))):
        check_sum([{"levels": 7, "bucket_size": 512}, {"levels": 5, "bucket_size": 512}], 700, dtype, factor, seed)


@pytest.mark.parametrize("ranks", [31, 32, 33, 70, 600])
def test_sum_of_many_frames(ranks: int) -> None:
    """More than a warp looks at, and more than have room in shared memory; one of another length in between."""
    codings = [{"levels": 7, "bucket_size": 512} for _ in range(ranks)]
    check_sum(codings, 40, "float32", 0.5, 1)
    codings[ranks // 2] = {"levels": 100, "bucket_size": 16}
    check_sum(codings, 40, "float32", 0.5, 1)


def test_every_half_is_rounded_to() -> None:
    scales = np.exp2(np.random.default_rng(0).uniform(-26, 17, 40_000)).astype(np.float32)
    for dtype in ("float16", "bfloat16"):
        frame = frame_of(scales, 1, dtype)
        expected = all_kernels()[0].decode_sum([frame], count=scales.size, dtype=dtype)
        assert same_bits(cuda_kernels().decode_sum([frame], count=scales.size, dtype=dtype), expected)


def test_factor_and_step_from_memory() -> None:
    array = make_input("gaussian", 700)
    frame = ref.encode(array, levels=7, bucket_size=512, step=9)
    values = cuda_kernels().decode_sum([frame], count=700, step=1, factor=3.0, late_factor=0.5, draw=Draw(0, 9, 0))
    assert same_bits(values, ref.decode_sum([frame], count=700, dtype="float32", tensor=0, step=9, factor=0.5))
    with pytest.raises(RefusedError) as caught:
        cuda_kernels().decode_sum([frame], count=700, step=9, draw=Draw(0, 8, 0))
    assert (caught.value.status, caught.value.frame) == (34 - 1, 0)  # another step


# ---- what is refused ----


def outcome(kernels: Any, frames: list[bytes], **where: Any) -> Any:
    """The bits of the values, or status and frame."""
    try:
        return kernels.decode_sum(frames, **where).tobytes()
    except RefusedError as error:
        return error.status, error.frame


def compare_outcomes(frames: list[bytes], variable: bool = False, **where: Any) -> Any:
    found = outcome(cuda_kernels(variable), frames, **where)
    assert found == outcome(all_kernels()[0], frames, **where), (found, where)
    return found


FIXED = {name: frame for name, frame in checks.FRAMES.items() if not name.startswith(("rans", "elias", "onebit"))}


def where_of(frame: bytes) -> dict[str, Any]:
    header = ref.parse(frame)
    return {"count": header.count, "dtype": checks.DTYPE_NAMES[header.dtype], **checks.WHERE}


@pytest.mark.parametrize("name", FIXED)
def test_flipped_bits(name: str) -> None:
    """Of the header each third; of the rest some. With the right checksum, too."""
    frame, where = FIXED[name], where_of(FIXED[name])
    assert isinstance(compare_outcomes([frame], **where), tuple if name == "error" else bytes)
    for k in [*range(0, 768, 3), *range(768, 8 * len(frame), 41)]:
        flipped = bytearray(frame)
        flipped[k // 8] ^= 1 << k % 8
        for sent in (bytes(flipped), reseal(flipped)) if k % 2 else (bytes(flipped),):
            if ref.parse(sent).codec < 3:
                assert isinstance(compare_outcomes([sent], **where), tuple) or sent != bytes(flipped)


@pytest.mark.parametrize("name", FIXED)
def test_lengths(name: str) -> None:
    frame, where = FIXED[name], where_of(FIXED[name])
    for size in range(0, len(frame), 7):
        if size:
            assert compare_outcomes([frame[:size]], **where) == (10, 0)
    for more in (b"\0", b"\0" * 16, frame):
        assert name == "error" or compare_outcomes([frame + more], **where) == (36, 0)


@pytest.mark.parametrize("field", checks.HOSTILE)
def test_hostile_headers(field: str) -> None:
    for value in checks.HOSTILE[field]:
        if (field, value) != ("codec", 3):
            frame = forge(checks.TARGET, **{field: value})
            assert isinstance(compare_outcomes([frame], count=600, **checks.WHERE), tuple)
            assert isinstance(compare_outcomes([frame + bytes(4096)], count=600, **checks.WHERE), tuple)


@pytest.mark.parametrize("n", [3, 5120])
@pytest.mark.parametrize("bits", checks.SCALES + checks.IMPOSSIBLE, ids=hex)
def test_scales(bits: int, n: int) -> None:
    for codec, levels in (("packed", 7), ("ternary", 1)):
        frame = checks.small(n, codec=codec, levels=levels, bucket_size=512)
        for place in {96, 96 + 4 * ((n - 1) // 512)}:
            sent = reseal(frame[:place] + struct.pack("<I", bits) + frame[place + 4 :])
            found = compare_outcomes([sent], **where_of(frame))
            assert found == (22, 0) if bits in checks.IMPOSSIBLE else isinstance(found, bytes)


def test_the_first_check_that_fails_and_its_first_frame() -> None:
    """Frames that fail different checks, or the same one, in every order."""
    good = [checks.small(600, bucket_size=512, rank=rank, seed=rank) for rank in range(3)]
    damaged = [frame[:-1] + bytes([frame[-1] ^ 1]) for frame in good]
    scale = [reseal(frame[:99] + b"\xff" + frame[100:]) for frame in good]
    step = [forge(frame, step=8) for frame in good]
    magic = [b"X" + frame[1:] for frame in good]
    error = [ref.error_frame("no", count=600, dtype="float32", rank=rank, **checks.WHERE) for rank in range(3)]
    kinds = [good, damaged, scale, step, magic, error]
    found = set()
    for chosen in itertools.product(range(len(kinds)), repeat=3):
        result = compare_outcomes([kinds[kind][rank] for rank, kind in enumerate(chosen)], count=600, **checks.WHERE)
        found.add(result if isinstance(result, tuple) else None)
    statuses = {(status, frame) for status in (11, 21, 22, 33, 35) for frame in range(3)}
    assert found == {None, *statuses}


@pytest.mark.parametrize(("codec", "levels"), FIXED_CODERS)
def test_any_payload_decodes_as_the_page_says(codec: str, levels: int) -> None:
    rng = np.random.default_rng(levels)
    for n, dtype in ((2561, "float32"), (80, "float16"), (600, "bfloat16")):
        made = [checks.small(n, codec=codec, levels=levels, dtype=dtype, bucket_size=512, rank=r) for r in range(2)]
        start = ref.layout(ref.CODECS[codec], levels, n, 512)[1]
        hostile = [reseal(frame[:start] + rng.bytes(len(frame) - start)) for frame in made]
        expected = ref.decode_sum(hostile, count=n, dtype=dtype, **checks.WHERE)
        assert same_bits(cuda_kernels().decode_sum(hostile, count=n, dtype=dtype, **checks.WHERE), expected)


def test_mutated_frames() -> None:
    rng = np.random.default_rng(3)
    outcomes = Counter()
    for _ in range(1500):
        frame = checks.mutate(rng)
        if len(frame) < 96 or ref.parse(frame).codec > 2:
            continue
        header = ref.parse(frame)
        where = {"tensor": header.tensor, "step": header.step, "first_rank": header.rank}
        where["dtype"] = checks.DTYPE_NAMES.get(header.dtype, "float32")
        found = compare_outcomes([frame], count=header.count if header.count < 10**6 else 3, **where)
        outcomes[found[0] if isinstance(found, tuple) else 0] += 1
    assert min(outcomes[status] for status in (0, 10, 20, 22, 35, 36)) >= 5, outcomes


@pytest.mark.parametrize(("codec", "levels"), [("rans", 7), ("elias-dense", 7), ("onebit", 1)])
def test_codecs_that_no_memory_or_no_kernel_is_for(codec: str, levels: int) -> None:
    array = make_input("gaussian", 600)
    plain = ref.encode(array, levels=7, bucket_size=512)
    frames = [plain, ref.encode(array, codec=codec, levels=levels, bucket_size=512)]
    with pytest.raises(RefusedError) as caught:
        cuda_kernels().decode_sum(frames, count=600)
    assert (caught.value.status, caught.value.frame) == (13, 1)
    spec = make_spec(600, codec=codec, levels=levels, bucket_size=512)
    status = cuda_kernels().c.qsgd_cuda_encode_scratch(spec, ctypes.c_uint64())
    assert status == (1 if codec == "onebit" else 0)


def test_wrong_arguments() -> None:
    c, room, more = cuda_kernels().c, ctypes.c_uint64(), ctypes.c_uint64()
    assert [c.qsgd_cuda_decode_scratch(*wrong) for wrong in ((0, room), (1, None))] == [1, 1]
    wrong = ((600, 0, room), (600, 1, None), (2**48 + 1, 1, room), (600, 2**25, room))
    assert [c.qsgd_cuda_decode_scratch_variable(*each) for each in wrong] == [1] * 4
    assert c.qsgd_cuda_decode_scratch(1, room) == c.qsgd_cuda_decode_scratch_variable(600, 1, more) == native.OK
    assert room.value < more.value
    frame = ref.encode(np.ones(600, np.float32), levels=7, bucket_size=512)
    frames, out, verdict, work = Buffer(frame), Buffer(2400), Buffer(ctypes.sizeof(Verdict)), Buffer(room.value)
    right = {
        "frames": frames.address, "bytes": len(frame), "count": 1, "expected": native.Expectation(600, 0, 0, 1, 0),
        "factor": 1.0, "late": None, "out": out.address, "verdict": verdict.address, "scratch": work.address,
        "room": room.value,
    }  # fmt: skip

    def decode(**wrong: Any) -> int:
        return int(c.qsgd_cuda_decode_sum(*{**right, **wrong}.values(), None))

    for name, value in (
        ("frames", None), ("frames", frames.address + 4), ("count", 0), ("expected", None),
        ("expected", native.Expectation(600, 0, 0, 0, 0)), ("expected", native.Expectation(600, 0, 0, 4, 0)),
        ("out", None), ("out", out.address + 2), ("verdict", None), ("verdict", verdict.address + 2),
        ("scratch", None), ("scratch", work.address + 4), ("room", room.value - 1),
    ):  # fmt: skip
        assert decode(**{name: value}) == 1, (name, value)
    assert out.read() == bytes([GUARD_BYTE]) * 2400  # nothing was done
    assert decode() == native.OK
    assert Verdict.from_buffer_copy(verdict.read()).status == native.OK
    assert out.read() == np.ones(600, np.float32).tobytes()
