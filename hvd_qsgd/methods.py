"""Methods that work on a class as well as on an instance: Horovod takes both for ``compression=``."""

from __future__ import annotations

import functools
from types import MethodType
from typing import Any, Callable


class Method:
    """A method that, called on the class, works on an instance with the default arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        functools.update_wrapper(self, function)  # type: ignore[arg-type]

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        return MethodType(self._function, _default(owner) if instance is None else instance)


@functools.cache
def _default(owner: type) -> Any:
    return owner()
