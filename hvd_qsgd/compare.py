"""What each codec makes of one gradient: ``python -m hvd_qsgd codecs FILE.npy``."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_qsgd import arrays, timing, wire
from hvd_qsgd.config import DEFAULT_BUCKET_SIZE
from hvd_qsgd.errors import QSGDError

Values = npt.NDArray[np.float32]
Setting = dict[str, Any]  # arguments of arrays.encode

FIXED_WIDTH: dict[str, list[Setting]] = {
    "packed": [{"bits": bits} for bits in (2, 3, 4, 8)],
    "ternary": [{}],
    "onebit": [{}],
}
ENTROPY_CODED: list[Setting] = [{"levels": 7}, {"variance": 0.1, "bucket_size": None, "norm": "l2"}]


@dataclasses.dataclass(frozen=True)
class Size:
    """What a gradient becomes in one setting of one codec. All bits are for each coordinate.

    Attributes:
        codec, levels, bucket_size, norm: the setting; ``bucket_size`` is None for one scale per tensor.
        payload_bits: of the coded values alone.
        bits: of the whole frame, with header, scales and padding.
        entropy: zero-order entropy of the codes, in bits: the least for a coder that treats all coordinates alike.
        variance: squared error over squared norm, as it came out: the relative variance of QSGD's theorem 3.1.
    """

    codec: str
    levels: int
    bucket_size: int | None
    norm: str
    payload_bits: float
    bits: float
    entropy: float
    variance: float


@dataclasses.dataclass(frozen=True)
class Result(Size):
    """And how fast: GB/s count 4 bytes for each coordinate."""

    encode_gbps: float
    decode_gbps: float


def settings() -> list[Setting]:
    """Every codec that there is, in the settings that are worth a look."""
    return [
        {"codec": codec, "bucket_size": DEFAULT_BUCKET_SIZE, **setting}
        for codec, (_, _, variable) in wire.CODECS.items()
        for setting in (ENTROPY_CODED if variable else FIXED_WIDTH[codec])
    ]


def as_values(array: npt.ArrayLike) -> Values:
    """A gradient widened to float32, in its shape: some codecs make use of it.

    Raises:
        QSGDError: they cannot be compared, and why.
    """
    gradient, _ = arrays.as_gradient(array)
    values = gradient.astype(np.float32, copy=False)
    if not values.size:
        raise QSGDError("the array is empty: give a gradient that has elements")
    if not np.isfinite(values).all():
        raise QSGDError("the array has NaN or infinite elements, which no codec keeps: give a finite gradient")
    return values


def compare(values: Values) -> list[Result]:
    """Each of ``settings()``, but for those in which the codec cannot reach the variance."""
    resolved = [setting for setting in (resolve(values, setting) for setting in settings()) if setting is not None]
    sizes = [measure(values, setting) for setting in resolved]
    gigabytes = 4 * values.size / 1e9
    return [
        Result(**dataclasses.asdict(size), encode_gbps=gigabytes / encode, decode_gbps=gigabytes / decode)
        for size, (encode, decode) in zip(sizes, timing.seconds(values, resolved))
    ]


def resolve(values: Values, setting: Setting) -> Setting | None:
    """The same with levels in place of a variance; None if the codec has too few for it."""
    if "variance" not in setting:
        return setting
    frame = arrays.encode(values, **setting)
    levels = wire.parse(frame).levels
    if levels == wire.CODECS[setting["codec"]].max_levels and variance(values, frame) > 1.1 * setting["variance"]:
        return None
    return {**{name: value for name, value in setting.items() if name != "variance"}, "levels": levels}


def measure(values: Values, setting: Setting) -> Size:
    """Encode ``values`` and look at the frame."""
    frame = arrays.encode(values, **setting)
    header = wire.parse(frame)
    return Size(
        codec=header.codec,
        levels=header.levels,
        bucket_size=setting["bucket_size"],
        norm=header.norm,
        payload_bits=8 * wire.payload_bytes(header) / values.size,
        bits=8 * header.frame_bytes / values.size,
        entropy=entropy(codes(frame)),
        variance=variance(values, frame),
    )


def codes(frame: bytes) -> npt.NDArray[np.int64]:
    """The whole numbers in [-levels, levels] that a float32 frame's values are multiples by; onebit's bits."""
    header = wire.parse(frame)
    values = arrays.decode(frame).astype(np.float64)
    if header.codec == wire.ONEBIT:
        return np.signbit(values).astype(np.int64)
    steps = np.repeat(wire.scales(frame, header).astype(np.float64) / header.levels, header.bucket_size)[: values.size]
    return np.rint(np.divide(values, steps, out=np.zeros_like(values), where=steps > 0)).astype(np.int64)


def entropy(numbers: npt.NDArray[np.int64]) -> float:
    """Zero-order entropy in bits: -Σ p·log2 p over the relative frequencies p."""
    counts = np.bincount(numbers - numbers.min())
    p = counts[counts > 0] / numbers.size
    return float(-(p * np.log2(p)).sum()) + 0.0


def variance(values: Values, frame: bytes) -> float:
    """Squared error over squared norm of what ``frame`` decodes to."""
    original = values.ravel().astype(np.float64)
    error = arrays.decode(frame) - original
    squared_norm = float(original @ original)
    return float(error @ error) / squared_norm if squared_norm else 0.0
