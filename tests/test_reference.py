"""The reference is what everything else is compared with, so here it is compared with something slower still:
plain Python integers and fractions, one element at a time, and frames spelled out by hand."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import reference as ref

LENGTHS = [0, 1, 15, 16, 17, 79, 80, 81, 511, 512, 513, 1025]
CODECS = [("packed", 1), ("packed", 2), ("packed", 4), ("packed", 8), ("packed", 127), ("ternary", 1)]
FLT_MAX = float(ref.FLT_MAX)
TINY = 2.0**-149


def normal(n: int, scale: float = 1.0, seed: int = 7) -> ref.Array:
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


def decode(*frames: bytes, count: int, **other: Any) -> ref.Array:
    return ref.decode_sum(list(frames), count=count, **{"dtype": "float32", "tensor": 0, "step": 0, **other})


def bits_of(array: ref.Array) -> list[int]:
    return [int(x) for x in array.view(f"u{array.itemsize}")]


# ---- slower still ----


def f32(x: Fraction) -> Fraction:
    """Rounded to float32, ties to even, subnormals kept (as Python rounds a fraction); no overflow."""
    if x == 0:
        return x
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    exponent -= abs(x) < Fraction(2) ** exponent
    ulp = Fraction(2) ** (max(exponent, -126) - 23)
    return round(x / ulp) * ulp


def slow_random(i: int, seed: int, rank: int, tensor: int, step: int) -> int:
    z = (seed + (rank + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    z ^= z >> 31
    k0, k1 = z % 2**32, z // 2**32
    b, q = 16 * (i // 512) + i % 16, i // 16 % 32
    c = [b % 2**32, b // 2**32, tensor, step]
    for _ in range(10):
        left, right = 0xCD9E8D57 * c[2], 0xD2511F53 * c[0]
        c = [left >> 32 ^ c[1] ^ k0, left % 2**32, right >> 32 ^ c[3] ^ k1, right % 2**32]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    a = [0x1, 0x0019660D, 0x17385CA9, 0xAF490A95, 0x0979E791, 0xAA9D885D, 0xBF69FAB9, 0x6E587165]
    return c[q // 8] * a[q % 8] % 2**32 >> 8


def slow_code(v: float, scale: float, s: int, r: int) -> int:
    if scale == 0:
        return 0
    scaled, vc = Fraction(scale), Fraction(v)
    if scale < 2.0**-80:
        scaled, vc = scaled * 2**64, vc * 2**64
    top = s * 2**24
    inv = f32(top / scaled)
    if f32(inv * scaled) < top:
        inv = Fraction(float(np.nextafter(np.float32(inv), np.float32(np.inf))))
    return (round(min(max(f32(vc * inv), Fraction(-top)), Fraction(top))) + r) // 2**24


def slow_value(code: int, scale: float, s: int) -> Fraction:
    c = 1 if scale >= 2.0**-80 else 2**64
    unit = f32(Fraction(scale) * c / s)
    if f32(s * unit) >= 2**128:
        unit = Fraction(float(np.nextafter(np.float32(unit), np.float32(0))))
    return f32(f32(code * unit) / c)


def slow_sum(values: ref.Array) -> float:
    sums = []
    for start in range(0, len(values), 4096):
        a = [0.0] * 16
        for k, v in enumerate(values[start : start + 4096].tolist()):
            a[k % 16] += v * v
        for h in (8, 4, 2, 1):
            a = [a[i] + a[i + h] for i in range(h)]
        sums.append(a[0])
    return slow_tree(sums)


def slow_tree(sums: list[float]) -> float:
    while len(sums) > 1:
        sums = [sum(sums[k : k + 2]) for k in range(0, len(sums), 2)]
    return sums[0] if sums else 0.0


def slow_checksum(frame: bytes) -> int:
    total = 0
    for k in range(len(frame) // 8):
        x = int.from_bytes(frame[8 * k : 8 * k + 8], "little") ^ (k + 1) * 0x9E3779B97F4A7C15 % 2**64
        total += (x % 2**32) * (x // 2**32) + x if k != 11 else 0
    return total % 2**64


def edit(frame: bytes, offset: int, data: bytes, reseal: bool = True) -> bytes:
    frame = frame[:offset] + data + frame[offset + len(data) :]
    return frame[:88] + struct.pack("<Q", slow_checksum(frame)) + frame[96:] if reseal else frame


# ---- frames by hand ----


def test_packed_frame_by_hand() -> None:
    """Four values whose codes are certain: a word for each of 16 lanes, a code in its two low bits."""
    frame = ref.encode([2.0, -2.0, 0.0, -0.0], levels=1, bucket_size=None, seed=5, rank=1, tensor=3, step=4)
    expected = struct.pack("<4s4B2I3Q4I2Q16x", b"QSGD", 1, 1, 1, 1, 0, 1, 4, 4, 5, 1, 3, 4, 0, 176, 176)
    expected += bytes(8) + struct.pack("<f12x", 2.0) + bytes([1, 0, 0, 0, 3]) + bytes(59)
    assert frame[:88] == expected[:88]
    assert frame[96:] == expected[96:]
    assert int.from_bytes(frame[88:96], "little") == slow_checksum(frame)
    other = ref.encode(np.zeros(4), levels=4, bucket_size=2, rank=0, tensor=3, step=4)
    assert decode(other, frame, count=4, tensor=3, step=4, factor=0.5).tolist() == [1.0, -1.0, 0.0, 0.0]


def test_ternary_frame_by_hand() -> None:
    """17 values: lane 0 has two rows; digit 1 wherever the code is 0, so an empty byte is 121."""
    frame = ref.encode([3.0, -3.0] + [0.0] * 14 + [-3.0], codec="ternary", levels=1, bucket_size=16)
    assert struct.unpack_from("<2f", frame, 96) == (3.0, 3.0)
    assert list(frame[112:]) == [2 + 0 * 3 + 9 + 27 + 81, 0 + 3 + 9 + 27 + 81] + [121] * 14
    assert decode(frame, count=17).tolist() == [3.0, -3.0] + [0.0] * 14 + [-3.0]


def test_squared_norm_by_hand() -> None:
    frame = ref.encode([3.0, 4.0, 12.0], levels=1, bucket_size=2, norm="l2", squared_norm=True)
    assert frame[8:12] == b"\1\0\0\0"
    assert struct.unpack_from("<d", frame, 72) == (169.0,)
    assert struct.unpack_from("<2f", frame, 96) == (5.0, 12.0)
    assert ref.decode_codes(frame)[2] == 1
    frame = ref.encode([3.0, np.inf], levels=1, bucket_size=1, squared_norm=True)
    assert struct.unpack_from("<Q", frame, 72) == (0x7FF8000000000000,)


def test_empty_frame() -> None:
    frame = ref.encode([], levels=3, bucket_size=None, squared_norm=True)
    assert len(frame) == 96
    assert struct.unpack_from("<5Q", frame, 56) == (96, 96, 0, 0, slow_checksum(frame))
    assert ref.parse(frame).bucket_size == 1


def test_error_frame() -> None:
    frame = ref.error_frame("out of mémoire", count=10**9, dtype="float16", rank=0, tensor=9, step=8)
    assert frame[:64] == struct.pack("<4s4B2I3Q4IQ", b"QSGD", 1, 0, 0, 2, 0, 0, 10**9, 0, 0, 0, 9, 8, 0, 111)
    assert len(frame) == 112
    with pytest.raises(ref.FrameError, match="out of mémoire") as caught:
        decode(frame, count=2)
    assert caught.value.check == "4"
    long = ref.error_frame("x" + "é" * 999, count=0, dtype="float32", rank=0, tensor=0, step=0)
    assert ref.parse(long).coded_bytes == 96 + 1 + 2 * 511  # no half é


# ---- each part against plain Python ----


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([2**32 - 1] * 4, (2**32 - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], (0xA4093822, 0x299F31D0),
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)  # fmt: skip
def test_philox_known_answers(counter: list[int], key: tuple[int, int], expected: str) -> None:
    """The known answers of Salmon et al.'s Random123."""
    assert " ".join(f"{int(word):08x}" for word in ref.philox4x32_10(counter, key)) == expected


@pytest.mark.parametrize("first", [0, 1, 511, 512, 4000, 2**37 - 100])
def test_random_bits(first: int) -> None:
    where = {"seed": 2**64 - 3, "rank": 2**32 - 1, "tensor": 2**31 + 5, "step": 77}
    expected = [slow_random(i, **where) for i in range(first, first + 600)]
    assert ref.random_bits(600, first=first, **where).tolist() == expected


def test_random_bits_depend_on_everything() -> None:
    base = {"seed": 1, "rank": 1, "tensor": 1, "step": 1}
    streams = [base] + [{**base, name: 2} for name in base]
    assert len({ref.random_bits(8, **where).tobytes() for where in streams}) == 5


@pytest.mark.parametrize("n", [0, 1, 16, 100, 4095, 4096, 4097, 5 * 4096 + 3, 70 * 4096])
def test_sum_of_squares(n: int) -> None:
    values = normal(n, 3.7)
    assert ref.sum_of_squares(values) == slow_sum(values)  # to the last bit
    assert ref.sum_of_squares(values) == pytest.approx(np.square(values.astype(np.float64)).sum(), rel=1e-13)
    buckets = [slow_sum(values[start : start + 777]) for start in range(0, n, 777)]
    assert ref.sum_of_squares(values, 777) == slow_tree(buckets)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 37, 1000])
def test_pairwise_tree(n: int) -> None:
    sums = np.exp2(np.random.default_rng(n).uniform(0, 20, n))
    assert ref.pairwise_tree(sums) == slow_tree(sums.tolist())


def test_order_of_the_sum_matters() -> None:
    """Else the test above could not tell one order from another."""
    values = normal(5 * 4096 + 3, 3.7)
    assert ref.sum_of_squares(values) != float(np.square(values.astype(np.float64)).cumsum()[-1])


@pytest.mark.parametrize("n", LENGTHS[1:])
def test_l2_scale(n: int) -> None:
    values = normal(n)
    (scale,) = ref.scales_of(values, n, "l2")
    assert scale == np.float32(np.sqrt(slow_sum(values)))
    assert scale == pytest.approx(np.linalg.norm(values.astype(np.float64)), rel=2.0**-23)


@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize(("codec", "levels"), CODECS)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 2.0**-80, 1e-40, FLT_MAX / 16, FLT_MAX])
def test_codes_and_values(norm: str, codec: str, levels: int, scale: float) -> None:
    """Every scale, code and value against fractions, from the subnormals to FLT_MAX."""
    values = np.clip(normal(100, scale / 3).astype(np.float64), -scale, scale).astype(np.float32)
    values[7] = scale
    frame = ref.encode(values, codec=codec, levels=levels, bucket_size=33, norm=norm, seed=11, rank=0, tensor=2, step=3)
    scales = np.repeat(ref.scales_in(frame), 33)[:100].tolist()
    for j in range(0, 100, 33):
        bucket = values[j : j + 33]
        root = min(np.sqrt(slow_sum(bucket)), FLT_MAX)
        largest = float(np.abs(bucket).max())
        assert scales[j] == (largest if norm == "max" else max(float(np.float32(root)), largest))
    codes = [slow_code(v, scales[i], levels, slow_random(i, 11, 0, 2, 3)) for i, v in enumerate(values.tolist())]
    assert ref.decode_codes(frame).tolist() == codes
    expected = [slow_value(code, scales[i], levels) for i, code in enumerate(codes)]
    assert [Fraction(x) for x in decode(frame, count=100, tensor=2, step=3).tolist()] == expected


@pytest.mark.parametrize("levels", [1, 2, 3, 7, 100, 127])
def test_no_random_bits_move_a_maximum(levels: int) -> None:
    """R = 0 would turn an x just below s into s - 1, and the largest R an x just above -s into -s + 1."""
    scales = np.concatenate([np.abs(normal(1000)), np.exp2(np.arange(-149, 128, dtype=np.float32))])
    for r in (0, 2**24 - 1):
        bits = np.full(scales.size, r, np.uint32)
        assert (ref.quantize(scales, scales, 1, levels, bits) == levels).all()
        assert (ref.quantize(-scales, scales, 1, levels, bits) == -levels).all()
        assert (ref.quantize(0 * scales, scales, 1, levels, bits) == 0).all()
        assert (ref.quantize(0 * scales, 0 * scales, 1, levels, bits) == 0).all()


@pytest.mark.parametrize(
    ("v", "t"),
    [(0.5, 0), (0.75, 1), (1.5, 2), (2.5, 2), (2.75, 3), (-0.5, 0), (-0.75, -1), (-1.5, -2), (-2.5, -2)],
)
def test_ties_to_even(v: float, t: int) -> None:
    """v is in units of 2^-24 of the scale, and t is what it is rounded to."""

    def code(r: int) -> int:
        one = np.ones(1, np.float32)
        return int(ref.quantize(one * np.float32(v * 2.0**-24), one, 1, 1, np.array([r], np.uint32))[0])

    if t >= 0:
        assert code(2**24 - 1 - t) == 0
        assert t == 0 or code(2**24 - t) == 1
    else:
        assert (code(-t - 1), code(-t)) == (-1, 0)


@pytest.mark.parametrize(("codec", "levels"), [*CODECS, ("packed", 3), ("packed", 31), ("packed", 63)])
@pytest.mark.parametrize("n", LENGTHS)
def test_payload(codec: str, levels: int, n: int) -> None:
    codes = np.random.default_rng(n).integers(-levels, levels + 1, n)
    kind = ref.CODECS[codec]
    payload = ref.pack(codes, kind, levels)
    assert len(payload) == ref.payload_bytes(kind, levels, n)
    assert len(payload) % 16 == 0
    assert ref.unpack(payload, kind, levels, n).tolist() == codes.tolist()
    if codec == "ternary":
        expected = bytearray([121] * len(payload))
        for i, code in enumerate(codes.tolist()):
            expected[16 * (i // 80) + i % 16] += code * 3 ** (i // 16 % 5)
    else:
        b = {1: 2, 2: 3, 3: 3, 4: 4, 8: 5, 31: 6, 63: 7, 127: 8}[levels]
        expected = bytearray(len(payload))
        for i, code in enumerate(codes.tolist()):
            for k in range(b):
                w, bit = divmod(i // 16 % 32 * b + k, 32)
                expected[64 * (b * (i // 512) + w) + 4 * (i % 16) + bit // 8] |= (code >> k & 1) << bit % 8
    assert payload == bytes(expected)


def test_numbers_that_no_encoder_writes() -> None:
    """Beyond ±s, and ternary bytes above 242, are taken as the page says."""
    assert ref.unpack(bytes([0b10]) + bytes(63), 1, 1, 1).tolist() == [-2]
    assert ref.unpack(b"\x80" + bytes(63), 1, 127, 1).tolist() == [-128]
    assert ref.unpack(bytes([255]) + bytes(15), 2, 1, 80)[::16].tolist() == [-1, 0, 0, -1, -1]


def test_checksum() -> None:
    data = np.random.default_rng(1).bytes(4096)
    assert ref.checksum(data) == slow_checksum(data)
    assert ref.checksum(b"\xff" * 96) == slow_checksum(b"\xff" * 96)


# ---- what comes out ----


def some_input(dtype: str, n: int) -> tuple[ref.Array, ref.Array]:
    """The array as encode takes it, and its values in float32."""
    values = normal(n)
    if dtype == "bfloat16":
        array = (values.view(np.uint32) >> 16).astype(np.uint16)
        return array, (array.astype(np.uint32) << 16).view(np.float32)
    return values.astype(dtype), values.astype(dtype).astype(np.float32)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_round_trip(n: int, dtype: str) -> None:
    array, values = some_input(dtype, n)
    slack = {"float32": 2.0**-21, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    for codec, levels in CODECS:
        for bucket_size in (1, 16, 100, None):
            frame = ref.encode(
                array,
                codec=codec,
                levels=levels,
                bucket_size=bucket_size,
                dtype=dtype,
                seed=n,
                squared_norm=True,
            )
            assert len(frame) == ref.parse(frame).frame_bytes
            result = decode(frame + b"next", count=n, dtype=dtype)
            assert result.dtype == array.dtype
            if dtype == "bfloat16":
                result = (result.astype(np.uint32) << 16).view(np.float32)
            scales = np.repeat(ref.scales_in(frame), bucket_size or max(n, 1))[:n]
            assert (np.abs(result.astype(np.float32) - values) <= scales * (1 / levels + slack)).all()


@pytest.mark.parametrize(("codec", "levels"), CODECS)
def test_maxima_and_zeros_are_certain(codec: str, levels: int) -> None:
    """|v| = M gives ±s, v = 0 gives 0, whatever M and the random bits are."""
    n = 3000
    magnitude = np.exp2(np.random.default_rng(3).uniform(-149, 127.99, n // 3))
    values = np.stack([magnitude, -magnitude, 0 * magnitude], axis=1).astype(np.float32).ravel()
    frame = ref.encode(values, codec=codec, levels=levels, bucket_size=3)
    assert (ref.decode_codes(frame).reshape(-1, 3) == [levels, -levels, 0]).all()
    result = decode(frame, count=n).reshape(-1, 3)
    assert np.isfinite(result).all()
    assert result[:, 0] == pytest.approx(values[0::3], rel=2.0**-22, abs=TINY)


def test_unbiased() -> None:
    """The mean over 400 steps of 0.3·M: within 4 standard deviations, which is 0.3 %."""
    values = np.full(512, 0.3, np.float32)
    values[0] = 1
    codes = [ref.decode_codes(ref.encode(values, levels=1, bucket_size=None, step=t))[1:] for t in range(400)]
    assert np.mean(codes) == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / (400 * 511)))
    assert np.std(np.mean(codes, axis=0)) == pytest.approx(np.sqrt(0.21 / 400), rel=0.15)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("dtype", "nan"), [("float32", 0x7FC00000), ("float16", 0x7E00), ("bfloat16", 0x7FC0)])
@pytest.mark.parametrize("norm", ["max", "l2"])
def test_nan_and_infinity(bad: float, dtype: str, nan: int, norm: str) -> None:
    """They spoil their bucket and no other."""
    values = np.array([1, 1, bad, -1, 0.0, 1], np.float32)
    array = (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else values.astype(dtype)
    frame = ref.encode(array, levels=7, bucket_size=2, dtype=dtype, norm=norm)
    assert struct.unpack_from("<I", frame, 100) == (0x7FC00000,)
    assert ref.decode_codes(frame)[2:4].tolist() == [0, 0]
    result = decode(frame, count=6, dtype=dtype)
    assert bits_of(result)[2:4] == [nan, nan]
    assert nan not in bits_of(result)[:2] + bits_of(result)[4:]


def test_subnormal_maximum() -> None:
    for size in (TINY, 3 * TINY, 2.0**-126 - TINY):
        values = np.array([size, -size, 0, size], np.float32)
        frame = ref.encode(values, levels=1, bucket_size=None)
        assert decode(frame, count=4).tolist() == values.tolist()


def test_near_flt_max() -> None:
    values = np.array([FLT_MAX, -FLT_MAX, FLT_MAX, 0], np.float32)
    for levels in range(1, 128):
        for norm in ("max", "l2"):
            frame = ref.encode(values, levels=levels, bucket_size=None, norm=norm)
            assert struct.unpack_from("<f", frame, 96) == (FLT_MAX,)
            assert decode(frame, count=4)[:3] == pytest.approx(values[:3], rel=2.0**-22)
    other = ref.encode(-values, levels=1, bucket_size=None, rank=2)
    second = ref.encode(values, levels=1, bucket_size=None, rank=1)
    first = ref.encode(values, levels=1, bucket_size=None)
    assert decode(first, second, other, count=4).tolist() == [np.inf, -np.inf, np.inf, 0]  # in rank order


@pytest.mark.parametrize(
    ("value", "float16", "bfloat16"),
    [
        (1.0, 0x3C00, 0x3F80),
        (1 + 2.0**-11, 0x3C00, 0x3F80),  # float16: a tie, down
        (1 + 3 * 2.0**-11, 0x3C02, 0x3F80),  # float16: a tie, up
        (1 + 2.0**-8, 0x3C04, 0x3F80),  # bfloat16: a tie, down
        (1 + 3 * 2.0**-8, 0x3C0C, 0x3F82),  # bfloat16: a tie, up
        (-(2.0**-25), 0x8000, 0xB300),
        (3 * 2.0**-25, 0x0002, 0x33C0),
        (65520.0, 0x7C00, 0x4780),
        (FLT_MAX, 0x7C00, 0x7F80),
        (-np.inf, 0xFC00, 0xFF80),
        (-np.nan, 0x7E00, 0x7FC0),
    ],
)
def test_narrow(value: float, float16: int, bfloat16: int) -> None:
    with np.errstate(over="ignore"):
        assert bits_of(ref.narrow(np.array([value], np.float32), "float16")) == [float16]
    assert bits_of(ref.narrow(np.array([value], np.float32), "bfloat16")) == [bfloat16]


def test_sum_is_in_rank_order_and_rounds_each_step() -> None:
    frames = [
        ref.encode([x], levels=1, bucket_size=None, rank=k, dtype="float32")
        for k, x in enumerate([2.0**24, 1.0, 1.0, -(2.0**24)])
    ]
    assert decode(*frames, count=1).tolist() == [0.0]  # in float64, or backwards, it is 2 or 1
    third = np.float32(1 / 3)
    assert decode(frames[0], count=1, factor=1 / 3).tolist() == [float(np.float32(2.0**24) * third)]


def test_frames_may_differ_in_all_but_what_must_agree() -> None:
    values = normal(600)
    frames = [
        ref.encode(values, levels=127, bucket_size=100, rank=0, seed=3),
        ref.encode(values, levels=3, bucket_size=None, rank=1, seed=4, norm="l2", squared_norm=True),
        ref.encode(values, codec="ternary", levels=1, bucket_size=1, rank=2),
    ]
    expected = np.zeros(600, np.float32)
    for rank, frame in enumerate(frames):
        expected += decode(edit(frame, 40, struct.pack("<I", 0)), count=600) if rank else decode(frame, count=600)
    assert decode(*frames, count=600).tolist() == expected.tolist()


def test_a_million_elements() -> None:
    n = 10**6 + 3
    values = normal(n)
    frame = ref.encode(values, levels=7, bucket_size=4096 + 512, norm="l2", squared_norm=True)
    assert np.abs(decode(frame, count=n) - values).max() <= ref.scales_in(frame).max() / 6.99


# ---- checks ----

GOOD = ref.encode(normal(3), codec="ternary", levels=1, bucket_size=2, tensor=6, step=7)
PACKED = ref.encode(normal(3), levels=4, bucket_size=2, tensor=6, step=7)
ERROR = ref.error_frame("no", count=3, dtype="float32", rank=0, tensor=6, step=7)
BAD = [
    ("1", "header", GOOD[:95]),
    ("1", "header", b""),
    ("1", "magic", edit(GOOD, 0, b"q")),
    ("1", "version", edit(GOOD, 4, b"\0")),
    ("1", "version", edit(GOOD, 4, b"\2")),
    ("1", "codec", edit(GOOD, 5, b"\7")),
    ("1", "norm", edit(GOOD, 6, b"\0")),
    ("1", "norm", edit(GOOD, 6, b"\3")),
    ("1", "norm", edit(ERROR, 6, b"\1")),
    ("1", "dtype", edit(GOOD, 7, b"\0")),
    ("1", "dtype", edit(GOOD, 7, b"\4")),
    ("1", "flags", edit(GOOD, 8, b"\4")),
    ("1", "flags", edit(GOOD, 11, b"\x80")),
    ("1", "flags", edit(ERROR, 8, b"\1")),
    ("1", "reserved", edit(GOOD, 55, b"\1")),
    ("1", "reserved", edit(GOOD, 80, b"\1")),
    ("2", "count", edit(GOOD, 16, struct.pack("<Q", 2**48 + 1))),
    ("2", "coded_bytes", edit(GOOD, 16, struct.pack("<Q", 2**48))),
    ("2", "coded_bytes", edit(GOOD, 16, struct.pack("<Q", 81))),
    ("2", "bucket_size", edit(GOOD, 24, struct.pack("<Q", 0))),
    ("2", "bucket_size", edit(GOOD, 24, struct.pack("<Q", 2**48 + 1))),
    ("2", "bucket_size", edit(ERROR, 24, struct.pack("<Q", 1))),
    ("2", "levels", edit(GOOD, 12, struct.pack("<I", 0))),
    ("2", "levels", edit(GOOD, 12, struct.pack("<I", 2))),
    ("2", "levels", edit(PACKED, 12, struct.pack("<I", 0))),
    ("2", "levels", edit(PACKED, 12, struct.pack("<I", 128))),
    ("2", "levels", edit(ERROR, 12, struct.pack("<I", 1))),
    ("2", "seed", edit(ERROR, 32, struct.pack("<Q", 1))),
    ("2", "coded_bytes", edit(GOOD, 56, struct.pack("<Q", 127))),
    ("2", "coded_bytes", edit(ERROR, 56, struct.pack("<Q", 95))),
    ("2", "coded_bytes", edit(ERROR, 56, struct.pack("<Q", 96 + 1025))),
    ("2", "frame_bytes", edit(GOOD, 64, struct.pack("<Q", 144))),
    ("2", "frame_bytes", edit(ERROR, 64, struct.pack("<Q", 96))),
    ("2", "are there", GOOD[:-1]),
    ("2", "are there", GOOD[:96]),
    ("3", "squared_norm", edit(GOOD, 72, b"\1")),
    ("3", "squared_norm", edit(GOOD, 79, b"\x80")),
    ("4", "no", ERROR),
    ("4", "no", edit(ERROR, 48, struct.pack("<I", 8))),
    ("5", "count", ref.encode(normal(4), levels=1, bucket_size=2, tensor=6, step=7)),
    ("5", "dtype", edit(GOOD, 7, b"\2")),
    ("5", "tensor", edit(GOOD, 44, struct.pack("<I", 7))),
    ("5", "step", edit(GOOD, 48, struct.pack("<I", 8))),
    ("5", "rank", edit(GOOD, 40, struct.pack("<I", 1))),
    ("checksum", "damaged", edit(GOOD, 88, bytes(8), reseal=False)),
    ("checksum", "damaged", edit(GOOD, 32, b"\1", reseal=False)),
    ("checksum", "damaged", edit(ERROR, 97, b"\0", reseal=False)),
    ("1", "version", edit(edit(GOOD, 4, b"\2"), 44, b"\1")),  # the first of two
    ("2", "count", edit(edit(GOOD, 23, b"\1"), 72, b"\1")),
    ("3", "squared_norm", edit(edit(GOOD, 72, b"\1"), 44, b"\1")),
]


@pytest.mark.parametrize(("number", "what", "frame"), BAD, ids=[f"{k}-{b[0]}-{b[1]}" for k, b in enumerate(BAD)])
def test_check(number: str, what: str, frame: bytes) -> None:
    with pytest.raises(ref.FrameError, match=what) as caught:
        decode(frame, count=3, tensor=6, step=7)
    assert caught.value.check == number


def test_check_of_the_second_frame() -> None:
    second = ref.encode(normal(3), levels=1, bucket_size=2, rank=1, tensor=6, step=7)
    assert decode(GOOD, second, count=3, tensor=6, step=7).shape == (3,)
    with pytest.raises(ref.FrameError, match="frame 1: check 5: rank 0, not 1"):
        decode(GOOD, GOOD, count=3, tensor=6, step=7)
    with pytest.raises(ref.FrameError, match="frame 1: check checksum"):
        decode(GOOD, edit(second, 100, b"\1", reseal=False), count=3, tensor=6, step=7)


def test_unmodified_frames_pass() -> None:
    """What `edit` does not touch is good: the tests above see only their own change."""
    for frame in (GOOD, PACKED):
        assert edit(frame, 0, frame[:1]) == frame
        assert decode(frame, count=3, tensor=6, step=7).shape == (3,)


@pytest.mark.parametrize("frame", [GOOD, PACKED], ids=["ternary", "packed"])
def test_every_flipped_bit_is_found(frame: bytes) -> None:
    for k in range(8 * len(frame)):
        flipped = bytearray(frame)
        flipped[k // 8] ^= 1 << k % 8
        with pytest.raises(ref.FrameError):
            decode(bytes(flipped), count=3, tensor=6, step=7)


@pytest.mark.parametrize("bits", [0x80000000, 0xBF800000, 0x7F800000, 0x7FC00001, 0xFFC00000, 0x7F800001])
def test_impossible_scales_are_refused(bits: int) -> None:
    frame = edit(ref.encode(np.ones(20), levels=7, bucket_size=8), 100, struct.pack("<I", bits))
    with pytest.raises(ref.FrameError, match="scale") as caught:
        decode(frame, count=20)
    assert caught.value.check == "6"


def test_an_error_frame_is_told_before_a_disagreement() -> None:
    other = ref.encode(np.ones(20), levels=7, bucket_size=8)
    told = ref.error_frame("no memory", count=21, dtype="float32", rank=1, tensor=0, step=0)
    with pytest.raises(ref.FrameError, match="no memory"):
        decode(other, told, count=21)
