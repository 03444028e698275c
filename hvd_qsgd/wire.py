"""The frame's header as Python sees it (``docs/wire_format.md``): the only Python that knows offsets."""

from __future__ import annotations

import dataclasses
import struct
from typing import NamedTuple

from hvd_qsgd.errors import QSGDError

HEADER = struct.Struct("<4s4B2I3Q4I2Qd2Q")
HEADER_BYTES = 96
MAGIC = b"QSGD"
VERSION = 1
SQUARED_NORM = 1
MAX_MESSAGE = 1024
assert HEADER.size == HEADER_BYTES


class Codec(NamedTuple):
    """A codec's number on the wire and the most levels that it can code."""

    id: int
    max_levels: int


CODECS = {"packed": Codec(1, 127), "ternary": Codec(2, 1)}
NORMS = {"max": 1, "l2": 2}
DTYPES = {"float32": 1, "float16": 2, "bfloat16": 3}
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
CODEC_NAMES = {0: "error", **{codec.id: name for name, codec in CODECS.items()}}
NORM_NAMES = {0: "none", **{number: name for name, number in NORMS.items()}}
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


def message(frame: bytes | memoryview) -> str:
    """The text of an error frame."""
    return bytes(frame[HEADER_BYTES : parse(frame).coded_bytes]).decode("utf-8", "replace")


def error_frame(text: str, *, count: int, dtype: str, rank: int, tensor: int, step: int) -> bytearray:
    """A frame that tells the other ranks why this one could not encode; its checksum is still to be written."""
    payload = text.encode()[:MAX_MESSAGE].decode("utf-8", "ignore").encode()  # cut between characters
    coded = HEADER_BYTES + len(payload)
    length = (coded + 15) // 16 * 16
    frame = bytearray(length)
    HEADER.pack_into(
        frame,
        0,
        MAGIC,
        VERSION,
        0,
        0,
        DTYPES[dtype],
        0,
        0,
        count,
        0,
        0,
        rank,
        tensor,
        step,
        0,
        coded,
        length,
        0.0,
        0,
        0,
    )
    frame[HEADER_BYTES:coded] = payload
    return frame
