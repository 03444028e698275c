"""Schedules: how fine the rounding is, from step to step. Pure functions of what is known of the steps before.

A step is one reduction of the gradients: with ``backward_passes_per_step`` it is one step of the optimizer. Formulas
and where they come from: ``docs/theory.md``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Union

from hvd_qsgd.checks import keep, positive, whole_number
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.progress import Progress, levels_of, width_of

MOST_STEPS = 2**32 - 1
MOST_BITS, MOST_LEVELS = 16, 2**15 - 1  # of any codec
FIRST_WIDTH = 4.0  # in the first step, before there is a norm, or a frame's size
FIRST_SHARE = 2.0  # of a budget's average, that the first step may take
ALLOCATIONS = ("equal", "tensor")

StepValues = Union[Mapping[int, int], tuple[tuple[int, int], ...]]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What ``QSGD(schedule=...)`` takes: one of the classes below."""

    needs_frames: ClassVar[bool] = False  # whether it goes by the norms and sizes of the steps before
    counts_bits: ClassVar[bool] = False  # whether it goes by the sizes, which then must not depend on older ones
    by_tensor: ClassVar[bool] = False  # whether levels differ by tensor

    def check(self, codec: str, most_levels: int) -> None:
        """Raise a QSGDError if the codec, which has so many levels, cannot do what is asked for."""

    def width(self, past: Progress, overhead: float, least: float, most: float) -> float:
        """Of the next step's codes, in bits (``progress.width_of``).

        Codes between ``least`` and ``most`` can be had. A frame is taken to have ``overhead`` bits an element more.
        """
        raise NotImplementedError

    def first_width(self, overhead: float) -> float:
        """The first step has at least that, whatever ``width`` says, where ``overhead`` is a guess."""
        return 0.0


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The same levels in every step.

    Args:
        bits: 2 to 16: 2^(bits-1) - 1 levels.
        levels: the levels instead, 1 to 32767.
    """

    bits: int | None = None
    levels: int | None = None

    def __post_init__(self) -> None:
        name = _one_of(self.bits, self.levels)
        keep(self, **{name: _checked(name, getattr(self, name))})

    def _levels(self) -> int:
        return _levels_of("bits", self.bits) if self.levels is None else self.levels

    def check(self, codec: str, most_levels: int) -> None:
        _check_most(self, self._levels(), codec, most_levels)

    def width(self, past: Progress, overhead: float, least: float, most: float) -> float:
        return width_of(self._levels())


@dataclasses.dataclass(frozen=True)
class Piecewise(Schedule):
    """Other levels from certain steps on.

    Args:
        bits: step -> bits (2 to 16) from that step on; step 0 must be there.
        levels: step -> levels (1 to 32767) instead.
    """

    bits: StepValues | None = None
    levels: StepValues | None = None

    def __post_init__(self) -> None:
        name = _one_of(self.bits, self.levels)
        keep(self, **{name: _pieces(name, getattr(self, name))})

    def _levels(self) -> list[tuple[int, int]]:
        name = "bits" if self.levels is None else "levels"
        return [(step, _levels_of(name, value)) for step, value in getattr(self, name)]

    def check(self, codec: str, most_levels: int) -> None:
        for _, levels in self._levels():
            _check_most(self, levels, codec, most_levels)

    def width(self, past: Progress, overhead: float, least: float, most: float) -> float:
        return width_of(next(levels for step, levels in reversed(self._levels()) if step <= past.step))


@dataclasses.dataclass(frozen=True)
class DQSGD(Schedule):
    """s_t = k·alpha^((T-t)/2)·‖g_t‖ levels in step t = 0 … T - 1, and k·‖g_t‖ from then on; at least one.

    The allocation of DQSGD (dynamic quantization), which needs the fewest bits for a final error on strongly convex
    functions. ‖g‖ is that of the step before; its square is the mean over the ranks. The first step has 7 levels.

    Args:
        k: levels for a gradient of norm 1 in the last step.
        alpha: by which a step of SGD contracts the error: 0 < alpha <= 1.
        steps: T, of the whole run.
    """

    k: float
    alpha: float
    steps: int

    needs_frames: ClassVar[bool] = True

    def __post_init__(self) -> None:
        keep(self, k=positive("k", self.k, 10.0), alpha=_checked_alpha(self.alpha), steps=_checked_steps(self.steps))

    def width(self, past: Progress, overhead: float, least: float, most: float) -> float:
        if past.norm is None:
            return FIRST_WIDTH
        left = max(self.steps - past.step, 0)
        logarithm = math.log2(self.k) + left / 2 * math.log2(self.alpha) + past.norm
        return width_of(min(2.0**logarithm, MOST_LEVELS)) if logarithm < 60 else most


@dataclasses.dataclass(frozen=True)
class Budget(Schedule):
    """So many bits a coordinate on average over the run, more of them where they count more.

    As with DQSGD, the logarithm of the levels in step t is θ + (T-1-t)/2·log2(alpha) + log2(‖g_t‖). Each step solves
    for the θ that spends what is left of the budget in the steps that are left, if the norms stay what they are on
    average. Counted is what frames really have: codes, scales, headers and padding, on average over the ranks. The
    first step of a code of variable length, before there were any, has 7 levels if that takes no more than twice the
    average. After the last step it goes on with the same average.

    Args:
        bits_per_coordinate: the average. What one level takes at least is spent anyway, and no more than the codec has.
        steps: T, of the whole run.
        alpha: as for DQSGD, 0 < alpha <= 1. 1: early steps count as much as late ones.
        floor: bits a coordinate that every step gets. Default: half of the average.
        allocation: "equal": one number of levels for all tensors, or "tensor": the same distance between neighbouring
            levels in all tensors (reverse water-filling), so that those with larger values have more levels.
    """

    bits_per_coordinate: float
    steps: int
    alpha: float = 1.0
    floor: float | None = None
    allocation: str = "equal"

    needs_frames: ClassVar[bool] = True
    counts_bits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        average = positive("bits_per_coordinate", self.bits_per_coordinate, 2.5)
        keep(self, alpha=_checked_alpha(self.alpha), steps=_checked_steps(self.steps))
        floor = None if self.floor is None else positive("floor", self.floor, average / 2)
        if floor is not None and floor > average:
            raise QSGDError(f"floor={self.floor!r} is more than bits_per_coordinate={self.bits_per_coordinate!r}")
        keep(self, bits_per_coordinate=average, floor=floor)
        if not isinstance(self.allocation, str) or self.allocation not in ALLOCATIONS:
            raise QSGDError(
                f"allocation={self.allocation!r} is unknown: use one of {', '.join(map(repr, ALLOCATIONS))}"
            )

    @property
    def by_tensor(self) -> bool:  # type: ignore[override]
        return self.allocation == "tensor"

    def check(self, codec: str, most_levels: int) -> None:
        if codec == "packed" and self.bits_per_coordinate < 2:
            raise QSGDError(
                f"bits_per_coordinate={self.bits_per_coordinate!r} is less than the 2 bits of codec='packed': raise "
                "it, or use codec='rans'"
            )

    def width(self, past: Progress, overhead: float, least: float, most: float) -> float:
        floor = self.bits_per_coordinate / 2 if self.floor is None else self.floor
        low = min(max(least, floor - overhead), most)
        after = max(self.steps - past.step, 1) - 1  # steps after this one
        slope = math.log2(self.alpha) / 2
        now, later = (past.norm or 0.0) + slope * after, past.trend or 0.0
        left = (self.bits_per_coordinate - overhead) * (after + 1) + self._saved(past) - past.carry

        def planned(theta: float) -> float:
            return clip(theta + now, low, most) + clipped_sum(theta + later, slope, after, low, most)

        first = low - max(now, later)
        last = most - min(now, later + slope * max(after - 1, 0))
        return clip(solve(planned, left, first, last) + now, low, most) + past.carry

    def first_width(self, overhead: float) -> float:
        return min(FIRST_WIDTH, FIRST_SHARE * self.bits_per_coordinate - overhead)

    def _saved(self, past: Progress) -> float:
        """Bits of the steps so far that were not spent, for each element of a step."""
        if not past.coordinates_a_step:
            return 0.0
        return (self.bits_per_coordinate * past.coordinates - past.bits) / past.coordinates_a_step


KINDS: dict[str, type[Schedule]] = {kind.__name__: kind for kind in (Constant, Piecewise, DQSGD, Budget)}


def saved(schedule: Schedule) -> dict[str, Any]:
    """The schedule's kind and arguments, as plain values."""
    return {"kind": type(schedule).__name__, **dataclasses.asdict(schedule)}


def restored(state: dict[str, Any]) -> Schedule:
    """The schedule that ``saved`` was given; raises a QSGDError if there is no such one."""
    arguments = dict(state)
    kind = KINDS.get(str(arguments.pop("kind", None)))
    if kind is None or set(arguments) != {field.name for field in dataclasses.fields(kind)}:
        raise QSGDError(f"{state!r} is no saved schedule: pass what state_dict() returned")
    return kind(**arguments)


def solve(function: Any, value: float, low: float, high: float) -> float:
    """Where in [low, high] the nondecreasing ``function`` is ``value``, or the end that comes nearest."""
    for _ in range(60):
        middle = low + (high - low) / 2
        if function(middle) < value:
            low = middle
        else:
            high = middle
    return low + (high - low) / 2


def clipped_sum(start: float, slope: float, terms: int, low: float, high: float) -> float:
    """Σ over k = 0 … terms - 1 of start + k·slope, limited to [low, high]; slope <= 0."""
    if slope == 0 or terms == 0:
        return terms * clip(start, low, high)
    above = int(clip(math.ceil((start - high) / -slope), 0, terms))  # terms that are cut down to high
    below = int(clip(math.ceil((start - low) / -slope), above, terms))  # the first that is raised to low
    between = below - above
    return above * high + between * (start + slope * (above + below - 1) / 2) + (terms - below) * low


def clip(value: float, low: float, high: float) -> float:
    """``value`` limited to [low, high]."""
    return min(max(value, low), high)


def _one_of(bits: Any, levels: Any) -> str:
    """Which of the two was given."""
    if (bits is None) == (levels is None):
        raise QSGDError(f"bits={bits!r} and levels={levels!r}: give one of them")
    return "bits" if levels is None else "levels"


def _checked(name: str, value: Any) -> int:
    """What was given as ``bits`` or ``levels``."""
    return whole_number(name, value, *((1, MOST_LEVELS) if name == "levels" else (2, MOST_BITS)))


def _levels_of(name: str, value: Any) -> int:
    """The levels that checked ``bits`` or ``levels`` ask for."""
    return int(value) if name == "levels" else levels_of(value)


def _pieces(name: str, values: Any) -> tuple[tuple[int, int], ...]:
    try:
        pairs = [(step, value) for step, value in (values.items() if isinstance(values, Mapping) else values)]
    except (TypeError, ValueError):
        raise QSGDError(
            f"{name}={values!r} does not say what holds from which step on: use {{0: 2, 1000: 4}}"
        ) from None
    checked = {whole_number(f"step in {name}", step, 0, MOST_STEPS): _checked(name, value) for step, value in pairs}
    if 0 not in checked:
        raise QSGDError(f"{name}={values!r} does not say what holds from step 0 on")
    if len(checked) < len(pairs):
        raise QSGDError(f"{name}={values!r} has a step twice")
    return tuple(sorted(checked.items()))


def _check_most(schedule: Schedule, levels: int, codec: str, most_levels: int) -> None:
    if levels > most_levels:
        raise QSGDError(f"schedule={schedule!r} has {levels} levels, codec={codec!r} at most {most_levels}")


def _checked_alpha(alpha: Any) -> float:
    number = positive("alpha", alpha, 0.99)
    if number > 1:
        raise QSGDError(f"alpha={alpha!r} is more than 1: a step of SGD cannot make the error larger here")
    return number


def _checked_steps(steps: Any) -> int:
    return whole_number("steps", steps, 1, MOST_STEPS)
