"""Gradients on their way, and how those that Horovod compresses as a group set out together.

Horovod tells a compressor nowhere what belongs together. But it looks into what ``compress`` returns at once for a
gradient by itself, ``token, ctx = compress(gradient)``, and for a group when all of it is there, ``zip(*[compress(
gradient) for gradient in group])``. So gradients wait until one is looked into.
"""

from __future__ import annotations

import ctypes
import operator
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import torch

from hvd_qsgd import torch_streams
from hvd_qsgd.compressor import Compressor, not_on_its_way
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.stats import Stats
from hvd_qsgd.steps import Slot, Ticket
from hvd_qsgd.torch_tensors import CPU, TOKEN_BYTES, TOKEN_SHAPE, Wire, bytes_of, most_words

Tensor = torch.Tensor
_slot, _signature = operator.attrgetter("slot"), operator.attrgetter("signature")


class Journey:
    """A gradient on its way, from ``compress`` to ``decompress``: the pair of its token and, as context, itself.

    It sets out, with all that wait beside it, when somebody looks into the pair.
    """

    __slots__ = (
        "__weakref__", "departure", "factor", "gradient", "number", "result", "slot", "station", "ticket", "token",
        "waiting", "wire", "words",
    )  # fmt: skip

    station: Station  # where it waits
    waiting: list[weakref.ref[Journey]]  # and with whom
    departure: Departure  # once it has set out, as
    number: int  # of its group

    def __init__(self, ticket: Ticket, gradient: Tensor, wire: Wire) -> None:
        self.ticket = ticket
        self.slot: Slot = ticket.slot
        self.gradient = gradient  # which may be another by now
        self.wire = wire
        self.token: Tensor | None = None  # that Horovod reduces, once it has set out
        self.words: Tensor | None = None  # all ranks' frames, once they are here
        self.factor = 0.0  # of the result
        self.result: Tensor | None = None

    def __iter__(self) -> Iterator[Any]:
        if self.token is None:
            self.station.depart(self.waiting)
        if self.token is None:
            raise not_on_its_way(self.slot)
        return iter((self.token, self))

    def __getitem__(self, index: Any) -> Any:
        return tuple(self)[index]

    def __len__(self) -> int:
        return 2

    def reduced(self, output: Tensor) -> bytes:
        """The entries of the token that came back as ``output``."""
        return self.departure.reduced(self.number) if output is self.token else bytes_of(output)


class Tokens:
    """Memory for the tokens of a group. Horovod reduces in place: it is used again once all reductions have ended."""

    def __init__(self, entries: list[list[float]], device: torch.device) -> None:
        on_cpu = torch.tensor(entries, dtype=torch.float32, device="cpu").view(-1, *TOKEN_SHAPE)
        self._original, self._bytes = on_cpu.to(device), bytes_of(on_cpu)
        self.free: list[Block] = []

    def take(self) -> Block:
        """Tokens that are ready to be reduced."""
        if not self.free:
            return Block(self._original.clone())
        block = self.free.pop()
        if block.memory is None:
            block.all.copy_(self._original)
        else:
            block.memory.raw = self._bytes
        return block


class Block:
    """The tokens of a group, which lie side by side."""

    __slots__ = ("all", "memory", "rows")

    def __init__(self, everything: Tensor) -> None:
        self.all, self.rows = everything, everything.unbind(0)
        self.memory: Any = None  # of the CPU, if they lie there
        if not torch_streams.GPU.holds(everything):
            self.memory = (ctypes.c_char * (TOKEN_BYTES * len(self.rows))).from_address(everything.data_ptr())

    def entries(self) -> bytes:
        """Of all tokens, reduced or not."""
        entries: bytes = bytes_of(self.all) if self.memory is None else self.memory.raw
        return entries


class Group:
    """Tensors that set out together, and what of that stays the same from step to step. It belongs to the first one."""

    def __init__(self, slots: list[Slot], device: torch.device, on_gpu: bool, tokens: Tokens) -> None:
        self.slots, self.device, self.tokens = slots, device, tokens
        self.gpu = device if on_gpu else None  # on which Horovod gathers their frames
        self.signatures = list(map(_signature, slots))
        self.operations = [slot.operation for slot in slots]
        self.bounds = [most_words(slot) for slot in slots]
        self.elements = sum(slot.count for slot in slots)
        self.accepted: bytes | None = None  # all tokens as they came back, in place, when they were found right
        self.plan: Any = None  # CudaPath's

    def is_of(self, slots: list[Slot], device: torch.device) -> bool:
        """Whether it is these tensors', on this device, and their tokens are still the same."""
        same = self.slots == slots and self.device == device
        return same and self.signatures == list(map(_signature, slots))


class Departure:
    """Gradients of a group that set out together in a step."""

    __slots__ = (
        "__weakref__", "_journeys", "_missing", "_missing_in_place", "_reduced", "_tokens", "frames", "gathering",
        "group", "path", "plan",
    )  # fmt: skip

    def __init__(self, group: Group, journeys: list[Journey], path: Any) -> None:
        self.group = group
        self.path = path  # CpuPath or CudaPath
        self._journeys = list(map(weakref.ref, journeys))  # as weak as in a station
        self._tokens = group.tokens.take()
        self._reduced: bytes | None = None  # all tokens, if they are known to be right
        self._missing = self._missing_in_place = len(journeys)  # tokens
        self.gathering: Any = None  # what to wait for, until the frames are here
        self.plan: Any = None  # CudaPath's, and
        self.frames: list[Tensor] = []  # this rank's memory, to be used again
        for number, journey in enumerate(journeys):
            journey.departure, journey.number, journey.token = self, number, self._tokens.rows[number]

    def journeys(self) -> list[Journey]:
        """Those that are not given up."""
        return [journey for journey in (one() for one in self._journeys) if journey is not None]

    def is_right(self) -> bool:
        """Whether all tokens have come back, in place, as they did when they were found right.

        No token is like that before it is reduced, but where there is one rank.
        """
        if self._reduced is None and self.group.accepted is not None:
            entries = self._tokens.entries()
            self._reduced = entries if entries == self.group.accepted else None
        return self._reduced is not None

    def reduced(self, number: int) -> bytes:
        """The entries of a token that came back in place."""
        entries = self._reduced if self.is_right() else None
        start = TOKEN_BYTES * number
        return (entries or self._tokens.entries())[start : start + TOKEN_BYTES]

    def accept(self, in_place: bool) -> None:
        """One more token has come back, in place or not, and is right."""
        self._missing -= 1
        self._missing_in_place -= in_place
        if self._missing == 0:
            if self._missing_in_place == 0 and self._reduced is None:
                self.group.accepted = self._tokens.entries()
            self.group.tokens.free.append(self._tokens)

    def arrive(self, words: list[Tensor]) -> None:
        """All ranks' frames are here, of each of the gradients."""
        self.gathering = None
        for one, own in zip(self._journeys, words):
            journey = one()
            if journey is not None:
                journey.words = own


def arrive(departures: list[Departure], transport: Any, stats: Stats) -> None:
    """Wait for all ranks' frames."""
    start = time.perf_counter()
    gpu = departures[0].group.gpu
    try:
        if gpu is None:
            for departure in departures:
                departure.arrive(departure.gathering.wait())
        else:
            arrived = transport.wait_for([departure.gathering for departure in departures], gpu)
            for departure, words in zip(departures, arrived):
                departure.arrive(words)
    except Exception as error:
        for departure in departures:
            if departure.gathering is not None:
                departure.gathering = _Failed(error)
        raise
    stats.seconds_wait += time.perf_counter() - start


class _Failed:
    """In place of a gathering that ended with an error, which all of the group are to hear of."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def wait(self) -> Any:
        raise self._error


class _Waiting(threading.local):
    """Who waits, in each thread: a group is compressed in one, while autograd's others may call hooks as well."""

    def __init__(self) -> None:
        # Weak: a gradient that is given up must not look as if it were on its way.
        self.journeys: list[weakref.ref[Journey]] = []


class Station:
    """Where the gradients of one compressor wait for the others of their group."""

    def __init__(self, core: Compressor, on_cpu: Any, on_gpu: Any, grouped: bool) -> None:
        self._core, self._on_cpu, self._on_gpu, self._grouped = core, on_cpu, on_gpu, grouped
        self._waiting = _Waiting()

    def wait_here(self, journey: Journey) -> Journey:
        """What ``compress`` returns."""
        journey.station, journey.waiting = self, self._waiting.journeys
        journey.waiting.append(weakref.ref(journey))
        return journey

    def depart(self, waiting: list[weakref.ref[Journey]]) -> None:
        """All of these, who wait no longer, set out unless they were given up."""
        departing = waiting.copy()
        waiting.clear()
        by_device: dict[torch.device, list[Journey]] = {}
        for one in departing:
            journey = one()
            if journey is not None and journey.ticket.is_open():
                # What lies on neither is refused, but not left out: all ranks must send the same.
                device = journey.gradient.device if torch_streams.GPU.holds(journey.gradient) else CPU
                by_device.setdefault(device, []).append(journey)
        for device, journeys in by_device.items():
            self._depart(journeys, device)

    def _depart(self, journeys: list[Journey], device: torch.device) -> None:
        on_gpu = torch_streams.GPU.holds(journeys[0].gradient)
        if on_gpu and torch_streams.GPU.capturing():
            raise QSGDError(
                "gradients cannot be reduced while a CUDA graph is captured, since Horovod's operations cannot: "
                "capture the forward and the backward pass alone, and reduce after the replay"
            )
        slots = list(map(_slot, journeys))
        group: Group | None = slots[0].group
        if group is None or not group.is_of(slots, device):
            tokens = Tokens([self._core.token(slot) for slot in slots], device if on_gpu and self._grouped else CPU)
            group = slots[0].group = Group(slots, device, on_gpu, tokens)
        path = self._on_gpu if on_gpu and self._on_gpu.takes(group) else self._on_cpu
        path.depart(Departure(group, journeys, path), journeys)
