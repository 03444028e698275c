"""Simulated workers whose levels follow a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.workers import Array, Exchange
from hvd_qsgd.config import Quantization
from hvd_qsgd.controller import Controller
from hvd_qsgd.progress import Arrival
from hvd_qsgd.schedule import Schedule


class ScheduledExchange(Exchange):
    """An exchange with levels that follow a schedule, as the controller of a compressor decides them.

    Args:
        schedule: one of ``hvd_qsgd.schedule``.
        how: arguments of ``hvd_qsgd.encode`` but for the levels.
        seed: of the random rounding.
    """

    def __init__(self, schedule: Schedule, how: dict[str, Any], seed: int = 0) -> None:
        super().__init__({}, seed)
        self._how = how
        self._controller = Controller(Quantization.create(schedule=schedule, **how))
        self._step, self._tensors = 0, 0  # under way, and its tensors so far

    def mean(self, arrays: Sequence[Array], *, step: int, tensor: int) -> Array:
        """As without a schedule. Steps come in order, and each has the same tensors."""
        if step != self._step:
            self._controller.settle(self._tensors)
            self._step, self._tensors = step, 0
        self._tensors += 1
        name, count, before = str(tensor), arrays[0].size, self.bits_sent
        levels = self._controller.quantization(name, count).levels
        self.quantization = {"levels": levels, **self._how}
        mean = super().mean(arrays, step=step, tensor=tensor)
        squared_norm = sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays) / len(arrays)
        bits = round((self.bits_sent - before) * len(arrays))
        self._controller.arrived(name, Arrival(count, levels, squared_norm, bits, len(arrays)))
        return mean
