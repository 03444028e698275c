"""The Elias payloads of docs/wire_format.md, section 6, written from that page alone; `reference.py` frames them.

Strings of bits are strings here, so that each can be read beside the page.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reference_rans import require

Array = NDArray[Any]
LARGEST_BLOCK = 2**17
HEAD = struct.Struct("<II")


def elias(k: int) -> str:
    """Elias' recursive (omega) code of k >= 1."""
    string = "0"
    while k > 1:
        string = f"{k:b}" + string
        k = k.bit_length() - 1
    return string


def block_size(sparse: bool, levels: int, count: int, bucket_size: int, norm: str) -> int:
    """K, the elements a block."""
    if not sparse or norm != "l2":
        return 512
    d, size = min(bucket_size, count), 512
    longest = 2 + len(elias(levels))
    while size * levels * (levels + math.isqrt(d)) < 32 * d and 2 * size * longest < 8 * 65535 - 64:
        size *= 2
    return size


# ---- encoding: words (bits and their number) side by side ----


def words_of(numbers: Array) -> tuple[Array, Array]:
    """Elias(k) of each number: as integers, and how many bits each has."""
    distinct, place = np.unique(numbers, return_inverse=True)
    strings = [elias(int(k)) for k in distinct]
    bits = np.array([int(string, 2) for string in strings], np.int64)
    lengths = np.array([len(string) for string in strings], np.int64)
    return bits[place], lengths[place]


def with_sign(bits: Array, lengths: Array, codes: Array) -> tuple[Array, Array]:
    """One more bit in the end where a code is not zero."""
    live = codes != 0
    return np.where(live, 2 * bits + (codes < 0), bits), lengths + live


def dense_words(codes: Array) -> tuple[Array, Array]:
    return with_sign(*words_of(abs(codes) + 1), codes)


def sparse_words(codes: Array) -> tuple[Array, Array]:
    """The number of nonzeros; gap, sign and magnitude of each."""
    where = np.flatnonzero(codes)
    gap, gap_length = with_sign(*words_of(np.diff(where, prepend=-1)), codes[where])
    magnitude, magnitude_length = words_of(abs(codes[where]))
    count, count_length = words_of(np.array([where.size + 1]))
    bits = np.concatenate([count, np.stack([gap, magnitude], 1).ravel()])
    return bits, np.concatenate([count_length, np.stack([gap_length, magnitude_length], 1).ravel()])


def join(bits: Array, lengths: Array) -> bytes:
    """The strings one after the other, the first bit as the most significant one, up to a whole byte."""
    ends = np.cumsum(lengths)
    word = np.repeat(np.arange(bits.size), lengths)
    string = bits[word] >> (ends[word] - 1 - np.arange(word.size)) & 1
    return np.packbits(string.astype(np.uint8)).tobytes()


def pack(codes: Array, sparse: bool, size: int) -> bytes:
    """The payload of all codes in blocks of `size` elements."""
    codes = np.asarray(codes, np.int64)
    if codes.size == 0:
        return b""
    words = sparse_words if sparse else dense_words
    blocks = [join(*words(codes[at : at + size])) for at in range(0, codes.size, size)]
    lengths = np.array([len(block) for block in blocks], "<u2")
    return HEAD.pack(size, 0) + lengths.tobytes() + b"".join(blocks)


def payload_bound(sparse: bool, levels: int, count: int, size: int) -> int:
    """Bytes that no payload exceeds."""

    def block(elements: int) -> int:
        bits = len(elias(levels + 1)) + 1
        if sparse:
            bits = len(elias(levels)) + 2
        return -(-(elements * bits + sparse * len(elias(elements + 1))) // 8)

    if count == 0:
        return 0
    whole, rest = divmod(count, size)
    return 8 + 2 * (whole + (rest > 0)) + whole * block(size) + (block(rest) if rest else 0)


# ---- decoding ----


class Reader:
    """Reads a block's string from its beginning."""

    def __init__(self, block: bytes) -> None:
        self.bits = "".join(f"{byte:08b}" for byte in block)
        self.at = 0

    def take(self, length: int) -> str:
        require(self.at + length <= len(self.bits), "a block ends too early")
        self.at += length
        return self.bits[self.at - length : self.at]

    def elias(self, largest: int) -> int:
        """A number from 1 to `largest`."""
        k = 1
        while self.take(1) == "1":
            require(k < 18, "a number is too large")
            k = int("1" + self.take(k), 2)
        require(k <= largest, "a number is too large")
        return k

    def sign(self) -> int:
        return -1 if self.take(1) == "1" else 1

    def end(self) -> None:
        rest = self.bits[self.at :]
        require(len(rest) < 8 and "1" not in rest, "a block goes on after its end")


def dense_block(reader: Reader, elements: int, levels: int) -> list[int]:
    codes = []
    for _ in range(elements):
        magnitude = reader.elias(levels + 1) - 1
        codes.append(magnitude and magnitude * reader.sign())
    return codes


def sparse_block(reader: Reader, elements: int, levels: int) -> list[int]:
    codes, at = [0] * elements, -1
    for _ in range(reader.elias(elements + 1) - 1):
        at += reader.elias(LARGEST_BLOCK)
        require(at < elements, "a nonzero lies beyond its block")
        sign = reader.sign()
        codes[at] = sign * reader.elias(levels)
    return codes


def blocks_in(payload: bytes, count: int) -> Iterator[tuple[bytes, int]]:
    """Each block's bytes and its number of elements."""
    require(len(payload) >= 8, "no room for the block size")
    size, zero = HEAD.unpack_from(payload)
    require(zero == 0, "reserved bytes")
    require(512 <= size <= LARGEST_BLOCK and size & (size - 1) == 0, f"blocks of {size} elements")
    number = -(-count // size)
    require(len(payload) >= 8 + 2 * number, "no room for the lengths")
    lengths = np.frombuffer(payload, "<u2", number, 8).astype(np.int64)
    ends = 8 + 2 * number + np.cumsum(lengths)
    require(int(ends[-1]) == len(payload), "the blocks' lengths are not the payload's")
    for k, (length, end) in enumerate(zip(lengths, ends)):
        yield payload[end - length : end], min(size, count - k * size)


def unpack(payload: bytes, sparse: bool, levels: int, count: int) -> Array:
    """The codes of a payload; PayloadError where no encoder writes it."""
    if count == 0:
        require(not payload, "a payload of nothing")
        return np.zeros(0, np.int64)
    require(sparse or HEAD.unpack_from(payload.ljust(8, b"\0"))[0] == 512, "blocks of another size than 512")
    decode = sparse_block if sparse else dense_block
    codes: list[int] = []
    for block, elements in blocks_in(payload, count):
        reader = Reader(block)
        codes += decode(reader, elements, levels)
        reader.end()
    return np.array(codes, np.int64)
