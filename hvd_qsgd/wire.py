"""The frame's header as Python sees it (``docs/wire_format.md``): the only Python that knows offsets."""

from __future__ import annotations

import dataclasses
import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hvd_qsgd.errors import QSGDError

HEADER = struct.Struct("<4s4B2I3Q4I2Qd2Q")
HEADER_BYTES = 96
SQUARED_NORM, SUBTRACTIVE = 1, 2  # bits of the flags
assert HEADER.size == HEADER_BYTES


class Codec(NamedTuple):
    """A codec's number on the wire, the most levels that it can code, and whether its frames' lengths vary."""

    id: int
    max_levels: int
    variable: bool


CODECS = {
    "packed": Codec(1, 127, False),
    "ternary": Codec(2, 1, False),
    "elias-dense": Codec(3, 32767, True),
    "elias-sparse": Codec(4, 32767, True),
    "rans": Codec(5, 32767, True),
    "onebit": Codec(6, 1, False),
}
ONEBIT = "onebit"  # which has two means a bucket in place of a norm, and no levels to choose
NORMS = {"max": 1, "l2": 2}
NORM_IDS = {"none": 0, **NORMS}
DITHERS = {"nonsubtractive": 0, "subtractive": SUBTRACTIVE}
DTYPES = {"float32": 1, "float16": 2, "bfloat16": 3}
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
CODEC_NAMES = {0: "error", **{codec.id: name for name, codec in CODECS.items()}}
NORM_NAMES = {number: name for name, number in NORM_IDS.items()}
DITHER_NAMES = {number: name for name, number in DITHERS.items()}
DTYPE_NAMES = {number: name for name, number in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Header:
    """A frame's header, in its order; numbers that stand for names are given as the names."""

    version: int
    codec: str
    norm: str
    dtype: str
    flags: int
    levels: int
    count: int
    bucket_size: int
    seed: int
    rank: int
    tensor: int
    step: int
    coded_bytes: int
    frame_bytes: int
    squared_norm: float
    checksum: int


def parse(frame: bytes | memoryview) -> Header:
    """The header of ``frame``, whose bytes must have passed the kernels' check."""
    if len(frame) < HEADER_BYTES:
        raise QSGDError(f"a frame has at least {HEADER_BYTES} bytes, these are {len(frame)}")
    fields = HEADER.unpack_from(frame)
    version, codec, norm, dtype = fields[1:5]
    names = (
        CODEC_NAMES.get(codec, f"unknown ({codec})"),
        NORM_NAMES.get(norm, f"unknown ({norm})"),
        DTYPE_NAMES.get(dtype, f"unknown ({dtype})"),
    )
    # Fields 0, 13 and 17 are the magic and reserved.
    numbers = [*fields[5:13], *fields[14:17], fields[18]]
    return Header(version, *names, *numbers)


def scale_count(header: Header) -> int:
    """How many scales the header's frame has: one a bucket, or onebit's two."""
    buckets = -(-header.count // header.bucket_size) if header.bucket_size else 0
    return 2 * buckets if header.codec == ONEBIT else buckets


def scales(frame: bytes | memoryview, header: Header) -> npt.NDArray[np.float32]:
    """The scale of each bucket, or onebit's two, in order; none in an error frame."""
    return np.frombuffer(frame, "<f4", scale_count(header), HEADER_BYTES)


def payload_bytes(header: Header) -> int:
    """Bytes of the coded values alone."""
    return header.coded_bytes - HEADER_BYTES - -(-4 * scale_count(header) // 16) * 16


def message(frame: bytes | memoryview, header: Header) -> str:
    """What the rank that sent this error frame has to say."""
    return bytes(frame[HEADER_BYTES : header.coded_bytes]).decode("utf-8", "replace")
