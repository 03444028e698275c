"""Gradients on their way on a GPU, and what is known of those that set out together."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

from hvd_qsgd.steps import Ticket
from hvd_qsgd.torch_tensors import Form

Tensor = torch.Tensor


class Group:
    """Gradients that set out together."""

    def __init__(self, journeys: list[Journey]) -> None:
        # Weak: a gradient that is given up must not look as if it were on its way.
        self._journeys = [weakref.ref(journey) for journey in journeys]
        self.size = len(journeys)
        self.tokens_read = False

    def others(self, journey: Journey) -> list[Journey]:
        """Those beside this one that are not given up."""
        alive = (one() for one in self._journeys)
        return [one for one in alive if one is not None and one is not journey]


class Journey:
    """A gradient on its way."""

    __slots__ = (
        "__weakref__", "_arrive", "factor", "form", "frame", "gathering", "group", "reduced", "result", "ticket",
        "token", "words",
    )  # fmt: skip

    def __init__(self, ticket: Ticket, token: Tensor, form: Form, arrive: Callable[[Journey], None]) -> None:
        self._arrive = arrive
        self.ticket, self.token, self.form = ticket, token, form
        self.group: Group | None = None  # once it has set out
        self.gathering: Any = None  # what to wait for, until the frames are here
        self.frame: Tensor | None = None  # this rank's
        self.reduced: bytes | None = None  # the token's entries, if they are known to be right
        self.factor = 0.0  # that they make
        self.words: Tensor | None = None  # the frames
        self.result: Tensor | None = None

    def wait(self) -> Journey:
        """Until the frames have arrived."""
        self._arrive(self)
        return self

    def ready_together(self) -> list[Journey]:
        """This one, and those of its group whose tokens are known to be right."""
        if self.reduced is None or self.group is None:
            return [self]
        return [self, *(one for one in self.group.others(self) if one.reduced is not None)]


class Departure(tuple[Any, ...]):
    """What ``compress`` returns, which sets out when it is looked into.

    Horovod does that at once for a gradient by itself, ``token, ctx = compress(gradient)``, and for a group when all
    of it is there, ``zip(*[compress(gradient) for gradient in group])``. It tells no other way what belongs together.
    """

    _depart: Callable[[], None]

    def __new__(cls, values: tuple[Any, ...], depart: Callable[[], None]) -> Departure:
        self = super().__new__(cls, values)
        self._depart = depart
        return self

    def __iter__(self) -> Iterator[Any]:
        self._depart()
        return super().__iter__()

    def __getitem__(self, index: Any) -> Any:
        self._depart()
        return super().__getitem__(index)
