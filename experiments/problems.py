"""Strongly convex problems whose minimum is known to float64's precision."""

from __future__ import annotations

from pathlib import Path
from typing import Union

import numpy as np
from mnist_data import DataError, load_mnist
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = Union[slice, NDArray[np.int64]]
ALL = slice(None)
NEWTON_STEPS = 30


class LogisticRegression:
    """f(x) = mean of log(1 + exp(-b_i a_i·x)) + λ/2·‖x‖², rows a_i of length 1: μ = λ, L = 1/4 + λ at most.

    Args:
        features: a row a_i for each example; scaled to length 1.
        signs: b_i, 1 or -1.
        regularization: λ.
    """

    def __init__(self, features: Array, signs: Array, regularization: float) -> None:
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        self._rows = features / np.maximum(lengths, np.finfo(np.float64).tiny) * signs[:, None]  # b_i a_i
        self._regularization = regularization
        self.examples, self.size = self._rows.shape
        self.minimum = self.value(self._minimizer())

    def value(self, x: Array) -> float:
        """f(x)."""
        return float(np.logaddexp(0, -self._rows @ x).mean() + self._regularization / 2 * (x @ x))

    def gradient(self, x: Array, rows: Rows = ALL) -> Array:
        """∇f(x), or that of the mean over some rows."""
        some = self._rows[rows]
        return self._regularization * x - some.T @ _sigmoid(-some @ x) / len(some)

    def _minimizer(self) -> Array:
        """By Newton's method."""
        x = np.zeros(self.size)
        for _ in range(NEWTON_STEPS):
            right = _sigmoid(self._rows @ x)
            curvature = self._rows.T @ (self._rows * (right * (1 - right) / self.examples)[:, None])
            x -= np.linalg.solve(curvature + self._regularization * np.eye(self.size), self.gradient(x))
        return x


def mnist_3_or_8(data_dir: Path | None, images: int, regularization: float) -> LogisticRegression:
    """Is it a 3 or an 8? The first so many images of either.

    Raises:
        DataError: MNIST is not there, or has fewer of them.
    """
    data = load_mnist(data_dir)
    chosen = np.flatnonzero(np.isin(data.train_labels, (3, 8)))[:images]
    if len(chosen) < images:
        raise DataError(f"{images} images of a 3 or an 8 are needed, and there are {len(chosen)}")
    signs = np.where(data.train_labels[chosen] == 3, 1.0, -1.0)
    return LogisticRegression(data.train_images[chosen].astype(np.float64), signs, regularization)


def _sigmoid(x: Array) -> Array:
    values: Array = np.exp(-np.logaddexp(0, -x))
    return values
