"""Which step is it, and which tensor of the step? Horovod tells a compressor neither."""

from __future__ import annotations

import itertools
import threading
import weakref
import zlib
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from hvd_qsgd import native
from hvd_qsgd.errors import QSGDError

STEPS = 2**32


class Slot:
    """What stays the same about one tensor from step to step, and must be the same on all ranks."""

    __slots__ = (
        "accepted", "count", "dtype", "expected", "group", "history", "last_step", "most_bytes", "name",
        "operation", "quantization", "shape", "signature", "size", "spec",
    )  # fmt: skip

    def __init__(
        self, name: str, operation: str, shape: Sequence[int], dtype: str, spec: native.Spec, size: int
    ) -> None:
        self.name = name  # of the tensor
        self.operation = operation  # name of the collective that carries its frames
        self.shape, self.dtype = shape, dtype
        self.count = int(spec.count)  # elements
        self.spec = spec  # its step and quantization follow the compressor's
        self.expected = native.Expectation(spec.count, spec.tensor, spec.step, spec.dtype, 0)
        self.size = size  # ranks that send a frame
        self.group: Any = None  # the frontend's, of tensors that set out together, if this is their first
        self.accepted: tuple[bytes, float] | None = None  # a reduced token that was found right, and its factor
        self.signature = 0
        self.sign("")
        self.quantization: Any = None  # that most_bytes is for
        self.most_bytes = 0  # of a frame
        self.history = native.History()  # of this rank's frames
        self.last_step = -1

    def step_after(self, step: int) -> int:
        """The tensor's next step: ``step``, or a later one if it had that already: no random numbers are used twice."""
        self.last_step = step if step > self.last_step else self.last_step + 1
        return self.last_step

    def sign(self, schedule: str) -> None:
        """Let tokens tell whether all ranks mean the same by this tensor, and by the schedule of its levels."""
        spec = self.spec
        signature = native.signature(self.operation + schedule, spec.tensor, spec.count, spec.dtype)
        if signature != self.signature:
            self.signature, self.accepted = signature, None

    def __str__(self) -> str:
        return self.describe(self.spec.step)

    def describe(self, step: int) -> str:
        """The tensor, as it was in ``step``, in words."""
        return f"tensor {self.name!r} ({self.count} x {self.dtype}, step {step})"


class Ticket:
    """One tensor on its way, from ``compress`` to ``decompress``."""

    __slots__ = ("_steps", "encoded", "serial", "slot")

    def __init__(self, slot: Any, steps: Steps) -> None:
        self.slot = slot
        self.encoded = False  # or could not be
        self._steps = steps
        self.serial = next(steps.serials)
        steps.on_their_way[slot] = self.serial

    def is_open(self) -> bool:
        """Whether the tensor is on its way: it has not arrived, and was not given up."""
        return self._steps.on_their_way.get(self.slot) == self.serial

    def close(self) -> bool:
        """The tensor has arrived. False if it had before, or was given up."""
        on_their_way = self._steps.on_their_way
        if on_their_way.get(self.slot) != self.serial:
            return False
        del on_their_way[self.slot]
        return True

    __del__ = close  # thrown away by an exception, or by an optimizer that loads its state: as good as arrived


class Steps:
    """Counts steps: one ends when none of its tensors is on its way any more."""

    def __init__(self) -> None:
        self.step = 0
        self.opened = 0  # tensors in this step
        self.on_their_way: dict[Hashable, int] = {}
        self.lock = threading.Lock()
        self.serials = itertools.count()  # that no ticket had before

    def begin(self, step: int | None = None) -> None:
        """Begin step number ``step`` (default: the next), giving up what is on its way."""
        self.step = (self.step + 1) % STEPS if step is None else step
        self.opened = 0
        self.on_their_way.clear()

    def take(self) -> tuple[int, Ticket]:
        """Number the next tensor of the step, for frontends that keep no slots."""
        with self.lock:
            if self.opened and not self.on_their_way:
                self.begin()
            number = self.opened
            self.opened += 1
            return number, Ticket(number, self)


def tensor_id(compressor: str, tensor: str) -> int:
    """The id on the wire: the same on all ranks and in every run."""
    return zlib.crc32(f"{compressor}/{tensor}".encode())


_used: Counter[Hashable] = Counter()
_given: weakref.WeakValueDictionary[tuple[Hashable, str], Any] = weakref.WeakValueDictionary()


def operation_prefix(owner: object, name: str | None, group: Hashable) -> str:
    """What the names of a compressor's collective operations begin with, unique among the compressors in use.

    Without a name it is the compressor's place in the order of first use among those of ``group``: ranks may make
    compressors that they never use, but must first use the others in the same order.
    """
    if name is not None:
        if _given.setdefault((group, name), owner) is not owner:
            raise QSGDError(f"another compressor in use has name={name!r}: give each its own name=")
        return f"qsgd.{name}"
    _used[group] += 1
    return f"qsgd:{_used[group]}"
