"""The wire format of docs/wire_format.md once more, written from that page alone, with NumPy alone.

It is here to be read beside the page (its sections are the page's, in the same order) and to be compared
with: it shares no code with `hvd_qsgd`, so where the two agree to the bit, the page says enough.
Floating-point operations are on arrays of the type that the page names, so that NumPy rounds each to it.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import reference_elias
import reference_onebit
import reference_rans
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
M32, M64 = 2**32 - 1, 2**64 - 1
FLT_MAX = np.float32(2.0**128 - 2.0**104)
GOLDEN = 0x9E3779B97F4A7C15
CODECS = {"error": 0, "packed": 1, "ternary": 2, "elias-dense": 3, "elias-sparse": 4, "rans": 5, "onebit": 6}
SPARSE = {3: False, 4: True}  # of the Elias codecs
ONEBIT = 6
VARIABLE = {*SPARSE, 5}  # those whose payload's length only the encoder knows
NORMS = {"max": 1, "l2": 2}
DTYPES = {"float32": 1, "float16": 2, "bfloat16": 3}
MAX_LEVELS = {1: 127, 2: 1, 3: 32767, 4: 32767, 5: 32767, 6: 1}  # of each codec


class FrameError(ValueError):
    """A frame that must not be decoded; `check` is the number in section 9, or "checksum" (7), "payload" (8, 9)."""

    def __init__(self, index: int, check: str, what: str) -> None:
        super().__init__(f"frame {index}: check {check}: {what}")
        self.check = check


# ---- 1. Layout ----


@dataclass(frozen=True)
class Header:
    magic: int = int.from_bytes(b"QSGD", "little")
    version: int = 1
    codec: int = 0
    norm: int = 0
    dtype: int = 0
    flags: int = 0
    levels: int = 0
    count: int = 0
    bucket_size: int = 0
    seed: int = 0
    rank: int = 0
    tensor: int = 0
    step: int = 0
    zero52: int = 0
    coded_bytes: int = 0
    frame_bytes: int = 0
    squared_norm: int = 0  # the bits of the float64
    zero80: int = 0
    checksum: int = 0


HEADER = struct.Struct("<I4B2I3Q4I5Q")


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def roundup(x: int, m: int) -> int:
    return ceil_div(x, m) * m


def parse(frame: bytes) -> Header:
    return Header(*HEADER.unpack_from(frame))


def layout(codec: int, levels: int, count: int, bucket_size: int) -> tuple[int, int, int]:
    """Number of scales, offset of the payload, coded_bytes with a fixed-width codec."""
    scales = ceil_div(count, bucket_size) * (2 if codec == ONEBIT else 1)
    offset = 96 + roundup(4 * scales, 16)
    return scales, offset, offset + (0 if codec in VARIABLE else payload_bytes(codec, levels, count))


def seal(header: Header, body: bytes, frame_bytes: int = 0) -> bytes:
    """The frame of a header and a body (what lies from 96 to coded_bytes): lengths, padding, checksum."""
    coded = 96 + len(body)
    header = replace(header, coded_bytes=coded, frame_bytes=max(roundup(coded, 16), frame_bytes))
    frame = HEADER.pack(*astuple(header)) + body.ljust(header.frame_bytes - 96, b"\0")
    return frame[:88] + struct.pack("<Q", checksum(frame)) + frame[96:]


# ---- 2. Buckets and scales ----


def widen(array: ArrayLike, dtype: str) -> Array:
    """The gradient as a flat float32 array; bfloat16 comes as uint16 bit patterns."""
    if dtype == "bfloat16":
        return (np.asarray(array, np.uint16).ravel().astype(np.uint32) << 16).view(np.float32)
    return np.asarray(array, dtype).ravel().astype(np.float32)


def cut(values: Array, width: int) -> Array:
    """The values as rows of `width` (or one row, if they are fewer), the last one filled up with zeros."""
    width = min(width, max(values.size, 1))
    rows = ceil_div(values.size, width)
    return np.pad(values, (0, rows * width - values.size)).reshape(rows, width)


def scales_of(values: Array, bucket_size: int, norm: str) -> Array:
    buckets = cut(values, bucket_size)
    scale = np.abs(buckets).max(axis=1)
    if norm == "l2":
        with np.errstate(over="ignore", invalid="ignore"):
            root = np.sqrt(bucket_sums(buckets)).astype(np.float32)
        scale = np.minimum(root, FLT_MAX)
    canonical_nan = np.uint32(0x7FC00000).view(np.float32)
    return np.where(np.isfinite(buckets).all(axis=1), scale, canonical_nan)


def means_of(values: Array, bucket_size: int) -> Array:
    """The two scales of each bucket with the codec onebit (section 12)."""
    buckets = cut(values, bucket_size)
    lengths = np.minimum(values.size - buckets.shape[1] * np.arange(len(buckets)), buckets.shape[1])
    return reference_onebit.means(buckets, lengths, sum_in_order)


# ---- 3. Sums of squares ----


def bucket_sums(buckets: Array) -> Array:
    """The sum of squares of each row."""
    return sum_in_order(np.square(buckets.astype(np.float64)))


def sum_in_order(terms: Array) -> Array:
    """The sum of each row. (Zeros that fill up a row, a block or a bucket change no sum.)"""
    rows, width = terms.shape
    block = min(roundup(width, 16), 4096)
    blocks = ceil_div(width, block)
    padded = np.pad(terms, ((0, 0), (0, blocks * block - width))).reshape(rows, blocks, block // 16, 16)
    a = np.zeros_like(padded[:, :, 0])
    for k in range(block // 16):
        a = a + padded[:, :, k]
    for h in (8, 4, 2, 1):
        a = a[..., :h] + a[..., h : 2 * h]
    return pairwise_tree(a[..., 0])


def pairwise_tree(sums: Array) -> Array:
    """Along the last axis."""
    if sums.shape[-1] == 0:
        return np.zeros(sums.shape[:-1])
    while sums.shape[-1] > 1:
        without_partner = sums[..., sums.shape[-1] // 2 * 2 :]
        sums = np.concatenate([sums[..., 0:-1:2] + sums[..., 1::2], without_partner], axis=-1)
    return sums[..., 0]


def sum_of_squares(values: Array, bucket_size: int | None = None) -> float:
    """The header's squared_norm; with one bucket (None), also that bucket's S."""
    if not np.isfinite(values).all():
        return float("nan")
    return float(pairwise_tree(bucket_sums(cut(values, bucket_size or max(values.size, 1)))))


def squared_norm_bits(values: Array, bucket_size: int) -> int:
    total = sum_of_squares(values, bucket_size)
    return 0x7FF8000000000000 if total != total else int.from_bytes(struct.pack("<d", total), "little")


# ---- 4. Random numbers ----

MULTIPLIERS = np.array([pow(1664525, k, 2**32) for k in range(8)], np.uint32)


def philox_key(seed: int, rank: int) -> tuple[int, int]:
    z = (seed + (rank + 1) * GOLDEN) & M64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & M64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & M64
    z ^= z >> 31
    return z & M32, z >> 32


def philox4x32_10(counter: ArrayLike, key: tuple[int, int]) -> Array:
    """Ten rounds on a (4, …) array of counters; the result has the same shape."""
    c0, c1, c2, c3 = np.asarray(counter, np.uint64)
    low, half = np.uint64(M32), np.uint64(32)
    for turn in range(10):
        k0 = np.uint64((key[0] + turn * 0x9E3779B9) & M32)
        k1 = np.uint64((key[1] + turn * 0xBB67AE85) & M32)
        a, b = np.uint64(0xCD9E8D57) * c2, np.uint64(0xD2511F53) * c0
        c0, c1, c2, c3 = (a >> half) ^ c1 ^ k0, a & low, (b >> half) ^ c3 ^ k1, b & low
    return np.array([c0, c1, c2, c3]).astype(np.uint32)


def random_bits(n: int, seed: int, rank: int, tensor: int, step: int, first: int = 0) -> Array:
    """R of the elements first … first + n - 1, as uint32."""
    u0, u1 = first // 512, ceil_div(first + n, 512)
    b = np.uint64(16 * u0) + np.arange(16 * (u1 - u0), dtype=np.uint64)  # unit, lane
    counter = [b & np.uint64(M32), b >> np.uint64(32), np.full_like(b, tensor), np.full_like(b, step)]
    words = philox4x32_10(counter, philox_key(seed, rank)).reshape(4, 1, -1, 16)
    product = words * MULTIPLIERS.reshape(1, 8, 1, 1)  # floor(q / 8), q mod 8, unit, lane
    bits = product.transpose(2, 0, 1, 3).ravel() >> np.uint32(8)
    return bits[first - 512 * u0 :][:n]


# ---- 5. Quantization ----


def rescaling(scales: Array) -> Array:
    """The factor c of sections 5 and 10."""
    return np.where(scales >= np.float32(2.0**-80), np.float32(1), np.float32(2.0**64))


def quantize(values: Array, scales: Array, bucket_size: int, levels: int, bits: Array) -> Array:
    limit, c = np.float32(levels * 2**24), rescaling(scales)
    live = scales > 0  # neither 0 nor NaN
    scaled = np.where(live, scales * c, np.float32(1))
    inv = limit / scaled
    inv = np.where(inv * scaled < limit, np.nextafter(inv, np.float32(np.inf)), inv)
    c, inv, live = (np.repeat(a, min(bucket_size, values.size))[: values.size] for a in (c, inv, live))
    t = np.rint(np.clip((np.where(live, values, np.float32(0)) * c) * inv, -limit, limit)).astype(np.int64)
    return (t + bits) >> 24


# ---- 6. Payloads ----


def width_of(levels: int) -> int:
    """Bits of a packed code: 1 + ceil(log2(s + 1)), and ceil(log2(s + 1)) is the bit length of s."""
    return max(2, 1 + levels.bit_length())


def payload_bytes(codec: int, levels: int, n: int) -> int:
    if codec == CODECS["ternary"]:
        return 16 * ceil_div(n, 80)
    if codec == ONEBIT:
        return 64 * ceil_div(n, 512)
    b = width_of(levels)
    return 64 * (b * (n // 512) + ceil_div(b * ceil_div(n % 512, 16), 32))


def pack(codes: Array, codec: int, levels: int, columns: int = 0) -> bytes:
    if codec == CODECS["rans"]:
        return reference_rans.pack(codes, levels, columns)
    unit = 80 if codec == CODECS["ternary"] else 512
    padded = np.pad(codes.astype(np.int8), (0, -codes.size % unit))
    rows = padded.reshape(-1, unit // 16, 16)  # unit, row, lane
    if codec == CODECS["ternary"]:
        digits = (rows + 1) * 3 ** np.arange(5).reshape(5, 1)
        return bytes(digits.sum(axis=1).astype(np.uint8))
    b = width_of(levels)
    strings = (rows.transpose(0, 2, 1)[..., None] >> np.arange(b, dtype=np.int8)) & 1  # unit, lane, row, bit
    words = strings.reshape(-1, 16, b, 32).transpose(0, 2, 1, 3)  # unit, word, lane, bit
    stored: bytes = np.packbits(words, axis=-1, bitorder="little").tobytes()
    return stored[: payload_bytes(codec, levels, codes.size)]


def unpack(payload: bytes, codec: int, levels: int, n: int) -> Array:
    if codec in SPARSE:
        return reference_elias.unpack(payload, SPARSE[codec], levels, n)
    if codec == CODECS["rans"]:
        return reference_rans.unpack(payload, n)
    data = np.frombuffer(payload, np.uint8)
    if codec == CODECS["ternary"]:
        digits = data.reshape(-1, 1, 16) // 3 ** np.arange(5).reshape(5, 1) % 3  # unit, row, lane
        return digits.ravel()[:n].astype(np.int64) - 1
    b = width_of(levels)
    words = np.unpackbits(np.pad(data, (0, -data.size % (64 * b))), bitorder="little")
    strings = words.reshape(-1, b, 16, 32).transpose(0, 2, 1, 3).reshape(-1, 16, 32, b)
    codes = np.zeros(strings.shape[:3], np.int64)  # unit, lane, row
    for k in range(b):
        codes += strings[..., k] * np.int64(2**k if k < b - 1 else -(2**k))  # two's complement
    return codes.transpose(0, 2, 1).ravel()[:n]


def encode(
    array: ArrayLike,
    *,
    codec: str = "packed",
    levels: int,
    bucket_size: int | None,
    norm: str = "max",
    seed: int = 0,
    rank: int = 0,
    tensor: int = 0,
    step: int = 0,
    dtype: str = "float32",
    squared_norm: bool = False,
    subtractive: bool = False,
    columns: int = 0,
) -> bytes:
    """The frame of a tensor. bucket_size None: one bucket for the whole tensor; columns: of the matrix that it is."""
    values = widen(array, dtype)
    d = max(values.size, 1) if bucket_size is None else bucket_size
    if not 1 <= levels <= MAX_LEVELS[CODECS[codec]] or not 1 <= d <= 2**48:
        raise ValueError(f"{codec}: levels {levels} or bucket_size {d} out of bounds")
    if CODECS[codec] == ONEBIT:
        norm, scales = "none", means_of(values, d)
        payload = reference_onebit.pack(values, scales, d)
    else:
        scales = scales_of(values, d, norm)
        codes = quantize(values, scales, d, levels, random_bits(values.size, seed, rank, tensor, step))
        if CODECS[codec] in SPARSE:
            sparse = SPARSE[CODECS[codec]]
            block = reference_elias.block_size(sparse, levels, values.size, d, norm)
            payload = reference_elias.pack(codes, sparse, block)
        else:
            payload = pack(codes, CODECS[codec], levels, columns)
    raw = scales.astype("<f4").tobytes()
    body = raw.ljust(roundup(len(raw), 16), b"\0") + payload
    header = Header(
        codec=CODECS[codec],
        norm=NORMS.get(norm, 0),
        dtype=DTYPES[dtype],
        flags=int(squared_norm) + 2 * subtractive,
        levels=levels,
        count=values.size,
        bucket_size=d,
        seed=seed,
        rank=rank,
        tensor=tensor,
        step=step,
        squared_norm=squared_norm_bits(values, d) if squared_norm else 0,
    )
    return seal(header, body)


# ---- 7. Checksum ----


def checksum(frame: bytes) -> int:
    """Of all bytes given (a frame up to frame_bytes), but for word 11, the checksum itself."""
    words = np.frombuffer(frame, "<u8").astype(np.uint64)
    x = words ^ (np.arange(1, words.size + 1, dtype=np.uint64) * np.uint64(GOLDEN))
    terms = (x & np.uint64(M32)) * (x >> np.uint64(32)) + x
    return int(np.delete(terms, 11).sum(dtype=np.uint64))


# ---- 8. Error frames ----


def error_frame(message: str, *, count: int, dtype: str, rank: int, tensor: int, step: int) -> bytes:
    text = message.encode()[:1024].decode(errors="ignore").encode()  # cut between characters
    return seal(Header(dtype=DTYPES[dtype], count=count, rank=rank, tensor=tensor, step=step), text)


# ---- 9. Checks ----


def check_itself(frame: bytes, index: int) -> Header:
    """Checks 1 to 4 on frame `index`, in the order of the page; an error frame is an error too."""

    def require(condition: bool, number: str, what: str) -> None:
        if not condition:
            raise FrameError(index, number, what)

    require(len(frame) >= 96, "1", "no room for a header")
    h = parse(frame)
    error = h.codec == CODECS["error"]
    require(h.magic == Header.magic, "1", "magic")
    require(h.version == 1, "1", f"version {h.version}")
    require(h.codec in CODECS.values(), "1", f"codec {h.codec}")
    require(h.norm in ([0] if error or h.codec == ONEBIT else NORMS.values()), "1", f"norm {h.norm}")
    require(h.dtype in DTYPES.values(), "1", f"dtype {h.dtype}")
    flags = 0 if error else 3 if h.codec in (CODECS["packed"], CODECS["ternary"]) else 1
    require(h.flags <= flags, "1", f"flags {h.flags:#x}")
    require(h.zero52 == 0 and h.zero80 == 0, "1", "reserved bytes")

    require(h.count <= 2**48, "2", f"count {h.count}")
    if error:
        require(h.bucket_size == 0, "2", f"bucket_size {h.bucket_size}")
        require(h.levels == 0, "2", f"levels {h.levels}")
        require(h.seed == 0, "2", f"seed {h.seed}")
        require(96 <= h.coded_bytes <= 96 + 1024, "2", f"coded_bytes {h.coded_bytes}")
    else:
        require(1 <= h.bucket_size <= 2**48, "2", f"bucket_size {h.bucket_size}")
        require(1 <= h.levels <= MAX_LEVELS[h.codec], "2", f"levels {h.levels}")
        _, offset, coded = layout(h.codec, h.levels, h.count, h.bucket_size)
        if h.codec in VARIABLE:
            require(offset <= h.coded_bytes <= h.frame_bytes, "2", f"coded_bytes {h.coded_bytes}")
            require(h.frame_bytes % 16 == 0, "2", f"frame_bytes {h.frame_bytes}")
        else:
            require(h.coded_bytes == coded, "2", f"coded_bytes {h.coded_bytes}, not {coded}")
    if h.codec not in VARIABLE:
        require(h.frame_bytes == roundup(h.coded_bytes, 16), "2", f"frame_bytes {h.frame_bytes}")
    require(h.frame_bytes <= len(frame), "2", f"{h.frame_bytes} bytes, of which {len(frame)} are there")

    require(h.flags & 1 == 1 or h.squared_norm == 0, "3", "squared_norm without its flag")
    if error:
        verify_checksum(frame, h, index)
        raise FrameError(index, "4", frame[96 : h.coded_bytes].decode(errors="replace"))
    return h


def check_agreement(h: Header, index: int, *, count: int, dtype: str, tensor: int, step: int) -> None:
    """Check 5 on frame `index`."""

    def require(condition: bool, number: str, what: str) -> None:
        if not condition:
            raise FrameError(index, number, what)

    require(h.count == count, "5", f"count {h.count}, not {count}")
    require(h.dtype == DTYPES[dtype], "5", f"dtype {h.dtype}, not {DTYPES[dtype]}")
    require(h.tensor == tensor, "5", f"tensor {h.tensor}, not {tensor}")
    require(h.step == step, "5", f"step {h.step}, not {step}")
    require(h.rank == index, "5", f"rank {h.rank}, not {index}")


def check_scales(frame: bytes, index: int) -> None:
    bits = scales_in(frame).view(np.uint32)
    if not ((bits < 0x7F800000) | (bits == 0x7FC00000)).all():
        raise FrameError(index, "6", "a scale is neither a canonical NaN nor finite and at least +0")


def verify_checksum(frame: bytes, header: Header, index: int) -> None:
    if checksum(frame[: header.frame_bytes]) != header.checksum:
        raise FrameError(index, "checksum", "the frame is damaged")


# ---- 10. Decode and sum ----


def scales_in(frame: bytes) -> Array:
    h = parse(frame)
    return np.frombuffer(frame, "<f4", layout(h.codec, h.levels, h.count, h.bucket_size)[0], 96).astype(np.float32)


def payload_in(frame: bytes) -> bytes:
    h = parse(frame)
    return frame[layout(h.codec, h.levels, h.count, h.bucket_size)[1] : h.coded_bytes]  # up to the padding


def decode_codes(frame: bytes) -> Array:
    """The codes in a frame that is known to be good."""
    h = parse(frame)
    return unpack(payload_in(frame), h.codec, h.levels, h.count)


def dequantize(frame: bytes) -> Array:
    h, scales = parse(frame), scales_in(frame)
    if h.codec == ONEBIT:
        return reference_onebit.values(payload_in(frame), scales, h.bucket_size, h.count)
    s, c = np.float32(h.levels), rescaling(scales)
    unit = (scales * c) / s
    unit = np.where(np.isinf(s * unit), np.nextafter(unit, np.float32(-np.inf)), unit)
    back = np.float32(1) / c  # exact; 2^-64 or 1
    unit, back = (np.repeat(a, min(h.bucket_size, h.count))[: h.count] for a in (unit, back))
    codes = decode_codes(frame).astype(np.float32)
    if h.flags & 2:
        bits = random_bits(h.count, h.seed, h.rank, h.tensor, h.step)
        codes = codes + (2**23 - bits.astype(np.int64)).astype(np.float32) * np.float32(2.0**-24)
    return (codes * unit) * back


def narrow(result: Array, dtype: str) -> Array:
    """float32 to the dtype of the gradient, with its canonical NaN; bfloat16 as uint16 bit patterns."""
    bits, nan = result.view(np.uint32), np.isnan(result)
    if dtype == "float32":
        return np.where(nan, np.uint32(0x7FC00000), bits).view(np.float32)
    if dtype == "float16":
        return np.where(nan, np.uint16(0x7E00), result.astype(np.float16).view(np.uint16)).view(np.float16)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16  # ties to even
    return np.where(nan, np.uint16(0x7FC0), rounded.astype(np.uint16))


def decode_sum(frames: list[bytes], *, count: int, dtype: str, tensor: int, step: int, factor: float = 1.0) -> Array:
    """f32(factor) times the sum of the frames, frame k that of rank k; bfloat16 as uint16 bit patterns."""
    for index, frame in enumerate(frames):
        check_itself(frame, index)
    for index, frame in enumerate(frames):
        check_agreement(parse(frame), index, count=count, dtype=dtype, tensor=tensor, step=step)
    for index, frame in enumerate(frames):
        check_scales(frame, index)
    for index, frame in enumerate(frames):
        verify_checksum(frame, parse(frame), index)
    acc = np.zeros(count, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for index, frame in enumerate(frames):
            try:
                acc = acc + dequantize(frame)
            except reference_rans.PayloadError as error:
                raise FrameError(index, "payload", str(error)) from error
        return narrow(acc * np.float32(factor), dtype)
