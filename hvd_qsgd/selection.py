"""Which gradient is this, and is it to be compressed? From the parameters' names, if the user gave them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any, Callable, Union

from hvd_qsgd.checks import encodable
from hvd_qsgd.errors import QSGDError

Predicate = Callable[[Union[str, None], Any], bool]
Skip = Union[str, Iterable[str], Predicate, None]


class ParameterNames:
    """Finds a parameter's name by its gradient: the very object that is ``parameter.grad``."""

    def __init__(self, named_parameters: Iterable[tuple[str, Any]]) -> None:
        try:
            self._named = [(str(name), parameter) for name, parameter in named_parameters]
        except (TypeError, ValueError) as error:
            raise QSGDError(
                "named_parameters= takes pairs of a name and a parameter: pass model.named_parameters()"
            ) from error
        for name, parameter in self._named:
            if not hasattr(parameter, "grad") or not encodable(name):
                raise QSGDError(
                    f"named_parameters= has {(name, parameter)!r}, which is no pair of a name and a parameter: pass "
                    "model.named_parameters()"
                )
        names = [name for name, _ in self._named]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise QSGDError(f"named_parameters= has the name {twice[0]!r} more than once: names must be unique")
        self._followed_by: dict[int, int] = {}  # gradients mostly come in the last step's order
        self._last = -1

    def find(self, gradient: Any) -> str | None:
        """The name of the parameter whose ``.grad`` is ``gradient``, or None."""
        guess = self._followed_by.get(self._last)
        if guess is not None and self._named[guess][1].grad is gradient:
            self._last = guess
            return self._named[guess][0]
        for index, (name, parameter) in enumerate(self._named):
            if parameter.grad is gradient:
                self._followed_by[self._last] = index
                self._last = index
                return name
        return None


def make_skip(skip: Skip, have_names: bool) -> Predicate:
    """A predicate of name and gradient from what ``skip=`` may be: a pattern, several, a predicate or nothing."""
    if skip is None:
        return lambda name, gradient: False
    if callable(skip):
        return skip
    patterns = [skip] if isinstance(skip, str) else skip
    try:
        checked: list[Any] = list(patterns)
    except TypeError:
        checked = [skip]
    if not all(isinstance(pattern, str) for pattern in checked):
        raise QSGDError(
            f"skip={skip!r} is none of: a name pattern such as '*.norm.*', a list of patterns, a function of name and "
            "gradient"
        )
    if not have_names:
        raise QSGDError("skip= by name needs the names: pass named_parameters=model.named_parameters() as well")
    return lambda name, gradient: name is not None and any(fnmatch.fnmatchcase(name, pattern) for pattern in checked)
