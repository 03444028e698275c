"""The kernel library through its C ABI (``kernels/qsgd.h``): structures, argument types, status codes.

Addresses are plain integers, so that any framework's buffers can be passed; whoever calls keeps them alive.
"""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
import re
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_uint8, c_uint32, c_uint64, c_void_p
from typing import Any

from hvd_qsgd.errors import QSGDError

ABI_VERSION = 5
LIBRARY_VARIABLE = "HVD_QSGD_LIBRARY"
THREADS_VARIABLE = "HVD_QSGD_NUM_THREADS"
ISA_VARIABLE = "HVD_QSGD_ISA"
ISAS = ("avx512", "avx2", "baseline")
# How launchers tell a process how many ranks share its machine.
LOCAL_SIZE_VARIABLES = (
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "HOROVOD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "PMI_LOCAL_SIZE",
    "SLURM_NTASKS_PER_NODE",
)

_NUMBER = re.compile("[0-9]{1,9}")

OK = 0
ERROR_FRAME = 21
# Of kernels/qsgd.h.
FIRST_FRAME_STATUS = 10  # from here on a status tells what is wrong with a frame or a token
MAX_ERROR_FRAME = 96 + 1024
MAX_EXPLANATION = 2048
TOKEN_LENGTH = 16
CODEC_AUTO = 255


class Spec(ctypes.Structure):
    """``qsgd_spec``: how to encode, and what the header says."""

    _fields_ = (
        ("count", c_uint64),
        ("bucket_size", c_uint64),
        ("seed", c_uint64),
        ("levels", c_uint32),
        ("rank", c_uint32),
        ("tensor", c_uint32),
        ("step", c_uint32),
        ("codec", c_uint8),
        ("norm", c_uint8),
        ("dtype", c_uint8),
        ("flags", c_uint8),
        ("columns", c_uint32),
    )


class Expectation(ctypes.Structure):
    """``qsgd_expectation``: what every frame of a sum must say."""

    _fields_ = (
        ("count", c_uint64),
        ("tensor", c_uint32),
        ("step", c_uint32),
        ("dtype", c_uint32),
        ("first_rank", c_uint32),
    )


class History(ctypes.Structure):
    """``qsgd_history``: what is remembered of a tensor from one frame to the next."""

    _fields_ = (
        ("frame_bytes", c_uint64),
        ("frames", c_uint32),
        ("levels", c_uint32),
        ("codec", c_uint8),
        ("zero", c_uint8 * 7),
    )


class FrameError(Exception):
    """A decoder's refusal of frame number ``frame``."""

    def __init__(self, status: int, frame: int) -> None:
        super().__init__(status_text(status))
        self.status = status
        self.frame = frame


def status_text(status: int) -> str:
    """What a status means; the rest of the sentence names the frame."""
    text: bytes = library().qsgd_status_text(status)
    return text.decode()


def encode(spec: Spec, gradient: int, frame: int, capacity: int) -> int:
    """Encode ``spec.count`` elements at address ``gradient`` into at most ``capacity`` bytes at ``frame``: how many?"""
    size = c_uint64()
    status = library().qsgd_encode(spec, gradient, frame, capacity, default_threads(), size)
    if status:
        _raise_unless_ok(status)
    return size.value


def solve_levels(spec: Spec, gradient: int, variance: float) -> int:
    """The least levels, up to ``spec.levels``, that bring the gradient at this address no more relative variance."""
    levels = c_uint32()
    _raise_unless_ok(library().qsgd_solve_levels(spec, gradient, variance, default_threads(), levels))
    return levels.value


def columns(shape: Sequence[int]) -> int:
    """``Spec.columns`` for a tensor of this shape: elements in a row of it, as a matrix; 0 if it has no rows."""
    return int(library().qsgd_columns((c_uint64 * len(shape))(*shape), len(shape)))


def encode_next(spec: Spec, variance: float | None, history: History, gradient: int, frame: int, capacity: int) -> int:
    """As ``encode``, for the tensor that ``history`` is of: levels for ``variance``, the codec chosen, padded."""
    size = c_uint64()
    threads = default_threads()
    status = library().qsgd_encode_next(spec, variance or 0.0, history, gradient, frame, capacity, threads, size)
    if status:
        _raise_unless_ok(status)
    return size.value


def pad(frame: int, capacity: int, size: int) -> None:
    """Make the frame at ``frame`` ``size`` bytes long, a multiple of 16, by more or less padding."""
    _raise_unless_ok(library().qsgd_pad(frame, capacity, size))


def frame_bytes(spec: Spec) -> int:
    """The most bytes of a frame that ``encode`` writes for ``spec``; with a fixed width all have as many."""
    size = c_uint64()
    _raise_unless_ok(library().qsgd_frame_bytes(ctypes.byref(spec), ctypes.byref(size)))
    return size.value


def padded_bytes(size: int, last: int) -> int:
    """How long to make a frame of variable length that needs ``size`` bytes, the last one having been ``last`` long."""
    return int(library().qsgd_padded_bytes(size, last))


def decode_sum(frames: int, size: int, count: int, expected: Expectation, factor: float, out: int) -> None:
    """Write ``factor`` times the sum of the ``count`` frames that fill ``size`` bytes at ``frames`` to ``out``.

    Raises ``FrameError`` for the first frame that is not valid or does not belong.
    """
    bad = c_uint32()
    status = library().qsgd_decode_sum(frames, size, count, expected, factor, out, default_threads(), bad)
    if status >= FIRST_FRAME_STATUS:
        raise FrameError(status, bad.value)
    if status:
        _raise_unless_ok(status)


def add_gradient(gradient: int, dtype: int, count: int, residual: int) -> None:
    """Add ``count`` elements of ``dtype`` at ``gradient`` to the float32 at ``residual``."""
    _raise_unless_ok(library().qsgd_add_gradient(gradient, dtype, count, residual, default_threads()))


def subtract_frame(frame: int, size: int, expected: Expectation, residual: int) -> None:
    """Subtract what the frame in ``size`` bytes at ``frame`` decodes to from the float32 at ``residual``."""
    _raise_unless_ok(library().qsgd_subtract_frame(frame, size, expected, residual, default_threads()))


def explain(refused: FrameError, frames: int, size: int, expected: Expectation, what: str) -> str:
    """A sentence about ``decode_sum``'s refusal of ``what``; the other arguments are those that it was given."""
    text = ctypes.create_string_buffer(MAX_EXPLANATION)
    library().qsgd_explain(
        refused.status, frames, size, refused.frame, ctypes.byref(expected), what.encode(), text, len(text)
    )
    return text.value.decode("utf-8", "replace")


def error_frame(spec: Spec, message: str) -> bytes:
    """The frame that tells the other ranks why this one could not encode."""
    frame, size = ctypes.create_string_buffer(MAX_ERROR_FRAME), c_uint64()
    text = message.encode("utf-8", "replace")
    _raise_unless_ok(library().qsgd_error_frame(ctypes.byref(spec), text, frame, len(frame), ctypes.byref(size)))
    return frame.raw[: size.value]


def signature(operation: str, tensor: int, count: int, dtype: int) -> int:
    """A few bits that differ, most likely, wherever an argument differs."""
    return int(library().qsgd_signature(operation.encode(), tensor, count, dtype))


def token(rank: int, bits: int) -> list[float]:
    """The token that ``rank`` sends with this signature."""
    entries = (c_float * TOKEN_LENGTH)()
    library().qsgd_token(rank, bits, entries)
    return list(entries)


def token_factor(reduced: Sequence[float], size: int, bits: int, what: str) -> float:
    """The factor of a token that came back; raises ``QSGDError`` about ``what`` if it is not right."""
    factor = c_float()
    entries = (c_float * len(reduced))(*reduced)
    status = library().qsgd_token_factor(entries, len(reduced), size, bits, ctypes.byref(factor))
    if status >= FIRST_FRAME_STATUS:
        text = ctypes.create_string_buffer(MAX_EXPLANATION)
        library().qsgd_explain_token(status, len(reduced), size, what.encode(), text, len(text))
        raise QSGDError(text.value.decode("utf-8", "replace"))
    _raise_unless_ok(status)
    return factor.value


def check(frame: int, size: int) -> tuple[int, int]:
    """Status of the frame at ``frame`` (OK, ERROR_FRAME or what is wrong) and its length in bytes."""
    length = c_uint64()
    status = library().qsgd_check(frame, size, ctypes.byref(length))
    return status, length.value


def seal(frame: int, size: int) -> None:
    """Write the checksum of a frame that is otherwise complete."""
    _raise_unless_ok(library().qsgd_seal(frame, size))


def isa() -> str:
    """The instruction set in use: ``avx512``, ``avx2`` or ``baseline`` (``HVD_QSGD_ISA`` lowers it)."""
    name: bytes = library().qsgd_isa()
    return name.decode()


def read_sum(values: int, count: int) -> float:
    """Sum of ``count`` float32 at ``values``: the benchmarks' read-only floor."""
    return float(library().qsgd_read_sum(values, count))


# Every function of kernels/qsgd.h: what it returns, what it takes.
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "qsgd_abi_version": (c_uint32,),
    "qsgd_isa": (c_char_p,),
    "qsgd_frame_bytes": (c_int, POINTER(Spec), POINTER(c_uint64)),
    "qsgd_encode": (c_int, POINTER(Spec), c_void_p, c_void_p, c_uint64, c_uint32, POINTER(c_uint64)),
    "qsgd_solve_levels": (c_int, POINTER(Spec), c_void_p, c_double, c_uint32, POINTER(c_uint32)),
    "qsgd_encode_next": (
        c_int, POINTER(Spec), c_double, POINTER(History), c_void_p, c_void_p, c_uint64, c_uint32, POINTER(c_uint64)
    ),
    "qsgd_columns": (c_uint32, POINTER(c_uint64), c_uint32),
    "qsgd_pad": (c_int, c_void_p, c_uint64, c_uint64),
    "qsgd_padded_bytes": (c_uint64, c_uint64, c_uint64),
    "qsgd_decode_sum": (
        c_int, c_void_p, c_uint64, c_uint32, POINTER(Expectation), c_float, c_void_p, c_uint32, POINTER(c_uint32)
    ),
    "qsgd_add_gradient": (c_int, c_void_p, c_uint32, c_uint64, c_void_p, c_uint32),
    "qsgd_subtract_frame": (c_int, c_void_p, c_uint64, POINTER(Expectation), c_void_p, c_uint32),
    "qsgd_check": (c_int, c_void_p, c_uint64, POINTER(c_uint64)),
    "qsgd_seal": (c_int, c_void_p, c_uint64),
    "qsgd_error_frame": (c_int, POINTER(Spec), c_char_p, c_void_p, c_uint64, POINTER(c_uint64)),
    "qsgd_status_text": (c_char_p, c_int),
    "qsgd_explain": (
        None, c_int, c_void_p, c_uint64, c_uint32, POINTER(Expectation), c_char_p, c_void_p, c_uint64
    ),
    "qsgd_signature": (c_uint32, c_char_p, c_uint32, c_uint64, c_uint32),
    "qsgd_token": (None, c_uint32, c_uint32, POINTER(c_float)),
    "qsgd_token_factor": (c_int, POINTER(c_float), c_uint64, c_uint32, c_uint32, POINTER(c_float)),
    "qsgd_explain_token": (None, c_int, c_uint64, c_uint32, c_char_p, c_void_p, c_uint64),
    "qsgd_read_sum": (c_float, c_void_p, c_uint64),
}  # fmt: skip


@functools.cache
def default_threads() -> int:
    """``HVD_QSGD_NUM_THREADS``, or this process's share of the processors its ranks may use."""
    wanted = os.environ.get(THREADS_VARIABLE)
    if wanted:
        if not _NUMBER.fullmatch(wanted) or int(wanted) < 1:
            raise QSGDError(f"{THREADS_VARIABLE}={wanted!r} is not a positive whole number; set it to one or unset it")
        return int(wanted)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local_sizes = (os.environ.get(name, "") for name in LOCAL_SIZE_VARIABLES)
    ranks = next((int(size) for size in local_sizes if _NUMBER.fullmatch(size) and int(size) > 0), 1)
    return max(1, processors // ranks)


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded kernel library, its functions declared."""
    path = os.environ.get(LIBRARY_VARIABLE) or str(pathlib.Path(__file__).with_name("libhvd_qsgd.so"))
    try:
        loaded = ctypes.CDLL(path)
    except OSError as error:
        raise QSGDError(
            f"the kernel library cannot be loaded ({error}); run `make kernels` in a checkout, or `pip install` the "
            "package again"
        ) from error
    isa = os.environ.get(ISA_VARIABLE)
    if isa and isa not in ISAS:
        raise QSGDError(f"{ISA_VARIABLE}={isa!r} is unknown: set it to {', '.join(ISAS)}, or unset it")
    return declared(loaded, path, SIGNATURES, "qsgd_abi_version", "make kernels")


def declared(
    loaded: ctypes.CDLL, path: str, signatures: dict[str, tuple[Any, ...]], version: str, build: str
) -> ctypes.CDLL:
    """The library at ``path``, its functions declared; raises if ``version`` tells another ABI or one is missing."""
    found = getattr(loaded, version)() if hasattr(loaded, version) else None
    if found != ABI_VERSION:
        raise QSGDError(f"{path} has ABI version {found}, this package needs {ABI_VERSION}; build it again (`{build}`)")
    for name, (result, *arguments) in signatures.items():
        function = getattr(loaded, name, None)
        if function is None:
            raise QSGDError(f"{path} has no function {name}, which this package needs; build it again (`{build}`)")
        function.restype, function.argtypes = result, arguments
    return loaded


def _raise_unless_ok(status: int) -> None:
    if status != OK:
        raise QSGDError(f"the kernel refused: {status_text(status)}")
