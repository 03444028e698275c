"""Workers that are simulated in one process: what each would send is encoded, decoded and added up by the library's own
code, in the order of the ranks, as in a real job. Only the network is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hvd_qsgd

FLOAT_BITS = 32
Array = NDArray[np.float32]


class Exchange:
    """Means of the workers' arrays, and the bits that one of them sends for them (the mean over the workers).

    Args:
        quantization: arguments of ``hvd_qsgd.encode``, such as ``bits=4``; None: float32 as it is.
        seed: of the random rounding.
    """

    def __init__(self, quantization: dict[str, Any] | None, seed: int = 0) -> None:
        self.quantization = quantization
        self.bits_sent = 0.0
        self._seed = seed

    def mean(self, arrays: Sequence[Array], *, step: int, tensor: int) -> Array:
        """The mean of what decoding gives, an array for each worker, in the arrays' shape.

        Args:
            arrays: what each worker has, float32, of the same shape.
            step, tensor: what the random rounding depends on, besides seed, worker and element.
        """
        if self.quantization is None:
            return self.exact_mean(arrays)
        how = {**self.quantization, "seed": self._seed, "step": step, "tensor": tensor}
        frames = [hvd_qsgd.encode(array, rank=rank, **how) for rank, array in enumerate(arrays)]
        self.bits_sent += 8 * sum(map(len, frames)) / len(frames)
        mean: Array = hvd_qsgd.decode_sum(frames, 1 / len(frames)).reshape(arrays[0].shape)
        return mean

    def exact_mean(self, arrays: Sequence[Array]) -> Array:
        """The mean of what is sent uncompressed."""
        self.bits_sent += FLOAT_BITS * arrays[0].size
        total = arrays[0].astype(np.float32)  # a copy
        for array in arrays[1:]:
            total += array
        total *= np.float32(1 / len(arrays))
        return total
