"""A frame's header in words: ``python -m hvd_qsgd inspect FILE``."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from hvd_qsgd import wire
from hvd_qsgd.arrays import inspect
from hvd_qsgd.errors import QSGDError

CODECS = {
    "error": "an error frame: its rank could not encode, and says why",
    "packed": "each code in the same number of bits",
    "ternary": "five codes in each byte",
    "elias-dense": "every code by Elias's recursive code (QSGD, theorem 3.3)",
    "elias-sparse": "gaps, signs and levels of the codes that are not 0 by Elias's recursive code (QSGD, theorem 3.2)",
    "rans": "codes by range asymmetric numeral systems: near their entropy",
    "onebit": "signs, and the means of either sign in a bucket (1-bit SGD)",
}
NORMS = {
    "none": "scales are no norms",
    "max": "a scale is the largest magnitude in its bucket",
    "l2": "a scale is the l2 norm of its bucket",
}


def load(frame: bytes) -> wire.Header:
    """The header of ``frame``, which must be one valid frame and nothing more.

    Raises:
        QSGDError: it is not, and why.
    """
    header = inspect(frame)
    if len(frame) != header.frame_bytes:
        raise QSGDError(
            f"the frame has {header.frame_bytes} bytes, and {len(frame) - header.frame_bytes} more follow: save one "
            "frame in each file"
        )
    return header


def summary(frame: bytes) -> dict[str, Any]:
    """The header of a valid frame, and what follows from it, as numbers and names."""
    header = load(frame)
    values = dataclasses.asdict(header)
    if header.codec == "error":
        return {**values, "message": wire.message(frame, header)}
    scales = wire.scales(frame, header)
    finite = scales[np.isfinite(scales)]
    return {
        **values,
        "squared_norm": header.squared_norm if header.flags & wire.SQUARED_NORM else None,
        "scales": scales.size,
        "smallest_scale": float(finite.min()) if finite.size else None,
        "largest_scale": float(finite.max()) if finite.size else None,
        "buckets_of_zeros": int(np.count_nonzero(scales == 0)),
        "buckets_not_finite": scales.size - finite.size,
        "payload_bytes": wire.payload_bytes(header),
        "bits_per_coordinate": 8 * header.frame_bytes / header.count if header.count else None,
    }


def table(frame: bytes) -> list[tuple[str, str, str]]:
    """Field, value and meaning of everything in the header of a valid frame."""
    values = summary(frame)
    shown = {name: str(values[name]) for name in wire.Header.__dataclass_fields__}
    shown["checksum"] = f"{values['checksum']:016x}"
    meanings = _meanings_of_error(values) if values["codec"] == "error" else _meanings(values)
    if values["codec"] != "error" and values["squared_norm"] is None:
        shown["squared_norm"] = "-"
    return [("field", "value", "meaning")] + [(name, value, meanings.get(name, "")) for name, value in shown.items()]


def _meanings(values: dict[str, Any]) -> dict[str, str]:
    levels, scales, count = values["levels"], values["scales"], values["count"]
    bits = values["bits_per_coordinate"]
    onebit = values["codec"] == wire.ONEBIT
    about_scales = f"elements that share {'two scales' if onebit else 'a scale'}: {scales} scales"
    if values["largest_scale"] is not None:
        about_scales += f" from {values['smallest_scale']:.4g} to {values['largest_scale']:.4g}"
    if values["buckets_of_zeros"]:
        about_scales += f", {values['buckets_of_zeros']} of them 0: {'none of that sign' if onebit else 'all zeros'}"
    if values["buckets_not_finite"]:
        about_scales += f", {values['buckets_not_finite']} NaN: their elements decode to NaN"
    return {
        **_common(values),
        "norm": NORMS.get(values["norm"], ""),
        "flags": _flags(values["flags"]),
        "levels": "a sign for each element" if onebit else f"codes are whole numbers from -{levels} to {levels}",
        "bucket_size": about_scales,
        "seed": "of no meaning: nothing is random" if onebit else "of the random rounding",
        "coded_bytes": f"header {wire.HEADER_BYTES}, payload {values['payload_bytes']}, the rest scales",
        "frame_bytes": f"with padding: {bits:.3f} bits a coordinate, {32 / bits:.1f} times less than float32"
        if count
        else "",
        "squared_norm": "of the gradient" if values["squared_norm"] is not None else "not in this frame",
    }


def _flags(flags: int) -> str:
    norm = "1: the squared norm is there" if flags & wire.SQUARED_NORM else "0: no squared norm"
    return norm + ("; 2: decoders subtract the dither" if flags & wire.SUBTRACTIVE else "")


def _meanings_of_error(values: dict[str, Any]) -> dict[str, str]:
    return {
        **_common(values),
        "norm": "an error frame has no scales",
        "coded_bytes": f"with the message: {values['message']}",
    }


def _common(values: dict[str, Any]) -> dict[str, str]:
    return {
        "version": "of the wire format",
        "codec": CODECS.get(values["codec"], ""),
        "dtype": "of the gradient",
        "count": "elements",
        "rank": "of the process that encoded",
        "tensor": "number of the gradient, the same on all ranks",
        "step": "of the compressor",
        "checksum": "matches the bytes",
    }
