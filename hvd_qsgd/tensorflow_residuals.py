"""Error feedback in TensorFlow: residuals as variables, which the op that encodes updates in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from hvd_qsgd.errors import QSGDError
from hvd_qsgd.tensorflow_ops import variable


class Residuals(tf.Module):  # type: ignore[misc]
    """The residuals of one compressor on one rank: a float32 variable for each gradient and shape, zero at first.

    A residual belongs to the rank that made it: others begin at zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self._variables: dict[str, Any] = {}
        self._rank: int | None = None  # whose they are; None until it is known

    def of(self, tensor_name: str, shape: tf.TensorShape, rank: int) -> Any:
        """The residual of a gradient of this static shape."""
        if not shape.is_fully_defined():
            raise QSGDError(
                f"error_feedback=True needs gradients of a static shape, and that of gradient {tensor_name} is {shape}"
                ": give the tf.function an input_signature, or leave error_feedback out"
            )
        self.belong_to(rank)
        return self._variable(f"{tensor_name} {tuple(shape)}", shape)

    def belong_to(self, rank: int) -> None:
        """This is ``rank``: what is another's becomes zero."""
        if self._rank not in (None, rank):
            self._assign({})
        self._rank = rank

    def state(self) -> dict[str, Any]:
        """Whose they are, and copies of them by the gradients' names and shapes."""
        with tf.init_scope():
            return {
                "rank": self._rank or 0,
                "tensors": {key: residual.numpy().copy() for key, residual in self._variables.items()},
            }

    def load(self, rank: int, arrays: dict[str, Any]) -> None:
        """Go on with these arrays of ``rank``; others are zero.

        Raises:
            QSGDError: what is there is none, and nothing was changed.
        """
        for key, array in arrays.items():
            if not isinstance(array, np.ndarray) or array.dtype != np.float32 or not key.endswith(f" {array.shape}"):
                raise QSGDError(
                    f"the residual {key!r} is no float32 array of that shape: pass what state_dict() returned"
                )
        for key, array in arrays.items():
            self._variable(key, array.shape)
        self._assign(arrays)
        self._rank = rank

    def _assign(self, arrays: dict[str, Any]) -> None:
        with tf.init_scope():
            for key, residual in self._variables.items():
                residual.assign(arrays[key] if key in arrays else tf.zeros(residual.shape))

    def _variable(self, key: str, shape: Any) -> Any:
        if key not in self._variables:
            with tf.init_scope():
                self._variables[key] = variable(tf.zeros(shape), tf.float32)  # which a checkpoint may restore now
        return self._variables[key]
