"""A compressor's side of its schedule: the levels of each step and tensor, and what became of them."""

from __future__ import annotations

import ctypes
import dataclasses
import math
from typing import Any

from hvd_qsgd import progress, schedule, wire
from hvd_qsgd.config import Quantization, most_levels
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.progress import Arrival, Progress, levels_of, width_of

KEY = "schedule"  # of a compressor's state
LEAST_WIDTH = width_of(1)
# Before there is a frame, gradients are taken to be normal values. Rounded to multiples of their standard deviation
# they have an entropy of log2(√(2πe)) bits; the largest of 512 is 3.2 standard deviations.
NORMAL_BITS = math.log2(2 * math.pi * math.e) / 2
LARGEST_NORMAL = 3.2


class Controller:
    """Decides levels, step after step. All ranks are told of the same frames, and so decide the same."""

    def __init__(self, quantization: Quantization, past: Progress | None = None) -> None:
        assert quantization.schedule is not None
        self.schedule = quantization.schedule
        self.signature = repr(self.schedule)  # which must be the same on all ranks
        self._quantization = quantization
        self._most = width_of(most_levels(quantization.codec))
        # A part of a bit would be wasted where all codes have the same width.
        self._whole = self.schedule.counts_bits and quantization.codec == "packed"
        self._arrivals: dict[str, Arrival] = {}
        self._by_levels: dict[int, Quantization] = {}
        self._begin(Progress() if past is None else past)

    @property
    def levels(self) -> int | None:
        """Of all tensors in the step that is next or under way; None: they differ."""
        return None if self._wanted is None or self._scales else self._levels(self._wanted)

    def quantization(self, name: str, count: int) -> Quantization:
        """How to quantize the tensor of this name and size in this step."""
        levels = self._levels(self._tensor_width(name, count))
        if levels not in self._by_levels:
            fixed = dataclasses.replace(self._quantization, levels=levels, schedule=None)
            self._by_levels[levels] = fixed
        return self._by_levels[levels]

    def arrived(self, name: str, arrival: Arrival) -> None:
        """The tensor's frames of all ranks are here."""
        self._arrivals[name] = arrival

    def settle(self, opened: int) -> None:
        """The step, of ``opened`` tensors, is over. Unless all of them arrived, nothing of it counts."""
        arrivals = self._arrivals if len(self._arrivals) == opened else {}
        self._arrivals = {}
        self._begin(self.past.after(arrivals, self._wanted, self.schedule.by_tensor))

    def state(self) -> dict[str, Any]:
        """The schedule and what it knows of the steps that are over, as plain values."""
        return {**schedule.saved(self.schedule), "progress": dataclasses.asdict(self.past)}

    def _begin(self, past: Progress) -> None:
        """Decide what the step after ``past`` wants: the mean width, and if it differs by tensor, how."""
        self.past = past
        self._wanted: float | None = None  # until there was a frame it depends on the tensor
        if past.overhead is not None or not self.schedule.counts_bits:
            self._wanted = self._width(past.overhead or 0.0)
        self._scales = {name: self._log_scale(*known) for name, known in past.tensors.items()}
        self._offset = self._solve_offset(self._wanted) if self._wanted is not None and self._scales else 0.0

    def _tensor_width(self, name: str, count: int) -> float:
        if self._wanted is None:
            overhead = self._first_overhead(count)
            # To begin with few levels because a guess was too high costs a run more than the bits.
            return max(self._width(overhead), 0.0 if self._whole else self.schedule.first_width(overhead))
        return self._scaled_width(name, self._offset) if name in self._scales else self._wanted

    def _scaled_width(self, name: str, offset: float) -> float:
        """Of levels that are in proportion to the tensor's scale."""
        most = math.log2(most_levels(self._quantization.codec))
        return width_of(2.0 ** schedule.clip(self._scales[name] + offset, 0.0, most))

    def _width(self, overhead: float) -> float:
        return self.schedule.width(self.past, overhead, LEAST_WIDTH, self._most)

    def _levels(self, width: float) -> int:
        width = schedule.clip(width, LEAST_WIDTH, self._most)
        return levels_of(math.floor(width + 0.5) if self._whole else width)

    def _solve_offset(self, wanted: float) -> float:
        """What to add to the scales' logarithms so that the mean width is ``wanted``: the same distance of levels."""
        sizes = {name: self.past.tensors[name][0] for name in sorted(self._scales)}

        def mean(offset: float) -> float:
            total = math.fsum(size * self._scaled_width(name, offset) for name, size in sizes.items())
            return total / sum(sizes.values())

        low, high = min(self._scales.values()), max(self._scales.values())
        return schedule.solve(mean, wanted, -high, self._most - low)

    def _log_scale(self, count: int, squared_norm: float) -> float:
        """log2 of a bucket's scale, about, but for what is the same for all tensors."""
        if self._quantization.norm == "l2":
            squared_norm *= self._bucket(count)
        return math.log2(squared_norm / count) / 2

    def _first_overhead(self, count: int) -> float:
        """Bits of a value less the width of its code, before there is a frame that tells."""
        bucket = self._bucket(count)
        if self._whole:
            return 32 / bucket
        scale = math.sqrt(bucket) if self._quantization.norm == "l2" else LARGEST_NORMAL
        return NORMAL_BITS - math.log2(scale) - 1

    def _bucket(self, count: int) -> int:
        return min(self._quantization.bucket_size_for(count), max(count, 1))


def read_arrival(address: int, ranks: int, levels: int) -> Arrival:
    """What the ``ranks`` frames at ``address``, which were checked, say of a tensor."""
    squares, sent, count = 0.0, 0, 0
    for _ in range(ranks):
        header = wire.parse(ctypes.string_at(address + sent, wire.HEADER_BYTES))
        squares += header.squared_norm
        sent += header.frame_bytes
        count = header.count
    return Arrival(count, levels, squares / ranks, 8 * sent, ranks)


def read_state(state: Any) -> tuple[schedule.Schedule, Progress]:
    """Schedule and progress of what ``Controller.state`` returned, checked.

    Raises:
        QSGDError: it is something else.
    """
    try:
        arguments = dict(state)
        past = progress.read(arguments.pop("progress"))
    except QSGDError:
        raise
    except Exception as error:  # of whatever was passed
        raise QSGDError(f"state[{KEY!r}] is of no schedule: {error!r}; pass what state_dict() returned") from error
    return schedule.restored(arguments), past
