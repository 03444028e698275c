"""The CUDA kernel library through its C ABI (``kernels/qsgd_cuda.h``): structures, argument types."""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
import struct
import warnings
from collections.abc import Iterable, Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_uint32, c_uint64, c_void_p
from typing import Any

from hvd_qsgd.errors import QSGDError
from hvd_qsgd.native import OK, Expectation, Spec, declared, status_text

LIBRARY_VARIABLE = "HVD_QSGD_CUDA_LIBRARY"
CUDA_ERROR = 4  # of kernels/qsgd.h
# What CUDA says of kernels that were built for other GPUs, or by a toolkit that is newer than the driver.
BUILT_FOR_OTHERS = ("kernel image", "driver version is insufficient", "unsupported toolchain")


class Draw(ctypes.Structure):
    """``qsgd_draw``: seed and step, in memory of the device."""

    _fields_ = (("seed", c_uint64), ("step", c_uint32), ("zero", c_uint32))


class Verdict(ctypes.Structure):
    """``qsgd_verdict``: how a sum ended."""

    _fields_ = (("status", c_int32), ("bad_frame", c_uint32))


class Late(ctypes.Structure):
    """``qsgd_late``: addresses of a factor and of a ``Draw``, in memory of the device, or none."""

    _fields_ = (("factor", c_void_p), ("draw", c_void_p))


class Encoding(ctypes.Structure):
    """``qsgd_encoding``: addresses of a ``Spec``, of the gradient and of its frame, and the bytes that are there."""

    _fields_ = (("spec", c_void_p), ("gradient", c_void_p), ("frame", c_void_p), ("capacity", c_uint64))


class Summation(ctypes.Structure):
    """``qsgd_summation``: frames to be added up, and where to.

    ``expected`` and ``verdict`` are addresses of an ``Expectation`` and a ``Verdict``.
    """

    _fields_ = (
        ("frames", c_void_p),
        ("bytes", c_uint64),
        ("expected", c_void_p),
        ("frame_count", c_uint32),
        ("factor", c_float),
        ("out", c_void_p),
        ("verdict", c_void_p),
    )


def encodings(rows: Iterable[Sequence[int]]) -> ctypes.Array[Encoding]:
    """A table of ``Encoding``, whose rows have its fields in order."""
    return _table(Encoding, "QQQQ", rows)


def summations(rows: Iterable[Sequence[int | float]]) -> ctypes.Array[Summation]:
    """A table of ``Summation``, whose rows have its fields in order."""
    return _table(Summation, "QQQIfQQ", rows)


def _table(kind: Any, layout: str, rows: Iterable[Sequence[int | float]]) -> ctypes.Array[Any]:
    """Packed at once, which is several times faster than a structure after the other."""
    packed = b"".join([*map(struct.Struct(layout).pack, *zip(*rows))])
    table: ctypes.Array[Any] = (kind * (len(packed) // ctypes.sizeof(kind))).from_buffer_copy(packed)
    return table


# Every function of kernels/qsgd_cuda.h: what it returns, what it takes.
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "qsgd_cuda_abi_version": (c_uint32,),
    "qsgd_cuda_error": (c_char_p,),
    "qsgd_cuda_encode_scratch": (c_int, POINTER(Spec), POINTER(c_uint64)),
    "qsgd_cuda_encode": (
        c_int, POINTER(Spec), c_void_p, c_void_p, c_uint64, c_void_p, c_void_p, c_uint64, c_void_p
    ),
    "qsgd_cuda_encode_many_scratch": (c_int, POINTER(Encoding), c_uint32, POINTER(c_uint64)),
    "qsgd_cuda_encode_many": (c_int, POINTER(Encoding), c_uint32, c_void_p, c_void_p, c_uint64, c_void_p),
    "qsgd_cuda_encode_begin": (
        c_int, POINTER(Spec), c_void_p, c_void_p, c_void_p, c_uint64, c_void_p, c_void_p
    ),
    "qsgd_cuda_encode_end": (c_int, POINTER(Spec), c_void_p, c_uint64, c_void_p, c_uint64, c_void_p),
    "qsgd_cuda_decode_scratch": (c_int, c_uint32, POINTER(c_uint64)),
    "qsgd_cuda_decode_scratch_variable": (c_int, c_uint64, c_uint32, POINTER(c_uint64)),
    "qsgd_cuda_decode_sum": (
        c_int, c_void_p, c_uint64, c_uint32, POINTER(Expectation), c_float, POINTER(Late), c_void_p, c_void_p,
        c_void_p, c_uint64, c_void_p
    ),
    "qsgd_cuda_decode_sum_many_scratch": (c_int, POINTER(Summation), c_uint32, POINTER(c_uint64)),
    "qsgd_cuda_decode_sum_many": (
        c_int, POINTER(Summation), c_uint32, POINTER(Late), c_void_p, c_uint64, c_void_p
    ),
}  # fmt: skip


def path() -> str:
    """Where the library is, or should be."""
    return os.environ.get(LIBRARY_VARIABLE) or str(pathlib.Path(__file__).with_name("libhvd_qsgd_cuda.so"))


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded CUDA kernel library, its functions declared; raises ``QSGDError`` where there is none."""
    try:
        loaded = ctypes.CDLL(path())
    except OSError as error:
        raise QSGDError(
            f"the CUDA kernels cannot be loaded ({error}); build them with `make cuda`, which needs nvcc"
        ) from error
    return declared(loaded, path(), SIGNATURES, "qsgd_cuda_abi_version", "make cuda")


@functools.cache
def available() -> bool:
    """Whether the library can be loaded; else says so, once."""
    try:
        library()
    except QSGDError as error:
        warnings.warn(f"gradients are copied to the CPU to be compressed, which is slow: {error}", stacklevel=2)
        return False
    return True


def encode_scratch(spec: Spec) -> int:
    """How many bytes of scratch memory ``encode`` needs for ``spec``."""
    return _size(library().qsgd_cuda_encode_scratch, spec)


def encode(spec: Spec, gradient: int, frame: int, capacity: int, scratch: tuple[int, int], stream: int) -> None:
    """Encode ``spec.count`` elements at address ``gradient`` into at most ``capacity`` bytes at ``frame``.

    All addresses are of the current device's memory, ``scratch`` is an address and as many bytes as there are. On
    return the work is on ``stream``, not yet done. Raises ``QSGDError`` if it cannot be put there.
    """
    address, room = scratch
    _raise_unless_ok(library().qsgd_cuda_encode(spec, gradient, frame, capacity, None, address, room, stream))


def encode_many_scratch(encodings: ctypes.Array[Encoding]) -> int:
    """How many bytes of scratch memory ``encode_many`` needs."""
    return _size(library().qsgd_cuda_encode_many_scratch, encodings, len(encodings))


def encode_many(encodings: ctypes.Array[Encoding], scratch: tuple[int, int], stream: int) -> None:
    """``encode`` for all of them, by few kernels. The array may change again on return."""
    _raise_unless_ok(library().qsgd_cuda_encode_many(encodings, len(encodings), None, *scratch, stream))


def encode_begin(spec: Spec, gradient: int, frame_bytes: int, scratch: tuple[int, int], stream: int) -> None:
    """Encode up to the frame, whose length is written to the 8 bytes at ``frame_bytes``: codecs of variable length.

    The rest is as for ``encode``. The scratch memory must be left alone until ``encode_end``.
    """
    status = library().qsgd_cuda_encode_begin(spec, gradient, None, *scratch, frame_bytes, stream)
    _raise_unless_ok(status)


def encode_end(spec: Spec, frame: int, frame_bytes: int, scratch: tuple[int, int], stream: int) -> None:
    """Write the frame to ``frame``, padded up to ``frame_bytes``: no less than ``encode_begin`` found."""
    _raise_unless_ok(library().qsgd_cuda_encode_end(spec, frame, frame_bytes, *scratch, stream))


def decode_scratch(frame_count: int) -> int:
    """How many bytes of scratch memory ``decode_sum`` needs for so many frames of fixed widths."""
    return _size(library().qsgd_cuda_decode_scratch, frame_count)


def decode_scratch_variable(count: int, frame_count: int) -> int:
    """The same for so many frames of ``count`` elements each, whose lengths may vary."""
    return _size(library().qsgd_cuda_decode_scratch_variable, count, frame_count)


def decode_sum(
    frames: tuple[int, int],
    count: int,
    expected: Expectation,
    factor: float,
    out: int,
    verdict: int,
    scratch: tuple[int, int],
    stream: int,
) -> None:
    """Write ``factor`` times the sum of ``count`` frames to ``out``, and a ``Verdict`` to ``verdict``.

    ``frames`` and ``scratch`` are an address and as many bytes as there are. On return the work is on ``stream``, not
    yet done; the sum will be all NaN unless the verdict's status is OK. Raises ``QSGDError`` if it cannot be put there.
    """
    status = library().qsgd_cuda_decode_sum(*frames, count, expected, factor, None, out, verdict, *scratch, stream)
    _raise_unless_ok(status)


def decode_sum_many_scratch(summations: ctypes.Array[Summation]) -> int:
    """How many bytes of scratch memory ``decode_sum_many`` needs."""
    return _size(library().qsgd_cuda_decode_sum_many_scratch, summations, len(summations))


def decode_sum_many(summations: ctypes.Array[Summation], scratch: tuple[int, int], stream: int) -> None:
    """``decode_sum`` for all of them, by few kernels: frames of fixed widths. The array may change again on return."""
    _raise_unless_ok(library().qsgd_cuda_decode_sum_many(summations, len(summations), None, *scratch, stream))


def _size(ask: Any, *of: Any) -> int:
    size = c_uint64()
    _raise_unless_ok(ask(*of, size))
    return size.value


def _raise_unless_ok(status: int) -> None:
    if status == CUDA_ERROR:
        error = library().qsgd_cuda_error().decode()
        if any(words in error for words in BUILT_FOR_OTHERS):
            error += "; build the CUDA kernels for this GPU, with a toolkit that its driver knows: `make cuda`"
        raise QSGDError(f"{status_text(status)}: {error}")
    if status != OK:
        raise QSGDError(f"the CUDA kernel refused: {status_text(status)}")
