"""NumPy arrays to frames and back, for tools and curiosity."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from hvd_qsgd import frames, native, wire
from hvd_qsgd.checks import whole_number
from hvd_qsgd.config import DEFAULT, BucketSize, Levels, Quantization
from hvd_qsgd.errors import QSGDError

Array = npt.NDArray[Any]


def encode(
    array: npt.ArrayLike,
    bits: int | None = None,
    *,
    levels: Levels = None,
    variance: float | None = None,
    bucket_size: BucketSize = DEFAULT,
    norm: str | None = None,
    codec: str | None = None,
    dither: str = "nonsubtractive",
    seed: int = 0,
    rank: int = 0,
    tensor: int = 0,
    step: int = 0,
    squared_norm: bool = False,
) -> bytes:
    """Quantize and code ``array`` into one frame (``docs/wire_format.md``).

    Args:
        array: float32, float16, bfloat16 (of ``ml_dtypes``) or float64 (rounded to float32), any shape; the frame
            keeps the number of elements, in C order, but not the shape.
        bits: b = 2..8, that is 2^(b-1) - 1 levels (default 4; ternary: 2). ``levels`` sets the levels instead.
        variance: instead, as many levels as bring this relative variance E||Q(v) - v||^2 / ||v||^2, or all there are.
        bucket_size: elements a scale, or ``None`` for the whole array. Default 512; with ``variance`` None.
        norm: ``"max"`` or ``"l2"``. Default "max"; with ``variance`` "l2".
        codec: ``"packed"``, ``"ternary"``, ``"elias-dense"``, ``"elias-sparse"``, ``"rans"`` or ``"auto"``, the one of
            these with the shortest frame. Default "packed"; with ``variance`` "auto".
        dither: ``"nonsubtractive"``, or, with a fixed width, ``"subtractive"``: decoders subtract the random numbers.
        seed, rank, tensor, step: what the random rounding depends on, besides the element's position.
        squared_norm: put the squared l2 norm into the header.

    Raises:
        QSGDError: an argument is wrong.
    """
    quantization = Quantization.create(bits, levels, variance, bucket_size, norm, codec, dither)
    values, dtype = as_gradient(array)
    spec = frames.make_spec(
        quantization,
        count=values.size,
        dtype=dtype,
        seed=whole_number("seed", seed, 0, 2**64 - 1),
        rank=whole_number("rank", rank, 0, 2**32 - 1),
        tensor=whole_number("tensor", tensor, 0, 2**32 - 1),
        step=whole_number("step", step, 0, 2**32 - 1),
        squared_norm=_truth("squared_norm", squared_norm),
        columns=native.columns(values.shape),
    )
    frame = np.empty(native.frame_bytes(spec), np.uint8)
    address, history = frame.ctypes.data, native.History()
    size = native.encode_next(spec, quantization.variance, history, values.ctypes.data, address, frame.size)
    shortest = -(-wire.parse(frame.data).coded_bytes // 16) * 16
    if shortest < size:  # no other frame will have to be as long
        native.pad(address, frame.size, shortest)
    return frame[:shortest].tobytes()


def decode(frame: bytes | bytearray | memoryview) -> Array:
    """The values of one frame, as a one-dimensional array of its dtype.

    bfloat16 needs the package ``ml_dtypes``; without it the values come as float32, which holds them exactly.

    Raises:
        QSGDError: the bytes are not exactly one valid frame, or it is an error frame.
    """
    return decode_sum([frame])


def decode_sum(frames_in_rank_order: Sequence[bytes | bytearray | memoryview], factor: float = 1.0) -> Array:
    """``factor`` times the sum of several frames of the same tensor and step, from ranks first, first + 1, ..."""
    if not isinstance(frames_in_rank_order, (list, tuple)):
        raise QSGDError(f"the frames come as a list, in rank order, not as {type(frames_in_rank_order).__name__}")
    if not frames_in_rank_order:
        raise QSGDError("there is nothing to decode: pass at least one frame")
    factor = _number("factor", factor)
    header = inspect(frames_in_rank_order[0])
    buffer = np.concatenate([_bytes_of(frame) for frame in frames_in_rank_order])
    expected = native.Expectation(header.count, header.tensor, header.step, wire.DTYPES[header.dtype], header.rank)
    out = wire_array(header.count if header.codec in wire.CODECS else 0, header.dtype)
    frames.decode_sum(buffer.ctypes.data, buffer.size, len(frames_in_rank_order), expected, factor, out.ctypes.data)
    return from_wire(out, header.dtype)


def inspect(frame: bytes | bytearray | memoryview) -> wire.Header:
    """The header of a frame, after its structure and its checksum were checked.

    Raises:
        QSGDError: it is no valid frame.
    """
    data = _bytes_of(frame)
    status, _ = native.check(data.ctypes.data, data.size)
    if status not in (native.OK, native.ERROR_FRAME):
        raise QSGDError(f"the frame {native.status_text(status)}")
    return wire.parse(data.data.cast("B"))


def _bytes_of(frame: Any) -> Array:
    """The bytes of a frame, wherever they are, without a copy."""
    try:
        data = memoryview(frame).cast("B")
    except (TypeError, ValueError):
        raise QSGDError(
            f"a frame is bytes, a bytearray or a contiguous memoryview, not {type(frame).__name__}"
        ) from None
    # NumPy makes no array of nothing.
    return np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)


def _number(name: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, numbers.Real) else _no_number(name, value)
    except OverflowError:
        return _no_number(name, value)
    if math.isfinite(number) and abs(number) >= 2.0**128:
        return _no_number(name, value)
    return number


def _no_number(name: str, value: Any) -> NoReturn:
    raise QSGDError(f"{name}={value!r} is not a number that float32 knows")


def _truth(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise QSGDError(f"{name}={value!r} is neither True nor False")
    return bool(value)


def as_gradient(array: npt.ArrayLike) -> tuple[Array, str]:
    """``array`` as contiguous values that the kernels read, and their dtype's name on the wire."""
    try:
        values = np.asarray(array)
    except Exception as error:  # of whatever the object does when it is asked for an array
        raise QSGDError(f"this is no array: {error}") from None
    if isinstance(array, np.ma.MaskedArray):
        raise QSGDError("masked arrays cannot be encoded: fill the masked values first, with array.filled(0)")
    if values.dtype == np.float64:
        with np.errstate(over="ignore"):  # beyond float32's range: infinite, and so reported as NaN
            values = values.astype(np.float32)
    name = values.dtype.name
    if name not in wire.DTYPES or not values.dtype.isnative:
        raise QSGDError(f"arrays of dtype {values.dtype} cannot be encoded: use float32, float16, bfloat16 or float64")
    return np.ascontiguousarray(values), name


def wire_array(count: int, dtype: str) -> Array:
    """Room for ``count`` decoded values, in their bits on the wire."""
    return np.empty(count, np.float32 if dtype == "float32" else np.uint16)


def from_wire(bits: Array, dtype: str) -> Array:
    """The values that ``wire_array``'s bits stand for; bfloat16 as float32 if ``ml_dtypes`` is not installed."""
    if dtype == "float32":
        return bits
    if dtype == "float16":
        return bits.view(np.float16)
    try:
        import ml_dtypes
    except ImportError:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(ml_dtypes.bfloat16)
