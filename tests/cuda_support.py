"""The CUDA kernels as the tests call them, with the arguments of `support.Kernels`: emulated on the processor (`make
cuda-emulate-test`), or on a GPU if HVD_QSGD_TEST_GPU is set."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import reference as ref
from support import GUARD, GUARD_BYTE, Array, RefusedError, environment, make_spec

from hvd_qsgd import native, native_cuda

ON_GPU = bool(os.environ.get("HVD_QSGD_TEST_GPU"))
BUILT = Path(__file__).parents[1] / "build/cuda-emulated/libhvd_qsgd_cuda.so"
EMULATED = Path(os.environ.get("HVD_QSGD_CUDA_EMULATION") or BUILT)
VARIABLE = [ref.CODECS[codec] for codec in ("elias-dense", "elias-sparse", "rans")]
ELEMENTS = {"float32": np.dtype("f4"), "float16": np.dtype("f2"), "bfloat16": np.dtype("u2")}


class Buffer:
    """Memory of the device at an address 16·k + offset. With a content, which kernels only read, it ends where its
    memory ends, so that checkers see any reading beyond; with a size, it lies between bytes that must not change."""

    def __init__(self, content: bytes | int, offset: int = 0) -> None:
        read_only = not isinstance(content, int)
        size = len(content) if read_only else content
        start = GUARD + offset
        self.memory: Any = to_device(np.full(start + size + (0 if read_only else GUARD), GUARD_BYTE, np.uint8))
        first = self.memory.data_ptr() if ON_GPU else self.memory.ctypes.data
        self.address, self.place = first + start, slice(start, start + size)
        assert self.address % 16 == offset % 16
        if read_only:
            self.write(content)

    def write(self, content: bytes) -> None:
        self.memory[self.place] = to_device(np.frombuffer(content, np.uint8).copy())

    def read(self) -> bytes:
        everything = self.memory.cpu().numpy() if ON_GPU else self.memory
        outside = np.delete(everything, self.place)
        assert (outside == GUARD_BYTE).all(), "wrote outside of the buffer"
        return bytes(everything[self.place])


def to_device(array: Array) -> Any:
    if not ON_GPU:
        return array
    import torch

    return torch.from_numpy(array).cuda()


class CudaKernels:
    """The C ABI on one stream of the device; sums are of frames of `variable` length, too."""

    isa = "cuda"

    def __init__(self, variable: bool) -> None:
        self.variable = variable
        if ON_GPU:
            self.c: Any = native_cuda.library()
        else:
            with environment(**{native_cuda.LIBRARY_VARIABLE: str(EMULATED)}):
                self.c = native_cuda.library.__wrapped__()  # not the cached one

    def encode(
        self, array: Array, *, offset: int = 0, draw: native_cuda.Draw | None = None, padding: int = 0, **how: Any
    ) -> bytes:
        """As `reference.encode`; the gradient is `offset` elements, and the frame as many words, off a line's start."""
        spec = make_spec(array.size, **how)
        scratch = ctypes.c_uint64()
        assert self.c.qsgd_cuda_encode_scratch(spec, scratch) == native.OK
        gradient, work = Buffer(array.tobytes(), array.itemsize * offset), Buffer(scratch.value)
        numbers = Buffer(bytes(draw)) if draw else None
        drawn = numbers.address if numbers else None
        if spec.codec in VARIABLE:
            return self.encode_in_two_steps(spec, gradient, drawn, work, scratch.value, 8 * offset, padding)
        size = native.frame_bytes(spec)
        frame = Buffer(size, 8 * offset)
        status = self.c.qsgd_cuda_encode(
            spec, gradient.address, frame.address, size, drawn, work.address, scratch.value, None
        )
        assert status == native.OK, self.c.qsgd_cuda_error()
        work.read()
        return frame.read()

    def encode_in_two_steps(
        self, spec: native.Spec, gradient: Buffer, drawn: int | None, work: Buffer, room: int, offset: int, padding: int
    ) -> bytes:
        found = Buffer(8)
        status = self.c.qsgd_cuda_encode_begin(spec, gradient.address, drawn, work.address, room, found.address, None)
        assert status == native.OK, self.c.qsgd_cuda_error()
        size = int.from_bytes(found.read(), "little") + padding
        frame = Buffer(size, offset)
        assert self.c.qsgd_cuda_encode_end(spec, frame.address, size, work.address, room, None) == native.OK
        work.read()
        return frame.read()

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
        offset: int = 0,
        late_factor: float | None = None,
        draw: native_cuda.Draw | None = None,
    ) -> Array:
        """As `reference.decode_sum`, with factor and step from the device's memory if these are given."""
        expected = native.Expectation(count, tensor, step, ref.DTYPES[dtype], first_rank)
        data, scratch = b"".join(frames), ctypes.c_uint64()
        if self.variable:
            assert self.c.qsgd_cuda_decode_scratch_variable(count, len(frames), scratch) == native.OK
        else:
            assert self.c.qsgd_cuda_decode_scratch(len(frames), scratch) == native.OK
        element = ELEMENTS[dtype]
        sent, out = Buffer(data, 8 * offset), Buffer(count * element.itemsize, element.itemsize * offset)
        work, verdict = Buffer(scratch.value), Buffer(ctypes.sizeof(native_cuda.Verdict))
        number = Buffer(np.float32(late_factor).tobytes()) if late_factor is not None else None
        numbers = Buffer(bytes(draw)) if draw else None
        late = native_cuda.Late(number.address if number else None, numbers.address if numbers else None)
        status = self.c.qsgd_cuda_decode_sum(
            sent.address,
            len(data),
            len(frames),
            expected,
            factor,
            late,
            out.address,
            verdict.address,
            work.address,
            scratch.value,
            None,
        )
        assert status == native.OK, self.c.qsgd_cuda_error()
        work.read()
        values = np.frombuffer(out.read(), element)
        found = native_cuda.Verdict.from_buffer_copy(verdict.read())
        if found.status != native.OK:
            assert is_nan(values, dtype).all()
            raise RefusedError(found.status, found.bad_frame)
        return values


def is_nan(values: Array, dtype: str) -> Array:
    return np.isnan(ref.widen(values, dtype))


@functools.cache
def cuda_kernels(variable: bool = False) -> CudaKernels:
    return CudaKernels(variable)
