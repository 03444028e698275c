"""The path of a gradient that stays on its GPU: packed, ternary, Elias and rans codes.

Encoding runs on a stream of its own, beside what the caller enqueues next; decoding runs on the caller's current
stream. With fixed widths nothing here waits for the GPU but ``CudaPath.check``. Checks of the frames run on the GPU as
well. Where one fails, the sum is NaN, and the error is raised by the first gradient that was compressed after that sum
was enqueued, when its own frames have arrived: by then the sum is long done.

Where lengths vary the host waits twice: for a frame's length, since Horovod must know it, and for the sum's verdict,
since no length tells an error frame. What the GPU refuses is then left to the CPU, which knows all codecs, and raises.

Gradients of a group are encoded together, and added up together when the first of them is asked for.
"""

from __future__ import annotations

import ctypes
import time
import weakref
from collections import deque
from typing import Any, NamedTuple

import torch

from hvd_qsgd import native, native_cuda, torch_streams
from hvd_qsgd.compressor import Compressor
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.steps import Slot, Ticket
from hvd_qsgd.torch_cpu import CpuPath
from hvd_qsgd.torch_cuda_encode import FIXED_LENGTH, Buffers, Encoder, memory, room, takes
from hvd_qsgd.torch_cuda_journeys import Group, Journey
from hvd_qsgd.torch_tensors import Form, allocate_frame, bytes_of, bytes_of_each, most_words

Tensor = torch.Tensor


class _Sums(NamedTuple):
    """Sums that were enqueued, and are not known to be right."""

    serial: int  # of the tickets before them, which are less
    done: Any  # event
    each: list[tuple[Buffers, str]]  # of what tensor and step


class CudaPath:
    """Encodes and decodes on GPUs, for one compressor. ``transport`` is a ``torch_transport.Transport``."""

    def __init__(self, core: Compressor, transport: Any, by_way_of_cpu: CpuPath) -> None:
        self._core = core
        self._transport = transport
        self._cpu = by_way_of_cpu
        self._encoder = Encoder()
        self._waiting: list[weakref.ref[Journey]] = []  # to set out
        self._enqueued: deque[_Sums] = deque()
        # Memory of the host that a kernel is still to write to must not be used again.
        weakref.finalize(self, _wait_for_all, self._enqueued).atexit = False

    def takes(self) -> bool:
        """Whether the kernels can do what the compressor's settings ask for."""
        options = self._core.options
        if not takes(self._core.quantization) or options.clip is not None:
            return False
        if options.error_feedback or options.measure_error:
            return False
        return native_cuda.available()

    def start(self, ticket: Ticket, token: Tensor, form: Form) -> Journey:
        """The gradient's way, which ``depart`` begins."""
        journey = Journey(ticket, token, form, self.arrive)
        self._waiting.append(weakref.ref(journey))
        return journey

    def depart(self) -> None:
        """Encode all gradients that were started, together, and start gathering the frames."""
        if not self._waiting:
            return
        group, self._waiting = self._waiting, []
        journeys = [journey for journey in (one() for one in group) if journey is not None]
        for device in dict.fromkeys(journey.form.gradient.device for journey in journeys):
            self._depart([journey for journey in journeys if journey.form.gradient.device == device], device)

    def reduced(self, journey: Journey, output: Tensor) -> bytes:
        """The entries of the token that came back as ``output``."""
        group = journey.group
        assert group is not None
        in_place = output is journey.token
        if in_place and group.size > 1 and not group.tokens_read:
            group.tokens_read = True
            self._read_tokens([journey, *group.others(journey)])
        return journey.reduced if in_place and journey.reduced is not None else bytes_of(output)

    def arrive(self, journey: Journey) -> None:
        """Wait for the frames of a gradient, and of all of its group whose tokens are known to be right."""
        if journey.gathering is None:
            return
        arriving = [one for one in journey.ready_together() if one.gathering is not None]
        for one, words in zip(arriving, self._transport.wait_for([one.gathering for one in arriving])):
            one.words, one.gathering = words, None
            if one.ticket.encoded:
                one.ticket.slot.buffers.frames.append(one.frame)

    def finish(self, ticket: Ticket, journey: Journey, factor: float, form: Form) -> Tensor:
        """The sum of the gathered frames, times ``factor``; NaN if ``check`` will find them wrong."""
        self.check(ticket.serial)
        if journey.result is None or journey.factor != factor:
            journey.factor, journey.result = factor, None
            summands = [one for one in journey.ready_together() if self._can_add_up(one)]
            try:
                self._add_up(summands)
            except Exception:  # what was not written must not be taken for a sum by those that come after
                for one in summands:
                    one.result = None
                raise
        result, words = journey.result, journey.words
        journey.result = journey.words = None
        assert words is not None
        return self._cpu.finish(ticket, words, factor, form) if result is None else result

    def check(self, before: int | None = None) -> None:
        """Wait for the sums that were enqueued before the ticket with this number, or for all.

        Raises:
            QSGDError: a frame of one of them was wrong, and that sum is NaN.
        """
        wrong: list[str] = []
        while self._enqueued and (before is None or self._enqueued[0].serial < before):
            sums = self._enqueued.popleft()
            sums.done.synchronize()
            wrong += [_explained(*one) for one in sums.each if one[0].verdict.status != native.OK]
        if wrong:
            raise QSGDError(wrong[0])

    def forget(self) -> None:
        """Wait for all sums, whose gradients are given up."""
        _wait_for_all(self._enqueued)

    def _depart(self, journeys: list[Journey], device: torch.device) -> None:
        group = Group(journeys)
        with torch_streams.GPU.encoding(device) as stream:
            encode = lambda slots: self._encoder.encode(slots, [one.form.gradient for one in journeys], stream)  # noqa: E731
            frames = self._core.encode_together(encode, [one.ticket for one in journeys], allocate_frame)
            for journey, frame in zip(journeys, frames):
                slot: Slot = journey.ticket.slot
                journey.group, journey.frame = group, frame
                journey.gathering = self._transport.allgather(frame, slot.operation, most_words(slot), device)

    def _read_tokens(self, journeys: list[Journey]) -> None:
        """Those that Horovod has reduced in place, as it does for an optimizer's groups, and as it did last time."""
        for journey, reduced in zip(journeys, bytes_of_each([journey.token for journey in journeys])):
            factor = self._core.known_factor(journey.ticket, reduced)
            if factor is not None:
                journey.reduced, journey.factor = reduced, factor

    def _can_add_up(self, journey: Journey) -> bool:
        """Whether the GPU may, as far as the host knows."""
        if journey.words is None or journey.result is not None or not journey.ticket.encoded:
            return False
        slot: Slot = journey.ticket.slot
        # Among frames of one length another one may be an error frame, or of a codec that only the CPU knows.
        return _varies(slot) or 8 * journey.words.numel() == slot.size * slot.history.frame_bytes

    def _add_up(self, journeys: list[Journey]) -> None:
        """Results for all of them, on the current stream."""
        if not journeys:
            return
        device = journeys[0].ticket.slot.buffers.device
        begin = time.perf_counter()
        for journey in journeys:
            assert journey.words is not None
            if journey.words.device != device:  # MPI's lie on the CPU
                journey.words = journey.words.to(device)
            journey.result = torch.empty(journey.form.shape, dtype=journey.form.dtype, device=device)
        fixed = [journey for journey in journeys if not _varies(journey.ticket.slot)]
        variable = [journey for journey in journeys if _varies(journey.ticket.slot)]
        with torch_streams.GPU.here(device) as stream:
            if len(fixed) == 1:
                _decode(fixed[0], fixed[0].ticket.slot.buffers.scratch, stream)
            elif fixed:
                _decode_many(fixed, device, stream)
            for journey in variable:
                slot: Slot = journey.ticket.slot
                _decode(
                    journey, memory(native_cuda.decode_scratch_variable(slot.spec.count, slot.size), device), stream
                )
        done = torch_streams.GPU.mark(device)
        if fixed:
            each = [(journey.ticket.slot.buffers, str(journey.ticket.slot)) for journey in fixed]
            self._enqueued.append(_Sums(self._core.steps.next_serial(), done, each))
        if variable:
            done.synchronize()
        for journey in variable:
            if journey.ticket.slot.buffers.verdict.status != native.OK:
                journey.result = None
        for journey in journeys:
            if journey.result is not None:
                self._core.decoded(journey.ticket.slot, 8 * journey.words.numel(), begin)  # type: ignore[union-attr]
                begin = time.perf_counter()


def _wait_for_all(enqueued: deque[_Sums]) -> None:
    while enqueued:
        enqueued.popleft().done.synchronize()


def _varies(slot: Slot) -> bool:
    return slot.quantization.codec not in FIXED_LENGTH


def _decode(journey: Journey, scratch: Tensor, stream: int) -> None:
    slot: Slot = journey.ticket.slot
    assert journey.words is not None
    assert journey.result is not None
    native_cuda.decode_sum(
        room(journey.words),
        slot.size,
        slot.expected,
        journey.factor,
        journey.result.data_ptr(),
        slot.buffers.memory.data_ptr(),
        room(scratch),
        stream,
    )


def _decode_many(journeys: list[Journey], device: torch.device, stream: int) -> None:
    table = (native_cuda.Summation * len(journeys))(*[_summation(journey) for journey in journeys])
    scratch = memory(native_cuda.decode_sum_many_scratch(table), device)
    native_cuda.decode_sum_many(table, room(scratch), stream)


def _summation(journey: Journey) -> native_cuda.Summation:
    slot: Slot = journey.ticket.slot
    assert journey.words is not None
    assert journey.result is not None
    address, size = room(journey.words)
    expected, verdict = ctypes.addressof(slot.expected), slot.buffers.memory.data_ptr()
    return native_cuda.Summation(address, size, expected, slot.size, journey.factor, journey.result.data_ptr(), verdict)


def _explained(buffers: Buffers, what: str) -> str:
    verdict = buffers.verdict
    return (
        f"{what} from rank {verdict.bad_frame} {native.status_text(verdict.status)}. A GPU finds that late, and has "
        "made the sum NaN on this rank: the weights may be spoilt, so go back to a checkpoint"
    )
