"""The kernels as the tests call them: one library for each instruction set, buffers of any alignment between guard
bytes, the same arguments as `reference.py`; and inputs that find mistakes."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import reference as ref

from hvd_qsgd import native
from hvd_qsgd.compressor import Compressor, Options, Ranks
from hvd_qsgd.config import Quantization
from hvd_qsgd.steps import Ticket

Array = ref.Array
ISAS = ("avx512", "avx2", "baseline")
FIXED_CODERS = [("packed", s) for s in (1, 3, 7, 15, 31, 63, 127, 2, 5, 10, 20, 50, 100, 126)] + [("ternary", 1)]
VARIABLE_CODERS = [("rans", s) for s in (7, 32767)]
CODERS = FIXED_CODERS + VARIABLE_CODERS + [("onebit", 1)]
SOME_CODERS = [("packed", 1), ("packed", 5), ("packed", 7), ("packed", 127), ("ternary", 1), ("rans", 7), ("rans", 999)]
SOME_CODERS += [("onebit", 1)]  # whose norm is none, whatever is asked for
NORMS = ("max", "l2")
DTYPES = ("float32", "float16", "bfloat16")
BUCKETS = (1, 3, 16, 64, 100, 512, 4096, 65536, None)
GUARD = 128
GUARD_BYTE = 0xA5


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class RefusedError(Exception):
    """What `qsgd_decode_sum` returned instead of QSGD_OK, and the frame at fault."""

    def __init__(self, status: int, frame: int) -> None:
        super().__init__(status, frame)
        self.status, self.frame = status, frame


class Kernels:
    """The C ABI of one copy of the library; a copy chooses its instruction set once."""

    def __init__(self, isa: str) -> None:
        original = os.environ.get(native.LIBRARY_VARIABLE) or Path(native.__file__).with_name("libhvd_qsgd.so")
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copy(original, Path(folder, f"{isa}.so"))
            with environment(HVD_QSGD_ISA=isa, **{native.LIBRARY_VARIABLE: str(copy)}):
                self.c: Any = native.library.__wrapped__()  # not the cached one
                self.isa: str = self.c.qsgd_isa().decode()

    def encode(self, array: Array, *, threads: int = 1, offset: int = 0, **how: Any) -> bytes:
        """As `reference.encode`; gradient and frame at odd addresses if `offset` is odd."""
        spec = make_spec(array.size, **how)
        size = ctypes.c_uint64()
        assert self.c.qsgd_frame_bytes(ctypes.byref(spec), ctypes.byref(size)) == native.OK
        gradient = shifted(array.tobytes(), offset)
        with guarded(size.value, offset) as frame:
            status = self.c.qsgd_encode(
                ctypes.byref(spec), gradient.ctypes.data, frame.ctypes.data, frame.size, threads, ctypes.byref(size)
            )
            assert status == native.OK
        return frame[: size.value].tobytes()

    def decode_sum(
        self,
        frames: Sequence[bytes],
        *,
        count: int,
        dtype: str = "float32",
        tensor: int = 0,
        step: int = 0,
        factor: float = 1.0,
        first_rank: int = 0,
        threads: int = 1,
        offset: int = 0,
    ) -> Array:
        """As `reference.decode_sum`; frames and result at odd addresses if `offset` is odd."""
        expected = native.Expectation(count, tensor, step, ref.DTYPES[dtype], first_rank)
        data = shifted(b"".join(frames), offset)
        bad = ctypes.c_uint32()
        element = np.dtype({"float32": "f4", "float16": "f2", "bfloat16": "u2"}[dtype])
        with guarded(count * element.itemsize, offset) as out:
            status = self.c.qsgd_decode_sum(
                data.ctypes.data,
                data.size,
                len(frames),
                ctypes.byref(expected),
                factor,
                out.ctypes.data,
                threads,
                ctypes.byref(bad),
            )
        if status != native.OK:
            raise RefusedError(status, bad.value)
        return np.frombuffer(out.tobytes(), element)


@functools.cache
def all_kernels() -> list[Kernels]:
    """Of every instruction set that this machine has."""
    return [kernels for isa in ISAS if (kernels := Kernels(isa)).isa == isa]


def make_spec(
    count: int,
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
) -> native.Spec:
    d = max(count, 1) if bucket_size is None else bucket_size
    norm_id = 0 if codec == "onebit" else ref.NORMS[norm]
    kinds = ref.CODECS[codec], norm_id, ref.DTYPES[dtype], int(squared_norm) + 2 * subtractive
    return native.Spec(count, d, seed, levels, rank, tensor, step, *kinds, columns)


def shifted(data: bytes, offset: int) -> Array:
    """A copy that ends where its memory ends (so that a sanitizer sees any reading beyond), at 16·k + offset."""
    buffer = np.empty(offset + len(data), np.uint8)[offset:]
    buffer[:] = np.frombuffer(data, np.uint8)
    return buffer


@contextmanager
def guarded(size: int, offset: int) -> Iterator[Array]:
    """Junk to be written over, at an address 64·k + offset, between bytes that must not change."""
    everything = np.full(size + 2 * GUARD + 64, GUARD_BYTE, np.uint8)
    start = GUARD + (offset - GUARD - everything.ctypes.data) % 64
    before, room, after = everything[:start], everything[start : start + size], everything[start + size :]
    yield room
    assert (before == GUARD_BYTE).all(), "wrote before the buffer"
    assert (after == GUARD_BYTE).all(), "wrote after the buffer"


def bits_of(array: Array) -> Array:
    return array.view(f"u{array.itemsize}")


def same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and np.array_equal(bits_of(a), bits_of(b))


def reseal(frame: bytes | bytearray) -> bytes:
    """With the right checksum, as far as the frame goes."""
    frame = bytes(frame)
    return frame[:88] + struct.pack("<Q", ref.checksum(frame[: len(frame) // 8 * 8])) + frame[96:]


def forge(frame: bytes, **fields: int) -> bytes:
    """With other fields in its header, and the checksum that is right for them."""
    header = dataclasses.replace(ref.parse(frame), **fields)
    return reseal(ref.HEADER.pack(*dataclasses.astuple(header)) + frame[96:])


# ---- inputs ----

KINDS = ("gaussian", "sparse", "subnormal", "huge", "mixed", "patchwork", "special", "zeros")
RANGES = {"float32": (-149, -126, 128), "float16": (-24, -14, 16), "bfloat16": (-133, -126, 128)}  # of exponents
NAN_AND_INFINITY = {
    "float32": [0x7FC00000, 0xFFC00001, 0x7F800001, 0x7F800000, 0xFF800000],
    "float16": [0x7E00, 0xFE01, 0x7C01, 0x7C00, 0xFC00],
    "bfloat16": [0x7FC0, 0xFFC1, 0x7F81, 0x7F80, 0xFF80],
}


@functools.lru_cache(maxsize=1000)
def make_input(kind: str, n: int, dtype: str = "float32", seed: int = 0) -> Array:
    """A gradient; bfloat16 as uint16 bit patterns, as `reference.py` takes it."""
    rng = np.random.default_rng([seed, n, KINDS.index(kind)])
    lowest, normal, top = RANGES[dtype]
    values = rng.standard_normal(n)
    if kind == "sparse":
        values *= rng.random(n) < 0.05
        values[n // 3 : n // 2] = 0
    elif kind == "subnormal":
        values = rng.integers(-(2 ** min(normal - lowest, 20)), 2 ** min(normal - lowest, 20) + 1, n) * 2.0**lowest
        values[n // 2 :] *= 64  # partly normal
    elif kind == "huge":
        values = np.sign(values) * (2.0**top * (1 - 2.0**-8) - rng.random(n) * 2.0 ** (top - rng.integers(1, 8, n)))
        values[rng.random(n) < 0.02] = 2.0**top  # made the largest finite number below
    elif kind == "mixed":
        values = np.sign(values) * np.exp2(rng.uniform(lowest, top, n))
    elif kind == "patchwork":  # buckets of very different scales
        scales = np.exp2(rng.uniform(lowest, top - 3, n // 128 + 1)) * (rng.random(n // 128 + 1) < 0.9)
        near = rng.choice([-81, -80, -79], n // 128 + 1)  # where the rescaling of small scales begins
        scales = np.where(rng.random(n // 128 + 1) < 0.2, np.exp2(near.astype(float)), scales)
        values *= np.repeat(scales, 128)[:n]
    elif kind == "zeros":
        values *= np.repeat(rng.random(n // 64 + 1) < 0.1, 64)[:n]
    largest = float(2.0**top - 2.0 ** (top - {"float32": 24, "float16": 11, "bfloat16": 8}[dtype]))
    array = ref.narrow(np.clip(values, -largest, largest).astype(np.float32), dtype)
    if kind == "special" and n:
        where = rng.integers(0, n, n // 1500 + 1)
        bits_of(array)[where] = rng.choice(NAN_AND_INFINITY[dtype], where.size)
    array.flags.writeable = False
    return array


# ---- tensors on their way ----

ALONE = Ranks(0, 1, "group")


def compressor(**options: Any) -> Compressor:
    return Compressor(Quantization.create(), Options(**options))


def leave(core: Compressor, name: str | None = None, count: int = 8, ranks: Ranks = ALONE) -> Ticket:
    return core.open(name, (count,), "float32", lambda: ranks)


def arrive(core: Compressor, ticket: Ticket) -> float:
    """After a sum over ranks that agree."""
    return core.factor(ticket, token_bytes([1.0, *(ticket.slot.size * entry for entry in core.token(ticket.slot)[1:])]))


def token_bytes(entries: Sequence[float]) -> bytes:
    return np.array(entries, np.float32).tobytes()


def named(ticket: Ticket) -> tuple[str, int]:
    return ticket.slot.name, ticket.slot.spec.step


def go(core: Compressor, *names: str | None, ranks: Ranks = ALONE) -> list[tuple[str, int]]:
    """A whole step: all set out, then all arrive."""
    tickets = [leave(core, name, ranks=ranks) for name in names]
    seen = [named(ticket) for ticket in tickets]
    for ticket in tickets:
        arrive(core, ticket)
    return seen
