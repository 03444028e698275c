"""The kernel library through its C ABI (``kernels/qsgd.h``): structures, argument types, status codes.

Addresses are plain integers, so that any framework's buffers can be passed; whoever calls keeps them alive.
"""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
from ctypes import POINTER, c_char_p, c_float, c_int, c_uint8, c_uint32, c_uint64, c_void_p

from hvd_qsgd.errors import QSGDError

ABI_VERSION = 1
LIBRARY_VARIABLE = "HVD_QSGD_LIBRARY"
THREADS_VARIABLE = "HVD_QSGD_NUM_THREADS"
# How launchers tell a process how many ranks share its machine.
LOCAL_SIZE_VARIABLES = (
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "HOROVOD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "PMI_LOCAL_SIZE",
    "SLURM_NTASKS_PER_NODE",
)

OK = 0
ERROR_FRAME = 21
# status -> what is wrong with a frame; the rest of the sentence names the frame and says what to do.
FRAME_STATUS = {
    10: "is cut short",
    11: "does not begin with the bytes 'QSGD'",
    12: "is of a format version that this hvd_qsgd does not know",
    13: "has an unknown codec",
    14: "has an unknown norm",
    15: "has an unknown dtype",
    16: "has reserved bits set",
    17: "claims an impossible number of elements",
    18: "claims an impossible bucket size",
    19: "claims levels that its codec does not have",
    20: "claims a length that does not fit its other fields",
    21: "is an error frame",
    22: "has a scale that no encoder writes",
    30: "has another number of elements than the tensor here",
    31: "has another dtype than the tensor here",
    32: "belongs to another tensor",
    33: "belongs to another step",
    34: "comes from another rank than its position says",
    35: "is damaged: its checksum does not match",
    36: "is followed by bytes that belong to no frame",
}


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
        ("zero", c_uint8 * 4),
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


class FrameError(Exception):
    """A decoder's refusal: ``status`` of ``FRAME_STATUS`` for frame number ``frame``."""

    def __init__(self, status: int, frame: int) -> None:
        super().__init__(FRAME_STATUS.get(status, f"failed with status {status}"))
        self.status = status
        self.frame = frame


def encode(spec: Spec, gradient: int, frame: int, capacity: int) -> None:
    """Encode ``spec.count`` elements at address ``gradient`` into ``capacity`` bytes at ``frame``."""
    _raise_unless_ok(library().qsgd_encode(ctypes.byref(spec), gradient, frame, capacity, default_threads()))


def frame_bytes(spec: Spec) -> int:
    """Bytes of the frame that ``encode`` writes for ``spec``."""
    size = c_uint64()
    _raise_unless_ok(library().qsgd_frame_bytes(ctypes.byref(spec), ctypes.byref(size)))
    return size.value


def decode_sum(frames: int, size: int, count: int, expected: Expectation, factor: float, out: int) -> None:
    """Write ``factor`` times the sum of the ``count`` frames that fill ``size`` bytes at ``frames`` to ``out``.

    Raises ``FrameError`` for the first frame that is not valid or does not belong.
    """
    bad = c_uint32()
    status = library().qsgd_decode_sum(
        frames, size, count, ctypes.byref(expected), factor, out, default_threads(), ctypes.byref(bad)
    )
    if status in FRAME_STATUS:
        raise FrameError(status, bad.value)
    _raise_unless_ok(status)


def check(frame: int, size: int) -> tuple[int, int]:
    """Status of the frame at ``frame`` (OK, ERROR_FRAME or a key of ``FRAME_STATUS``) and its length in bytes."""
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


@functools.cache
def default_threads() -> int:
    """``HVD_QSGD_NUM_THREADS``, or this process's share of the processors its ranks may use."""
    wanted = os.environ.get(THREADS_VARIABLE)
    if wanted:
        if not wanted.isdigit() or int(wanted) < 1:
            raise QSGDError(f"{THREADS_VARIABLE}={wanted!r} is not a positive whole number; set it to one or unset it")
        return int(wanted)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local_sizes = (os.environ.get(name, "") for name in LOCAL_SIZE_VARIABLES)
    ranks = next((int(size) for size in local_sizes if size.isdigit() and int(size) > 0), 1)
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
    version = loaded.qsgd_abi_version()
    if version != ABI_VERSION:
        raise QSGDError(
            f"{path} has ABI version {version}, this package needs {ABI_VERSION}; build it again (`make kernels`)"
        )
    loaded.qsgd_isa.restype = c_char_p
    loaded.qsgd_frame_bytes.argtypes = (POINTER(Spec), POINTER(c_uint64))
    loaded.qsgd_encode.argtypes = (POINTER(Spec), c_void_p, c_void_p, c_uint64, c_uint32)
    loaded.qsgd_decode_sum.argtypes = (
        c_void_p,
        c_uint64,
        c_uint32,
        POINTER(Expectation),
        c_float,
        c_void_p,
        c_uint32,
        POINTER(c_uint32),
    )
    loaded.qsgd_check.argtypes = (c_void_p, c_uint64, POINTER(c_uint64))
    loaded.qsgd_seal.argtypes = (c_void_p, c_uint64)
    loaded.qsgd_read_sum.argtypes = (c_void_p, c_uint64)
    loaded.qsgd_read_sum.restype = c_float
    for function in (
        loaded.qsgd_frame_bytes,
        loaded.qsgd_encode,
        loaded.qsgd_decode_sum,
        loaded.qsgd_check,
        loaded.qsgd_seal,
    ):
        function.restype = c_int
    return loaded


def _raise_unless_ok(status: int) -> None:
    if status == OK:
        return
    reasons = {
        1: "an argument is out of range",
        2: "the frame's buffer is too small",
        3: "memory or threads ran out",
    }
    raise QSGDError(f"the kernel refused: {reasons.get(status, f'status {status}')}")
