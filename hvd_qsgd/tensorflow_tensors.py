"""TensorFlow's tensors on their way: as what they travel, and what is kept of them meanwhile."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from hvd_qsgd.steps import Ticket

Tensor = Any  # tf.Tensor, to type checkers

# What a gradient is encoded as; float64 travels as float32.
WIRE_DTYPES = {tf.float32: tf.float32, tf.float16: tf.float16, tf.bfloat16: tf.bfloat16, tf.float64: tf.float32}


class OnItsWay(NamedTuple):
    """A gradient between ``compress`` and ``decompress``."""

    static_shape: tf.TensorShape
    dtype: tf.DType
    device: str | None  # of the ops; None: TensorFlow chooses
    about: dict[str, Any]
    frame: Tensor
    link: Tensor
    settings: Tensor
    step: Tensor
    run: Tensor
    shape: Tensor
    ticket: Ticket | None


def clipped(gradient: Tensor, deviations: float) -> Tensor:
    """Values limited to so many standard deviations; equal ones, which deviate by nothing, stay."""
    limit = deviations * tf.math.reduce_std(tf.cast(gradient, tf.float64))
    limit = tf.cast(tf.where(limit > 0, limit, gradient.dtype.max), gradient.dtype)
    return tf.clip_by_value(gradient, -limit, limit)
