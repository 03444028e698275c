"""Which step is it, and which tensor of the step? Horovod tells a compressor neither."""

from __future__ import annotations

import threading
import weakref
import zlib
from collections import Counter
from typing import Hashable

from hvd_qsgd import native
from hvd_qsgd.errors import QSGDError


class Ticket:
    """One tensor on its way, from ``compress`` to ``decompress``. Everything that must be the same on all ranks."""

    __slots__ = (
        "__weakref__",
        "dtype",
        "frame_bytes",
        "name",
        "operation",
        "rank",
        "signature",
        "size",
        "spec",
    )

    def __init__(
        self, name: str, operation: str, spec: native.Spec, dtype: str, rank: int, size: int, signature: int
    ) -> None:
        self.name = name  # of the tensor
        self.operation = operation  # name of the collective that carries its frames
        self.spec = spec
        self.dtype = dtype
        self.rank = rank
        self.size = size  # ranks that send a frame
        self.signature = signature  # see token.py
        self.frame_bytes = 0  # once encoded

    def __str__(self) -> str:
        return f"tensor {self.name!r} ({self.spec.count} x {self.dtype}, step {self.spec.step})"


class Steps:
    """Counts steps: one ends when no tensor that was opened in it is still on its way.

    Tensors whose tickets are thrown away without ``close``, by an exception or an optimizer that loads its state, count as
    arrived.
    """

    def __init__(self) -> None:
        self.step = 0
        self.opened = 0  # in this step
        self._open: weakref.WeakValueDictionary[str, Ticket] = weakref.WeakValueDictionary()
        self.lock = threading.Lock()

    def begin(self, name: str | None) -> str:
        """The name of the next tensor, after starting a new step if the last is over.

        A tensor without a name is called by its number in the step.
        """
        if self.opened and (not self._open or name in self._open):
            self.settle()
        self.opened += 1
        return f"#{self.opened - 1}" if name is None else name

    def add(self, ticket: Ticket) -> None:
        """``ticket`` is on its way."""
        self._open[ticket.name] = ticket

    def close(self, ticket: Ticket) -> bool:
        """Whether ``ticket`` was open."""
        with self.lock:
            return self._open.get(ticket.name) is ticket and self._open.pop(ticket.name) is ticket

    def settle(self, step: int | None = None) -> None:
        """Begin step number ``step`` (default: the next), whatever is still open."""
        self.step = (self.step + 1) % 2**32 if step is None else step
        self.opened = 0
        self._open.clear()

    @property
    def current(self) -> int:
        """The step that the next tensor belongs to."""
        return (self.step + 1) % 2**32 if self.opened and not self._open else self.step


def tensor_id(compressor: str, tensor: str) -> int:
    """The id on the wire: the same on all ranks and in every run."""
    return zlib.crc32(f"{compressor}/{tensor}".encode())


_used: Counter[Hashable] = Counter()
_given: weakref.WeakValueDictionary[tuple[Hashable, str], object] = weakref.WeakValueDictionary()


def operation_prefix(owner: object, name: str | None, group: Hashable) -> str:
    """What the names of a compressor's collective operations begin with, unique among the compressors in use.

    Without a name it is the compressor's place in the order of first use among those of ``group``: ranks may make compressors that
    they never use, but must first use the others in the same order.
    """
    if name is not None:
        other = _given.setdefault((group, name), owner)
        if other is not owner:
            raise QSGDError(f"another compressor in use has name={name!r}: give each its own name=")
        return f"qsgd.{name}"
    _used[group] += 1
    return f"qsgd:{_used[group]}"
