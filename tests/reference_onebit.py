"""The codec onebit of docs/wire_format.md once more (section 12), written from that page alone, with NumPy alone."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
CANONICAL_NAN = np.uint32(0x7FC00000).view(np.float32)


def means(buckets: Array, lengths: Array, sum_in_order: Callable[[Array], Array]) -> Array:
    """M+ and M- of each row, of which `lengths` elements count; the others are 0. `sum_in_order` is section 3's."""
    finite = np.isfinite(buckets).all(axis=1)
    v = np.where(finite[:, None], buckets, np.float32(0)).astype(np.float64)
    below = (v < 0).sum(axis=1)
    sides = []
    for magnitudes, count in ((np.maximum(v, 0), lengths - below), (np.maximum(-v, 0), below)):
        total = sum_in_order(magnitudes)
        mean = np.divide(total, count.astype(np.float64), out=np.zeros_like(total), where=count > 0)
        sides.append(np.where(finite, mean.astype(np.float32), CANONICAL_NAN))
    return np.stack(sides, axis=1).ravel()


def pack(values: Array, scales: Array, bucket_size: int) -> bytes:
    known = np.repeat(~np.isnan(scales[::2]), min(bucket_size, max(values.size, 1)))[: values.size]
    bits = (values < 0) & known
    rows = np.pad(bits, (0, -values.size % 512)).reshape(-1, 32, 16)  # unit, row, lane
    return np.packbits(rows.transpose(0, 2, 1), axis=-1, bitorder="little").tobytes()


def values(payload: bytes, scales: Array, bucket_size: int, n: int) -> Array:
    words = np.unpackbits(np.frombuffer(payload, np.uint8), bitorder="little").reshape(-1, 16, 32)
    bits = words.transpose(0, 2, 1).ravel()[:n]
    width = min(bucket_size, max(n, 1))
    positive, negative = (np.repeat(side, width)[:n] for side in (scales[::2], scales[1::2]))
    return np.where(bits == 1, -negative, positive)
