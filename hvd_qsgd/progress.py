"""What is known of the steps so far: norms and sizes, read from the frames of all ranks, so that all know the same."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from hvd_qsgd.checks import whole_number
from hvd_qsgd.errors import QSGDError

TREND_GAIN = 0.1  # what a new norm counts in the trend


def width_of(levels: float) -> float:
    """Bits that codes in [-levels, levels] are counted as: 2, 3, 4 for 1, 3, 7 levels, and fractions between."""
    return math.log2(1 + levels) + 1


def levels_of(width: float) -> int:
    """The levels whose width is nearest to ``width``; at least one."""
    levels: float = 2.0 ** (width - 1) - 1
    return max(1, round(levels))


class Arrival(NamedTuple):
    """What the frames of one tensor in one step say.

    Attributes:
        elements: of the tensor.
        levels: that all ranks were to use.
        squared_norm: mean over the ranks of ||v||^2, added up in rank order; NaN if one of them was not finite.
        bits: of all ranks' frames.
        ranks: how many frames.
    """

    elements: int
    levels: int
    squared_norm: float
    bits: int
    ranks: int


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a schedule decides from. It is the same on all ranks.

    Attributes:
        step: steps that are over.
        bits, coordinates: sent by all ranks together, and the elements that they stand for.
        coordinates_a_step: of these, in the last step that had any.
        overhead: in that step, the bits sent for each element less the mean width of the codes; None: there was none.
        norm: log2 of the gradient's norm in the last step where it was positive and finite; None: there was none. Its
            square is the sum over the tensors of the mean over the ranks of ||v||^2.
        trend: a moving average of that.
        carry: the width that was wanted in the last step, less the one that whole numbers of levels allowed.
        tensors: elements of each tensor, by name, and its squared norm when that was last positive and finite; kept if
            levels differ by tensor.
    """

    step: int = 0
    bits: int = 0
    coordinates: int = 0
    coordinates_a_step: int = 0
    overhead: float | None = None
    norm: float | None = None
    trend: float | None = None
    carry: float = 0.0
    tensors: Mapping[str, tuple[int, float]] = dataclasses.field(default_factory=dict)

    def after(self, arrivals: Mapping[str, Arrival], wanted: float | None, by_tensor: bool) -> Progress:
        """After a step in which these tensors, by name, arrived, with codes of ``wanted`` width on average."""
        arrivals = dict(sorted(arrivals.items()))  # in the same order on all ranks
        each = list(arrivals.values())
        coordinates = sum(arrival.elements * arrival.ranks for arrival in each)
        if not coordinates:  # the step was given up, or nothing was compressed
            return dataclasses.replace(self, step=self.step + 1)
        bits = sum(arrival.bits for arrival in each)
        width = mean_width(each)
        norm = _log_norm(each)
        new = {
            name: (a.elements, a.squared_norm) for name, a in arrivals.items() if by_tensor and _is_norm(a.squared_norm)
        }
        return Progress(
            step=self.step + 1,
            bits=self.bits + bits,
            coordinates=self.coordinates + coordinates,
            coordinates_a_step=coordinates,
            overhead=bits / coordinates - width,
            norm=self.norm if norm is None else norm,
            trend=_average(self.trend, norm),
            carry=0.0 if wanted is None else min(max(wanted - width, -1.0), 1.0),
            tensors={**self.tensors, **new},
        )


def mean_width(arrivals: Iterable[Arrival]) -> float:
    """Of the codes of all elements."""
    each = list(arrivals)
    return math.fsum(a.elements * width_of(a.levels) for a in each) / sum(a.elements for a in each)


def read(state: Mapping[str, Any]) -> Progress:
    """The progress in a saved state, checked.

    Raises:
        QSGDError: it is none.
    """
    try:
        tensors = {str(name): _tensor(name, *value) for name, value in state["tensors"].items()}
        counts = {name: whole_number(name, state[name], 0, 2**63) for name in _COUNTS}
        numbers = {name: None if state[name] is None else _number(name, state[name]) for name in _NUMBERS}
        carry = _number("carry", state["carry"])
    except QSGDError:
        raise
    except Exception as error:  # of whatever was passed
        raise QSGDError(f"this is no progress of a schedule: {error!r}; pass what state_dict() returned") from error
    fields: dict[str, Any] = {**counts, **numbers}
    return Progress(**fields, carry=carry, tensors=tensors)


_COUNTS = ("step", "bits", "coordinates", "coordinates_a_step")
_NUMBERS = ("overhead", "norm", "trend")


def _number(name: str, value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise QSGDError(
            f"{name}={value!r} in the progress of a schedule is not finite: pass what state_dict() returned"
        )
    return number


def _tensor(name: Any, count: Any, squared_norm: Any) -> tuple[int, float]:
    return whole_number(f"elements of {name!r}", count, 1, 2**63), _number(f"squared norm of {name!r}", squared_norm)


def _log_norm(arrivals: Iterable[Arrival]) -> float | None:
    square = 0.0
    for arrival in arrivals:
        square += arrival.squared_norm
    return math.log2(square) / 2 if _is_norm(square) else None


def _is_norm(square: float) -> bool:
    return 0 < square < math.inf


def _average(trend: float | None, norm: float | None) -> float | None:
    if trend is None or norm is None:
        return norm if trend is None else trend
    return trend + TREND_GAIN * (norm - trend)
