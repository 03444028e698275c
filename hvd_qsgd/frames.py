"""Encoding and decoding by address: the one place where Python meets the kernels, for every frontend."""

from __future__ import annotations

import ctypes

from hvd_qsgd import native, wire
from hvd_qsgd.config import Quantization
from hvd_qsgd.errors import QSGDError


def make_spec(
    quantization: Quantization, *, count: int, dtype: str, seed: int, rank: int, tensor: int, step: int, flags: int = 0
) -> native.Spec:
    """What the kernels need to encode one tensor."""
    spec = native.Spec(count=count, seed=seed, rank=rank, tensor=tensor, step=step, flags=flags)
    spec.dtype = wire.DTYPES[dtype]
    set_quantization(spec, quantization)
    return spec


def set_quantization(spec: native.Spec, quantization: Quantization) -> None:
    """Let ``spec`` say how to encode from now on."""
    spec.bucket_size = quantization.bucket_size_for(spec.count)
    spec.levels = quantization.levels
    spec.codec = wire.CODECS[quantization.codec].id
    spec.norm = wire.NORMS[quantization.norm]


def expect(spec: native.Spec, first_rank: int = 0) -> native.Expectation:
    """What the frames that are summed with ``spec``'s must say."""
    return native.Expectation(spec.count, spec.tensor, spec.step, spec.dtype, first_rank)


def decode_sum(
    address: int,
    size: int,
    frame_count: int,
    expected: native.Expectation,
    factor: float,
    out: int,
    what: object = "the frame",
) -> None:
    """Write ``factor`` times the sum of ``frame_count`` frames in ``size`` bytes at ``address`` to ``out``.

    Raises:
        QSGDError: a frame is invalid or belongs to something else; the sentence names the rank and the reason.
    """
    try:
        native.decode_sum(address, size, frame_count, expected, factor, out)
    except native.FrameError as refused:
        raise QSGDError(_explain(refused, address, size, expected, what)) from None


def sealed_error_frame(text: str, *, count: int, dtype: str, rank: int, tensor: int, step: int) -> bytearray:
    """A complete error frame."""
    frame = wire.error_frame(text, count=count, dtype=dtype, rank=rank, tensor=tensor, step=step)
    native.seal(ctypes.addressof(ctypes.c_char.from_buffer(frame)), len(frame))
    return frame


def _explain(refused: native.FrameError, address: int, size: int, expected: native.Expectation, what: object) -> str:
    rank = expected.first_rank + refused.frame
    frame = _frame_bytes(address, size, refused.frame)
    if refused.status == native.ERROR_FRAME:
        return f"rank {rank} could not encode {what}: {wire.message(frame)}"
    return f"{what} from rank {rank} {refused}{_difference(refused.status, frame, expected)}; {_advice(refused.status)}"


def _frame_bytes(address: int, size: int, index: int) -> memoryview:
    """Frame number ``index``, to the end of the buffer; those before it have been checked."""
    frames = memoryview((ctypes.c_char * size).from_address(address)).cast("B")
    for _ in range(index):
        frames = frames[wire.parse(frames).frame_bytes :]
    return frames


def _difference(status: int, frame: memoryview, expected: native.Expectation) -> str:
    if not 30 <= status <= 34:
        return ""
    header = wire.parse(frame)
    there, here = {
        30: (header.count, expected.count),
        31: (header.dtype, wire.DTYPE_NAMES.get(expected.dtype, expected.dtype)),
        32: (f"id {header.tensor:#010x}", f"id {expected.tensor:#010x}"),
        33: (header.step, expected.step),
        34: (header.rank, "its position"),
    }[status]
    return f" ({there} there, {here} here)"


def _advice(status: int) -> str:
    if status == 33:
        return "let all ranks load the same state_dict(), for example hvd.broadcast_object(compressor.state_dict())"
    if 30 <= status <= 34:
        return "every rank must reduce the same tensors in the same order: check the model, or pass named_parameters="
    if status == 12:
        return "install the same hvd_qsgd on every rank"
    return "the bytes were changed on their way or never were a frame of hvd_qsgd"
