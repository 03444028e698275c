"""The compressor without a framework: what to compress, how, under which id and step, and what came of it.

A frontend gives it addresses and dtypes, and moves the frames and the token that it makes.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import time
from collections.abc import Hashable, Sequence
from typing import Any, Callable, NamedTuple, TypeVar

from hvd_qsgd import controller, frames, native, wire
from hvd_qsgd.checks import encodable, keep, positive, whole_number
from hvd_qsgd.config import DEFAULT_MIN_SIZE, Levels, Quantization
from hvd_qsgd.controller import Controller
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.progress import Progress
from hvd_qsgd.stats import Stats
from hvd_qsgd.steps import STEPS, Slot, Steps, Ticket, operation_prefix, tensor_id

Buffer = TypeVar("Buffer")
STATE_VERSION = 1
MAX_SLOTS = 4096  # gradients of ever new sizes do not pile up


class Ranks(NamedTuple):
    """Who takes part: this process's rank, their number, and what identifies the group on all of them."""

    rank: int
    size: int
    group: Hashable


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything about a compressor that is not the quantization.

    Attributes:
        min_size: gradients with fewer elements stay uncompressed, and so do one-dimensional ones unless it is 0.
        seed: of the random rounding, 0 .. 2^64 - 1.
        name: part of the tensors' ids and of the operations' names.
        measure_error: add up the quantization error in the statistics (decodes every own frame once more).
        error_feedback: add what encoding left out of a tensor to its next gradient.
        clip: limit a gradient's values to so many of its standard deviations, or None.
    """

    min_size: int = DEFAULT_MIN_SIZE
    seed: int = 0
    name: str | None = None
    measure_error: bool = False
    error_feedback: bool = False
    clip: float | None = None

    def __post_init__(self) -> None:
        min_size = whole_number("min_size", self.min_size, 0, 2**63)
        keep(self, min_size=min_size, seed=whole_number("seed", self.seed, 0, 2**64 - 1))
        if self.name is not None and not (isinstance(self.name, str) and self.name and encodable(self.name)):
            raise QSGDError(f"name={self.name!r} is not a text: give a name that is the same on all ranks, or None")
        for name in ("measure_error", "error_feedback"):
            if not isinstance(getattr(self, name), bool):
                raise QSGDError(f"{name}={getattr(self, name)!r} is neither True nor False")
        if self.clip is not None:
            keep(self, clip=positive("clip", self.clip, 2.5))

    def wants(self, count: int, dimensions: int) -> bool:
        """Whether a floating-point gradient of this size is compressed."""
        return count >= self.min_size and (dimensions > 1 or self.min_size == 0)


class Compressor:
    """State and decisions of one compressor on one rank."""

    def __init__(self, quantization: Quantization, options: Options) -> None:
        native.library()  # if it cannot be loaded, say so before other ranks wait for this one
        self.quantization = quantization
        self.options = options
        self.stats = Stats()
        self.steps = Steps()
        self._seed = options.seed
        self._prefix: str | None = None
        self._slots: dict[Hashable, Slot] = {}
        self._ranks = Ranks(0, 1, None)
        self._scratch: tuple[Any, int, int] | None = None  # buffer, address and bytes, for frames of unknown length
        self._controller = None if quantization.schedule is None else Controller(quantization)

    @property
    def _reads_frames(self) -> bool:
        return self._controller is not None and self._controller.schedule.needs_frames

    @property
    def levels(self) -> Levels:
        """Of the next gradient; None if they differ by tensor."""
        return self.quantization.levels if self._controller is None else self._controller.levels

    def skipped(self, size: int) -> None:
        """Count a gradient of ``size`` bytes that goes uncompressed."""
        self.stats.tensors_skipped += 1
        self.stats.bytes_uncompressed += size

    def open(self, name: str | None, shape: Sequence[int], dtype: str, ranks: Callable[[], Ranks]) -> Ticket:
        """A gradient of this shape sets out.

        ``name`` is the parameter's, or None if it is not known: then the tensor's number in the step is its name.
        ``ranks()`` tells who takes part; it is asked once a step.
        """
        steps = self.steps
        with steps.lock:
            if not steps.on_their_way:
                self._begin_step(ranks())
            slot = self._slot(name, shape, dtype)
            if slot in steps.on_their_way:  # its last journey was given up by an exception that is still being held
                self._begin_step(ranks())
                slot = self._slot(name, shape, dtype)
            steps.opened += 1
            slot.spec.step = slot.expected.step = slot.step_after(steps.step)
            return Ticket(slot, steps)

    def _begin_step(self, ranks: Ranks) -> None:
        self._end_step()
        self.stats.steps += 1
        if ranks != self._ranks:
            self._slots.clear()
            self._ranks = ranks
        if self._prefix is None:
            self._prefix = operation_prefix(self, self.options.name, ranks.group)

    def _end_step(self) -> None:
        if not self.steps.opened:
            return
        if self._controller is not None:
            self._controller.settle(self.steps.opened)
        self.steps.begin()

    def _slot(self, name: str | None, shape: Sequence[int], dtype: str) -> Slot:
        key = (self.steps.opened if name is None else name, shape, dtype)
        slot = self._slots.get(key)
        if slot is None:
            if len(self._slots) >= MAX_SLOTS:
                self._slots.clear()
            slot = self._slots[key] = self._new_slot(f"#{self.steps.opened}" if name is None else name, shape, dtype)
        quantization = self.quantization
        if self._controller is not None:
            quantization = self._controller.quantization(slot.name, slot.spec.count)
        if slot.quantization is not quantization:
            self._requantize(slot, quantization)
        return slot

    def _new_slot(self, name: str, shape: Sequence[int], dtype: str) -> Slot:
        spec = frames.make_spec(
            self.quantization,
            count=math.prod(shape),
            columns=native.columns(shape),
            dtype=dtype,
            seed=self._seed,
            rank=self._ranks.rank,
            tensor=tensor_id(self.options.name or "", name),
            step=self.steps.step,
        )
        return Slot(name, f"{self._prefix}.{name}", shape, dtype, spec, self._ranks.size)

    def _requantize(self, slot: Slot, quantization: Quantization) -> None:
        frames.set_quantization(slot.spec, quantization)
        slot.spec.flags &= ~wire.SQUARED_NORM
        if self._reads_frames:
            slot.spec.flags |= wire.SQUARED_NORM
        slot.sign("" if self._controller is None else self._controller.signature)
        slot.most_bytes = native.frame_bytes(slot.spec)
        slot.quantization = quantization

    def encode(self, ticket: Ticket, gradient: int, allocate: Callable[[int], tuple[Buffer, int]]) -> Buffer:
        """The frame of the gradient at address ``gradient``, in a buffer of ``allocate(bytes) -> (buffer, address)``.

        If it cannot be made, the buffer holds an error frame, so that all ranks learn of it.
        """
        start = time.perf_counter()
        slot: Slot = ticket.slot
        last = slot.history.frame_bytes
        try:
            buffer = self._encode(slot, gradient, allocate)
        except Exception as error:  # whatever it is: without a frame of this rank the others would wait for ever
            return self.refuse(ticket, error, allocate)
        self._encoded(ticket, last)
        self.stats.seconds_encode += time.perf_counter() - start
        return buffer

    def encode_together(
        self,
        make: Callable[[list[Slot]], list[Buffer]],
        tickets: Sequence[Ticket],
        allocate: Callable[[int], tuple[Buffer, int]],
    ) -> list[Buffer]:
        """``encode``, with frames that ``make`` returns once it has told their lengths to the slots' histories."""
        start = time.perf_counter()
        slots: list[Slot] = [ticket.slot for ticket in tickets]
        lengths = [slot.history.frame_bytes for slot in slots]
        try:
            buffers = make(slots)
        except Exception as error:  # as for one
            return [self.refuse(ticket, error, allocate) for ticket in tickets]
        for ticket, last in zip(tickets, lengths):
            self._encoded(ticket, last)
        self.stats.seconds_encode += time.perf_counter() - start
        return buffers

    def _encoded(self, ticket: Ticket, last: int) -> None:
        """Count its frame; the last one had ``last`` bytes."""
        slot, stats = ticket.slot, self.stats
        ticket.encoded = True
        size = slot.history.frame_bytes
        stats.tensors_compressed += 1
        stats.coordinates += slot.count
        stats.bytes_raw += slot.count * wire.ITEM_BYTES[slot.dtype]
        stats.bytes_sent += size
        stats.frames_resized += size != last and last != 0

    def _encode(self, slot: Slot, gradient: int, allocate: Callable[[int], tuple[Buffer, int]]) -> Buffer:
        if not slot.quantization.fixed_length:
            return self._encode_next(slot, gradient, allocate)
        buffer, address = allocate(slot.most_bytes)
        slot.history.frame_bytes = native.encode(slot.spec, gradient, address, slot.most_bytes)
        return buffer

    def _encode_next(self, slot: Slot, gradient: int, allocate: Callable[[int], tuple[Buffer, int]]) -> Buffer:
        """A frame whose length the kernels find."""
        if self._scratch is None or self._scratch[2] < slot.most_bytes:
            self._scratch = (*allocate(slot.most_bytes), slot.most_bytes)
        scratch = self._scratch[1]
        if self._controller is not None and self._controller.schedule.counts_bits:
            slot.history = native.History()  # a run that is continued must count the same bits
        size = native.encode_next(
            slot.spec, slot.quantization.variance, slot.history, gradient, scratch, slot.most_bytes
        )
        buffer, address = allocate(size)
        ctypes.memmove(address, scratch, size)
        return buffer

    def refuse(self, ticket: Ticket, why: Exception, allocate: Callable[[int], tuple[Buffer, int]]) -> Buffer:
        """An error frame: ``decode`` raises ``why`` on every rank."""
        frame = native.error_frame(ticket.slot.spec, str(why) or type(why).__name__)
        buffer, address = allocate(len(frame))
        ctypes.memmove(address, frame, len(frame))
        return buffer

    def token(self, slot: Slot) -> list[float]:
        """What Horovod reduces in place of the tensor's gradient; it is the same in every step."""
        return native.token(slot.spec.rank, slot.signature)

    def factor(self, ticket: Ticket, reduced: bytes) -> float:
        """The factor of a reduced token (float32 entries); raises if the reduction or the ranks' meaning is wrong.

        The ticket has arrived with it.
        """
        slot: Slot = ticket.slot
        if not ticket.close():
            raise not_on_its_way(slot)
        if slot.accepted is None or slot.accepted[0] != reduced:
            entries = memoryview(reduced).cast("f").tolist()
            slot.accepted = reduced, native.token_factor(entries, slot.size, slot.signature, str(slot))
        return slot.accepted[1]

    def decode(self, ticket: Ticket, address: int, size: int, factor: float, out: int) -> None:
        """Write the sum of all ranks' frames, ``size`` bytes at ``address``, times ``factor`` to ``out``."""
        start = time.perf_counter()
        slot: Slot = ticket.slot
        frames.decode_sum(address, size, slot.size, slot.expected, factor, out, slot)
        if self._controller is not None and self._reads_frames:
            self._controller.arrived(slot.name, controller.read_arrival(address, slot.size, slot.spec.levels))
        self.decoded(size - slot.history.frame_bytes, start)

    def decoded(self, received: int, start: float) -> None:
        """Count the decoding, begun at ``start``, of frames of which so many bytes are other ranks'."""
        self.stats.bytes_received += received
        self.stats.seconds_decode += time.perf_counter() - start

    def decode_own(self, ticket: Ticket, address: int, out: int) -> None:
        """Write what this rank's own frame at ``address`` stands for to ``out``: for measuring the error."""
        slot = ticket.slot
        expected = frames.expect(slot.spec, first_rank=slot.spec.rank)
        frames.decode_sum(address, slot.history.frame_bytes, 1, expected, 1.0, out, slot)

    def change(self, **changes: Any) -> None:
        """Change some of the arguments of ``Quantization.create`` from the next tensor on."""
        self._use(self.quantization.changed(**changes))

    def _use(self, quantization: Quantization, past: Progress | None = None) -> None:
        """Go on with ``quantization``, and its schedule after ``past``: where it is, or at its beginning."""
        self._end_step_if_over()
        if self._controller is not None and quantization.schedule is self.quantization.schedule:
            past = self._controller.past
        self.quantization = quantization
        self._controller = None if quantization.schedule is None else Controller(quantization, past)

    def _end_step_if_over(self) -> None:
        if not self.steps.on_their_way:
            self._end_step()

    def state(self) -> dict[str, Any]:
        """What continues a run: plain values that can be saved and broadcast."""
        self._end_step_if_over()
        state = {"version": STATE_VERSION, "step": self.steps.step, "seed": self._seed, **self.quantization.saved()}
        return state if self._controller is None else {**state, controller.KEY: self._controller.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue where ``state()`` was taken; tensors that are on their way are forgotten."""
        saved, step = read_state(state, "step")
        step = whole_number("step", step, 0, STEPS - 1)
        self._slots.clear()
        self.steps.begin(step)
        self._seed, self._controller = saved.seed, None
        self._use(saved.quantization, saved.past)


def not_on_its_way(slot: Slot) -> QSGDError:
    """What to raise for a ticket that was closed already."""
    return QSGDError(
        f"{slot} is decompressed twice, or after the compressor's state was loaded, or its parameter was compressed "
        "again meanwhile (is it in two optimizers?): every compress() is for one decompress()"
    )


class Saved(NamedTuple):
    """What the saved states of all frontends have in common."""

    quantization: Quantization
    seed: int
    past: Progress | None  # of the schedule, if there is one


def read_state(state: dict[str, Any], position: str) -> tuple[Saved, Any]:
    """What is in a compressor's saved state, checked, and its entry ``position``, which is not."""
    try:
        if state["version"] != STATE_VERSION:
            raise QSGDError(f"this state is of version {state['version']}, this hvd_qsgd knows {STATE_VERSION}")
        seed = whole_number("seed", state["seed"], 0, 2**64 - 1)
        fields = {name: state[name] for name in ("levels", "variance", "bucket_size", "norm", "codec", "dither")}
        schedule, past = controller.read_state(state[controller.KEY]) if controller.KEY in state else (None, None)
        if fields["levels"] is None and fields["variance"] is None and schedule is None:
            raise QSGDError("levels=None and variance=None, and no schedule: a state has one of them")
        where = state[position]
    except QSGDError:
        raise
    except Exception as error:  # of whatever was passed
        raise QSGDError(
            f"this is not a state of a QSGD compressor: {error!r}; pass what state_dict() returned"
        ) from error
    return Saved(Quantization.create(**fields, schedule=schedule), seed, past), where
