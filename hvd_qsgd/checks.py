"""Checks of arguments, which raise a ``QSGDError`` that names the argument."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

from hvd_qsgd.errors import QSGDError


def whole_number(name: str, value: Any, low: int, high: int, also: str = "") -> int:
    """``value`` as an int in [low, high], or a QSGDError that names the argument."""
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        most = f"2^{high.bit_length()} - 1" if high >= 2**32 - 1 and high & (high + 1) == 0 else high
        raise QSGDError(f"{name}={value!r} is not a whole number from {low} to {most}{also}")
    return number


def positive(name: str, value: Any, example: float) -> float:
    """``value`` as a float that is positive and finite, or a QSGDError that names the argument."""
    try:
        number = 0.0 if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
    except OverflowError:  # of a whole number beyond float64
        number = math.inf
    if not 0 < number < math.inf:
        raise QSGDError(f"{name}={value!r} is not a positive number, such as {example}")
    return number


def keep(frozen: object, **values: Any) -> None:
    """Set fields of a frozen dataclass, in its ``__post_init__``, to checked values: plain ones, that can be saved."""
    for name, value in values.items():
        object.__setattr__(frozen, name, value)


def encodable(text: str) -> bool:
    """Whether ``text`` can be sent: not with half of a surrogate pair, as names of files may have."""
    return text == text.encode("utf-8", "ignore").decode()
