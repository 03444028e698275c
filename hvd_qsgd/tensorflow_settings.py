"""A compressor's settings as the ops read them, ``kernels/tensorflow/tensor.h``: a row of int64."""

from __future__ import annotations

from typing import Any

import numpy as np

from hvd_qsgd import frames, native, wire
from hvd_qsgd.config import AUTO, SQRT, Quantization, most_levels

SCHEDULED = 0  # in place of levels


def row(quantization: Quantization, seed: int) -> list[int]:
    """The settings; bits of what is no signed number."""
    q = quantization
    variance, bits_of_seed = np.float64(q.variance or 0).view(np.int64), np.uint64(seed).view(np.int64)
    flags, forgetful = wire.DITHERS[q.dither], False
    levels = q.levels if isinstance(q.levels, int) else most_levels(q.codec) * (-1 if q.levels == SQRT else 1)
    if q.schedule is not None:
        levels = SCHEDULED
        flags |= wire.SQUARED_NORM if q.schedule.needs_frames else 0
        forgetful = q.schedule.counts_bits  # a run that is continued must count the same bits
    kinds = [wire.NORM_IDS[q.norm], frames.codec_id(q.codec), int(variance), flags, int(forgetful)]
    return [levels, q.bucket_size or 0, *kinds, int(bits_of_seed)]


def read(settings: Any) -> Quantization:
    """What is in such a row, given as an array, that leaves nothing to a schedule."""
    levels, bucket_size, norm, codec, variance, flags, *_ = settings
    wanted = float(variance.view(np.float64)) or None
    name = AUTO if codec == native.CODEC_AUTO else wire.CODEC_NAMES[int(codec)]
    levels = None if wanted else SQRT if levels < 0 else int(levels)
    dither = wire.DITHER_NAMES[int(flags)]
    return Quantization(levels, int(bucket_size) or None, wire.NORM_NAMES[int(norm)], name, wanted, dither)


def read_seed(settings: Any) -> int:
    """The seed in such a row."""
    return int(settings[-1]) % 2**64
