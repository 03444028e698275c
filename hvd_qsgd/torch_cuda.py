"""The path of a gradient that stays on its GPU: packed, ternary, Elias and rans codes.

Encoding runs on a stream of its own, beside what the caller enqueues next; decoding runs on the caller's current
stream. With fixed widths nothing here waits for the GPU but ``CudaPath.check``. Checks of the frames run on the GPU as
well. Where one fails, the sum is NaN, and the error is raised by the first gradient that was compressed after that sum
was enqueued, when its own frames have arrived: by then the sum is long done.

Where lengths vary the host waits twice: for a frame's length, since Horovod must know it, and for the sum's verdict,
since no length tells an error frame. What the GPU refuses is then left to the CPU, which knows all codecs, and raises.

Gradients of a group are encoded together. When one is asked for, those that are known to be on their way from all ranks
are added up with it: its group's, and those that set out after it.
"""

from __future__ import annotations

import ctypes
import time
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from hvd_qsgd import native, native_cuda, torch_streams
from hvd_qsgd.compressor import Compressor
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.steps import Slot
from hvd_qsgd.torch_cpu import CpuPath
from hvd_qsgd.torch_cuda_encode import Encoder, Plan, Verdicts, memory, room, varies
from hvd_qsgd.torch_groups import Departure, Group, Journey, arrive
from hvd_qsgd.torch_tensors import allocate_frame

Tensor = torch.Tensor
# More of other groups are not added up before they are asked for: their results take memory.
MOST_AHEAD = 2**23  # elements


class _Sums(NamedTuple):
    """Sums that were enqueued, and are not known to be right."""

    serial: int  # of the tickets before them, which are less
    done: Any  # event
    each: list[tuple[Verdicts, int, Slot, int]]  # where it will be told, of what tensor and step


class CudaPath:
    """Encodes and decodes on GPUs, for one compressor. ``transport`` is a ``torch_transport.Transport``."""

    def __init__(self, core: Compressor, transport: Any, by_way_of_cpu: CpuPath) -> None:
        self._core = core
        self._transport = transport
        self._cpu = by_way_of_cpu
        self._encoder = Encoder()
        self._departed: deque[weakref.ref[Departure]] = deque()  # whose frames are awaited, in their order
        self._enqueued: deque[_Sums] = deque()
        # Memory of the host that a kernel is still to write to must not be used again.
        weakref.finalize(self, _wait_for_all, self._enqueued).atexit = False

    def takes(self, group: Group) -> bool:
        """Whether the kernels can do what the settings of these tensors, and the compressor's, ask for."""
        options, schedule = self._core.options, self._core.quantization.schedule
        if options.clip is not None or options.error_feedback or options.measure_error:
            return False
        if schedule is not None and schedule.needs_frames:
            return False
        if group.plan is None or not group.plan.is_valid():
            verdicts = None if group.plan is None else group.plan.verdicts
            group.plan = Plan(group, verdicts)
        return group.plan.possible and native_cuda.available()

    def depart(self, departure: Departure, journeys: list[Journey]) -> None:
        """Encode the gradients, together, and start gathering the frames."""
        group, plan = departure.group, departure.group.plan
        departure.plan = plan
        with torch_streams.GPU.encoding(group.device) as stream:
            encode = lambda _: self._encoder.encode(plan, journeys, stream)  # noqa: E731
            frames = self._core.encode_together(encode, [journey.ticket for journey in journeys], allocate_frame)
            departure.gathering = self._transport.allgather(frames, group.operations, group.bounds, group.gpu)
        if journeys[0].ticket.encoded:
            departure.frames = [frames[k] for k in plan.fixed]
        self._departed.append(weakref.ref(departure))

    def finish(self, journey: Journey, factor: float) -> Tensor:
        """The sum of all ranks' frames, which it waits for, times ``factor``; NaN if ``check`` will find them wrong."""
        together = self._arrive(journey.departure) if journey.words is None else [journey.departure]
        self.check(journey.ticket.serial)
        if journey.result is None or journey.factor != factor:
            journey.factor, journey.result = factor, None
            self._add_up([journey, *_others(journey, together)])
        result, journey.result = journey.result, None
        if result is None:
            return self._cpu.add_up(journey, factor)
        journey.words = None
        return result

    def check(self, before: int | None = None) -> None:
        """Wait for the sums that were enqueued before the ticket with this number, or for all.

        Raises:
            QSGDError: a frame of one of them was wrong, and that sum is NaN.
        """
        wrong: list[str] = []
        while self._enqueued and (before is None or self._enqueued[0].serial < before):
            sums = self._enqueued.popleft()
            sums.done.synchronize()
            wrong += [_explained(*one) for one in sums.each if one[0].of(one[1]).status != native.OK]
        if wrong:
            raise QSGDError(wrong[0])

    def forget(self) -> None:
        """Wait for all sums, whose gradients are given up."""
        _wait_for_all(self._enqueued)

    def _arrive(self, departure: Departure) -> list[Departure]:
        """Wait for its frames, and for those of others that can be added up with them."""
        together = [departure, *self._ahead(departure)]
        arrive(together, self._transport, self._core.stats)
        while self._departed and ((first := self._departed[0]()) is None or first.gathering is None):
            self._departed.popleft()
        for one in together:
            if one.frames:
                one.plan.free.append(one.frames)
        return together

    def _ahead(self, departure: Departure) -> Iterator[Departure]:
        """Others on the same device that are on their way from all ranks, as their tokens tell."""
        elements = 0
        for other in (one() for one in self._departed):
            if other is None or other is departure or other.gathering is None:
                continue
            elements += other.group.elements
            if elements > MOST_AHEAD or other.group.gpu != departure.group.gpu:
                return
            if not (departure.is_right() and other.is_right()):
                return
            yield other

    def _add_up(self, journeys: list[Journey]) -> None:
        """Results for those of them for which the GPU can make one, on the current stream."""
        journeys = [journey for journey in journeys if _possible(journey)]
        if not journeys:
            return
        try:
            self._enqueue(journeys, journeys[0].departure.group.device)
        except Exception:  # what was not written must not be taken for a sum by those that come after
            for journey in journeys:
                journey.result = None
            raise

    def _enqueue(self, journeys: list[Journey], device: torch.device) -> None:
        begin, received = time.perf_counter(), 0
        for journey in journeys:
            words = journey.words
            assert words is not None
            if words.device != device:  # MPI's lie on the CPU
                journey.words = words.to(device)
            journey.result = torch.empty(journey.slot.shape, dtype=journey.wire.carrier, device=device)
            received += 8 * words.numel() - journey.slot.history.frame_bytes
        fixed = [journey for journey in journeys if not varies(journey.slot)]
        variable = [journey for journey in journeys if varies(journey.slot)]
        with torch_streams.GPU.here(device) as stream:
            if len(fixed) == 1:
                _decode(fixed[0], fixed[0].departure.plan.decode_scratch, stream)
            elif fixed:
                _decode_many(fixed, device, stream)
            for journey in variable:
                _decode(journey, native_cuda.decode_scratch_variable(journey.slot.count, journey.slot.size), stream)
        done = torch_streams.GPU.mark(device)
        if fixed:
            each = [(one.departure.plan.verdicts, one.number, one.slot, one.slot.spec.step) for one in fixed]
            self._enqueued.append(_Sums(next(self._core.steps.serials), done, each))
        if variable:
            done.synchronize()
        for journey in variable:
            if journey.departure.plan.verdicts.of(journey.number).status != native.OK:
                journey.result = None
        self._core.decoded(received, begin)


def _wait_for_all(enqueued: deque[_Sums]) -> None:
    while enqueued:
        enqueued.popleft().done.synchronize()


def _others(journey: Journey, departures: list[Departure]) -> Iterator[Journey]:
    """Those beside this one whose factors are known."""
    for departure in departures:
        for other in departure.journeys() if departure.is_right() else []:
            if other is not journey and other.result is None:
                other.factor = other.slot.accepted[1]  # type: ignore[index]
                yield other


def _possible(journey: Journey) -> bool:
    """Whether the GPU may add up the frames, as far as the host knows."""
    if journey.words is None or not journey.ticket.encoded:
        return False
    slot = journey.slot
    # Among frames of one length another one may be an error frame, or of a codec that only the CPU knows.
    return varies(slot) or 8 * journey.words.numel() == slot.size * slot.history.frame_bytes


def _decode(journey: Journey, scratch_bytes: int, stream: int) -> None:
    assert journey.words is not None
    assert journey.result is not None
    slot, plan = journey.slot, journey.departure.plan
    scratch = memory(scratch_bytes, plan.device)
    verdict, out = plan.verdicts.address_of(journey.number), journey.result.data_ptr()
    frames = room(journey.words)
    native_cuda.decode_sum(frames, slot.size, slot.expected, journey.factor, out, verdict, room(scratch), stream)


def _decode_many(journeys: list[Journey], device: torch.device, stream: int) -> None:
    table = native_cuda.summations(map(_summation, journeys))
    scratch = memory(native_cuda.decode_sum_many_scratch(table), device)
    native_cuda.decode_sum_many(table, room(scratch), stream)


def _summation(journey: Journey) -> tuple[int | float, ...]:
    """Its row of the table."""
    assert journey.words is not None
    assert journey.result is not None
    slot, verdict = journey.slot, journey.departure.plan.verdicts.address_of(journey.number)
    expected, out = ctypes.addressof(slot.expected), journey.result.data_ptr()
    return (*room(journey.words), expected, slot.size, journey.factor, out, verdict)


def _explained(verdicts: Verdicts, number: int, slot: Slot, step: int) -> str:
    verdict = verdicts.of(number)
    return (
        f"{slot.describe(step)} from rank {verdict.bad_frame} {native.status_text(verdict.status)}. A GPU finds that "
        "late, and has made the sum NaN on this rank: the weights may be spoilt, so go back to a checkpoint"
    )
