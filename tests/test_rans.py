"""The rans codec: large tensors and matrices against the reference, its lengths, payloads that no encoder writes."""

from __future__ import annotations

import ctypes
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import reference as ref
import reference_rans
from support import Array, RefusedError, all_kernels, forge, make_input, reseal, same_bits

import hvd_qsgd
from hvd_qsgd import native

MODES = {0: "one class", 1: "unit classes", 2: "column classes"}


def matrix(rows: int, columns: int, spread: float, seed: int = 0) -> Array:
    """Gaussian values whose rows and columns are of different scales; some columns and rows are zero."""
    rng = np.random.default_rng([seed, rows, columns])
    scales = np.exp(spread * rng.standard_normal((rows, 1))) * np.exp(spread * rng.standard_normal(columns))
    values = rng.standard_normal((rows, columns)) * scales
    if spread:
        values[:, rng.random(columns) < 0.2] = 0
        values[rng.random(rows) < 0.1] = 0
    return values.astype(np.float32).ravel()


def codes_of(array: Array, how: dict[str, Any]) -> Array:
    d = how["bucket_size"] or array.size
    scales = ref.scales_of(array, d, how["norm"])
    return ref.quantize(array, scales, d, how["levels"], ref.random_bits(array.size, 0, 0, 0, 0))


def compare(array: Array, how: dict[str, Any]) -> bytes:
    """The frame, on every instruction set, and its values."""
    frame = ref.encode(array, codec="rans", **how)
    values = ref.decode_sum([frame], count=array.size, dtype="float32", tensor=0, step=0)
    for kernels in all_kernels():
        assert kernels.encode(array, codec="rans", **how) == frame, (kernels.isa, how)
        assert same_bits(kernels.decode_sum([frame], count=array.size), values), (kernels.isa, how)
    return frame


# 127 and 128 units, 255, 256 and 257: one stream or four, one stretch or two.
@pytest.mark.parametrize("n", [65_000, 65_024, 65_025, 65_535, 65_536, 131_071, 131_072, 131_073, 200_000])
def test_streams_and_stretches(n: int) -> None:
    kinds = itertools.cycle(("gaussian", "sparse", "mixed", "patchwork", "zeros"))
    for levels, bucket_size in ((7, 512), (300, None), (32767, 65536)):
        compare(make_input(next(kinds), n), {"levels": levels, "bucket_size": bucket_size, "norm": "max"})


def test_matrices() -> None:
    """All modes are met, with and without escapes and low bits, where rows begin in the middle of a vector.
    Every two of shape, spread and levels meet."""
    modes: Counter[int] = Counter()
    shapes = ((150, 784), (1000, 16), (700, 17), (64, 1000), (20, 4096))
    for (k, (rows, columns)), (j, spread) in itertools.product(enumerate(shapes), enumerate((0.0, 1.0, 2.5))):
        levels = (7, 800, 32767)[(k + j) % 3]
        bucket_size, norm = (512, "max") if levels == 7 else (None, "l2")
        how = {"levels": levels, "bucket_size": bucket_size, "norm": norm, "columns": columns}
        modes[ref.payload_in(compare(matrix(rows, columns, spread), how))[0]] += 1
    assert set(modes) == set(MODES)


def test_columns_must_save_a_64th() -> None:
    rng = np.random.default_rng(1)
    values, scales = rng.standard_normal((1000, 64)), rng.standard_normal(64)
    how = {"levels": 7, "bucket_size": 512, "norm": "max", "columns": 64}
    for spread, mode in ((0.3, 0), (0.35, 2)):  # they save 1.4 and 2.5 %
        frame = compare((values * np.exp(spread * scales)).astype(np.float32).ravel(), how)
        assert ref.payload_in(frame)[0] == mode


def test_threads_make_no_difference() -> None:
    n = 3 * 2**20 + 12345
    for kind, levels, bucket_size in (("gaussian", 7, 512), ("sparse", 5000, None)):
        array = make_input(kind, n)
        how = {"codec": "rans", "levels": levels, "bucket_size": bucket_size, "columns": 1000}
        frames = {kernels.encode(array, threads=threads, **how) for kernels in all_kernels()[:2] for threads in (1, 3)}
        assert len(frames) == 1
        frame = frames.pop()
        plain = all_kernels()[0].encode(array, **{**how, "codec": "packed"}) if levels == 7 else None
        for kernels, threads in itertools.product(all_kernels()[:2], (1, 3)):
            values = kernels.decode_sum([frame], count=n, threads=threads)
            if plain:
                assert same_bits(values, kernels.decode_sum([plain], count=n))
        assert len(frame) < 0.6 * n


def entropy(codes: Array) -> float:
    _, counts = np.unique(codes, return_counts=True)
    p = counts / codes.size
    return float(-(p * np.log2(p)).sum())


@pytest.mark.parametrize("noise", ["normal", "laplace"])
@pytest.mark.parametrize(("levels", "bucket_size", "norm"), [(7, 512, "max"), (127, 512, "max"), (1700, None, "l2")])
def test_length_on_noise(noise: str, levels: int, bucket_size: int | None, norm: str) -> None:
    """Near the entropy of the codes, where no model can do better: with s = 127 three bits are sent as they are."""
    n = 2**20
    array = getattr(np.random.default_rng(1), noise)(size=n).astype(np.float32)
    how = {"levels": levels, "bucket_size": bucket_size, "norm": norm}
    payload = ref.payload_in(all_kernels()[0].encode(array, codec="rans", columns=1024, **how))
    assert 8 * len(payload) / n < entropy(codes_of(array, how)) + (0.06 if levels == 127 else 0.05)


def test_length_where_zeros_cluster() -> None:
    """Below the entropy of the codes taken one by one."""
    array, how = matrix(1500, 784, 1.0), {"levels": 1500, "bucket_size": None, "norm": "l2"}
    frame = all_kernels()[0].encode(array, codec="rans", columns=784, **how)
    assert 8 * len(frame) / array.size < 0.8 * entropy(codes_of(array, how))


def test_columns() -> None:
    shapes = {
        (): 0, (5,): 0, (1, 9): 0, (9, 1): 0, (3, 4): 4, (4096, 784): 784, (784, 4096): 4096, (64, 3, 5, 5): 75,
        (3, 3, 64, 128): 128, (8, 8, 8): 64, (0, 7): 0, (1, 1, 6, 1, 7): 7,
    }  # fmt: skip
    assert {shape: native.columns(shape) for shape in shapes} == shapes


# ---- padding ----


def test_padding() -> None:
    array = make_input("gaussian", 5000)
    frame = hvd_qsgd.encode(array, codec="rans", levels=100)
    room = np.zeros(len(frame) + 4096, np.uint8)
    room[: len(frame)] = np.frombuffer(frame, np.uint8)
    for size in (len(frame) + 4096, len(frame) + 16, len(frame)):
        native.pad(room.ctypes.data, room.size, size)
        padded = room[:size].tobytes()
        assert hvd_qsgd.inspect(padded).frame_bytes == size
        assert padded == ref.seal(ref.parse(frame), frame[96 : ref.parse(frame).coded_bytes], size)
        assert same_bits(hvd_qsgd.decode(padded), hvd_qsgd.decode(frame))
    for wrong in (len(frame) - 16, len(frame) + 8, len(frame) + 8192):
        with pytest.raises(hvd_qsgd.QSGDError):
            native.pad(room.ctypes.data, room.size, wrong)
    packed = np.frombuffer(hvd_qsgd.encode(array), np.uint8).copy()
    with pytest.raises(hvd_qsgd.QSGDError):
        native.pad(packed.ctypes.data, packed.size, packed.size)


def test_padded_sizes_stay_put() -> None:
    rng = np.random.default_rng(0)
    for size in (96, 1000, 12_345, 10**6, 10**9):
        last, changes = 0, 0
        for needed in (16 * (size * rng.uniform(0.99, 1.01, 200) / 16).astype(int)).tolist():
            padded = native.library().qsgd_padded_bytes(needed, last)
            assert needed <= padded <= 1.2 * needed + 16
            assert padded % 16 == 0
            changes += padded != last
            last = padded
        assert changes <= 2
        assert native.library().qsgd_padded_bytes(size // 2 // 16 * 16, last) < last


# ---- payloads that no encoder writes ----


def outcome(frame: bytes, count: int) -> Array | None:
    try:
        return ref.decode_sum([frame], count=count, dtype="float32", tensor=0, step=0)
    except ref.FrameError as error:
        if error.check not in ("payload", "2"):
            raise
        return None


def check_as_the_reference(frame: bytes, count: int) -> bool:
    """Whether the frame is accepted; all kernels do as the reference does."""
    expected = outcome(frame, count)
    for kernels in all_kernels():
        if expected is None:
            with pytest.raises(RefusedError) as caught:
                kernels.decode_sum([frame], count=count, offset=1)
            assert caught.value.status in (20, 23)
        else:
            assert same_bits(kernels.decode_sum([frame], count=count, offset=1), expected), kernels.isa
    return expected is not None


def small_frames() -> list[tuple[bytes, int]]:
    wide = {"levels": 900, "bucket_size": None, "norm": "l2"}
    return [
        (ref.encode(make_input("gaussian", 40), codec="rans", levels=7, bucket_size=512), 40),
        (ref.encode(make_input("zeros", 2000), codec="rans", levels=3, bucket_size=512), 2000),
        (ref.encode(matrix(64, 20, 2.0), codec="rans", columns=20, **wide), 1280),
    ]


@pytest.mark.parametrize("k", range(3))
def test_flipped_bits_of_a_payload(k: int) -> None:
    """Every one of its head, and some of its streams, with a checksum that is right."""
    frame, count = small_frames()[k]
    h, payload, accepted = ref.parse(frame), ref.payload_in(frame), 0
    start = h.coded_bytes - len(payload)
    _, streams = reference_rans.open_head(payload, count, -(-count // 512))
    head = 8 * (h.coded_bytes - len(streams) + 4)  # with the one stream's length
    others = np.random.default_rng(k).choice(range(head, 8 * h.coded_bytes), 300, replace=False).tolist()
    flips = len(bits := [*range(8 * start, head), *others])
    for bit in bits:
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        accepted += check_as_the_reference(reseal(flipped), count)
    assert accepted < flips / 2  # of bits that are sent as they are, and of unused classes


def test_payloads_of_other_lengths() -> None:
    for frame, count in small_frames():
        h = ref.parse(frame)
        for coded in range(ref.layout(5, h.levels, h.count, h.bucket_size)[1], h.coded_bytes):
            assert not check_as_the_reference(forge(frame, coded_bytes=coded), count)
        longer = forge(frame + bytes(32), coded_bytes=h.coded_bytes + 2, frame_bytes=h.frame_bytes + 32)
        assert not check_as_the_reference(longer, count)


def frame_with_stream(model: reference_rans.Model, words: bytes, states: Array, n: int) -> bytes:
    """Of one stream, in one bucket of scale 0."""
    stream = words + states.astype("<u4").tobytes()
    body = bytes(16) + reference_rans.head(model) + (len(words) // 2).to_bytes(4, "little") + stream
    header = ref.Header(codec=5, norm=1, dtype=1, levels=32767, count=n, bucket_size=2**20)
    return ref.seal(header, body)


def random_payloads(number: int) -> Iterator[tuple[bytes, int]]:
    """A good head before random streams: words run out, states do not fit, escapes everywhere."""
    rng = np.random.default_rng(5)
    kinds: list[tuple[int, tuple[int, ...], int]] = [(0, (100, 50, 20), 9), (3, (100, 50), 300), (11, (), 0)]
    tables = [reference_rans.Table(*kind) for kind in kinds]
    for _ in range(number):
        n = int(rng.integers(1, 1500))
        units = -(-n // 512)
        mode = int(rng.integers(3)) if n >= 20 else int(rng.integers(2))
        a = rng.integers(0, 16, units if mode else 0)
        model = reference_rans.Model(mode, tables, a, rng.integers(0, 12, 20 if mode == 2 else 0))
        words = int(rng.integers(0, 2000))
        states = rng.integers(2**15, 2**31, 16)
        yield frame_with_stream(model, rng.bytes(2 * words), states, n), n


def ends_of_streams() -> list[tuple[bytes, bool]]:
    """A unit of zeros with frequency 512, half of all: a lane's state comes back to 2^15 every 16 rows, each time with
    the help of a word that is 0. Whether they are accepted."""
    nothing = np.zeros(0, int)

    def frame(frequencies: tuple[int, ...], words: bytes, last_state: int = 2**15) -> bytes:
        model = reference_rans.Model(0, [reference_rans.Table(0, frequencies, 0)], nothing, nothing)
        return frame_with_stream(model, words, np.array([2**15] * 15 + [last_state]), 512)

    half, all_of_it = (256,), ()
    return [
        (frame(half, bytes(64)), True),
        (frame(half, bytes(62)), False),  # as if there were zeros
        (frame(half, bytes(0)), False),
        (frame(half, bytes(66)), False),
        (frame(half, bytes(62), 2**30), False),
        (frame(half, bytes(62), 2**31), False),  # comes back to 2^15 once more than it should
        (frame(all_of_it, b""), True),  # with frequency 1024 states stay
        (frame(all_of_it, b"\0\x80", 0), False),  # the word makes up for the state
    ]


def test_ends_of_streams() -> None:
    for frame, accepted in ends_of_streams():
        assert check_as_the_reference(frame, 512) == accepted


def test_random_payloads() -> None:
    for frame, n in random_payloads(300):
        check_as_the_reference(frame, n)


def test_a_count_that_no_payload_can_have() -> None:
    """Nothing is allocated or walked through for what the header claims."""
    frame, _ = small_frames()[0]
    for count in (2**40, 2**48):
        h = ref.parse(frame)
        forged = forge(frame, count=count, bucket_size=count)
        size, data = ctypes.c_uint64(), np.frombuffer(forged, np.uint8)
        for kernels in all_kernels():
            assert kernels.c.qsgd_check(data.ctypes.data, data.size, ctypes.byref(size)) == 23
        assert h.count == 40
