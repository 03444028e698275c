"""The path of a gradient that stays on its GPU: packed, ternary and rans codes.

Encoding runs on a stream of its own, beside what the caller enqueues next; decoding runs on the caller's current
stream. With fixed widths nothing here waits for the GPU but ``CudaPath.check``. Checks of the frames run on the GPU as
well. Where one fails, the sum is NaN, and the error is raised by the first gradient that was compressed after that sum
was enqueued, when its own frames have arrived: by then the sum is long done.

Where lengths vary the host waits twice: for a frame's length, since Horovod must know it, and for the sum's verdict,
since no length tells an error frame. What the GPU refuses is then left to the CPU, which knows all codecs, and raises.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections import deque
from typing import Any, NamedTuple

import torch

from hvd_qsgd import native, native_cuda, torch_streams
from hvd_qsgd.compressor import Compressor
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.steps import Slot, Ticket
from hvd_qsgd.torch_cpu import CpuPath
from hvd_qsgd.torch_cuda_encode import FIXED_LENGTH, Buffers, Encoder, memory, room, takes
from hvd_qsgd.torch_tensors import Form, allocate_frame, most_words

Tensor = torch.Tensor


class _Sum(NamedTuple):
    """A sum that was enqueued, and is not known to be right."""

    serial: int  # of the tickets before it, which are less
    done: Any  # event
    buffers: Buffers
    what: str  # tensor and step


class _Gathering(NamedTuple):
    """Frames on their way."""

    words: Any  # what to wait for
    frame: Tensor  # this rank's
    buffers: Buffers | None  # that it is of

    def wait(self) -> Tensor:
        words: Tensor = self.words.wait()
        if self.buffers is not None:
            self.buffers.frames.append(self.frame)
        return words


class CudaPath:
    """Encodes and decodes on GPUs, for one compressor. ``transport`` is a ``torch_transport.Transport``."""

    def __init__(self, core: Compressor, transport: Any, by_way_of_cpu: CpuPath) -> None:
        self._core = core
        self._transport = transport
        self._cpu = by_way_of_cpu
        self._encoder = Encoder()
        self._enqueued: deque[_Sum] = deque()

    def takes(self) -> bool:
        """Whether the kernels can do what the compressor's settings ask for."""
        options = self._core.options
        if not takes(self._core.quantization) or options.clip is not None:
            return False
        if options.error_feedback or options.measure_error:
            return False
        return _have_kernels()

    def start(self, ticket: Ticket, tensor: Tensor) -> _Gathering:
        """Encode the gradient and start gathering the frames: what to wait for."""
        slot: Slot = ticket.slot
        with torch_streams.GPU.encoding(tensor.device) as stream:
            encode = lambda slot: self._encoder.encode(slot, tensor, stream)  # noqa: E731
            frame = self._core.encode_by(encode, ticket, allocate_frame)
            gathering = self._transport.allgather(frame, slot.operation, most_words(slot), tensor.device)
        return _Gathering(gathering, frame, slot.buffers if ticket.encoded else None)

    def finish(self, ticket: Ticket, words: Tensor, factor: float, form: Form) -> Tensor:
        """The sum of the gathered frames, times ``factor``; NaN if ``check`` will find them wrong."""
        self.check(ticket.serial)
        slot: Slot = ticket.slot
        size = 8 * words.numel()
        fixed = slot.quantization.codec in FIXED_LENGTH
        # Among frames of one length another one may be an error frame, or of a codec that only the CPU knows.
        if not ticket.encoded or (fixed and size != slot.size * slot.history.frame_bytes):
            return self._cpu.finish(ticket, words, factor, form)
        device = slot.buffers.device
        words = words.to(device)
        result = torch.empty(form.shape, dtype=form.dtype, device=device)
        begin = time.perf_counter()
        with torch_streams.GPU.here(device) as stream:
            self._decode(slot, words, factor, result, stream)
        done = torch_streams.GPU.mark(device)
        if fixed:
            self._enqueued.append(_Sum(self._core.steps.next_serial(), done, slot.buffers, str(slot)))
        else:
            done.synchronize()
            if slot.buffers.verdict.status != native.OK:
                return self._cpu.finish(ticket, words, factor, form)
        self._core.decoded(slot, size, begin)
        return result

    def check(self, before: int | None = None) -> None:
        """Wait for the sums that were enqueued before the ticket with this number, or for all.

        Raises:
            QSGDError: a frame of one of them was wrong, and that sum is NaN.
        """
        wrong: list[str] = []
        while self._enqueued and (before is None or self._enqueued[0].serial < before):
            one = self._enqueued.popleft()
            one.done.synchronize()
            if one.buffers.verdict.status != native.OK:
                wrong.append(_explained(one))
        if wrong:
            raise QSGDError(wrong[0])

    def forget(self) -> None:
        """Wait for all sums, whose gradients are given up."""
        while self._enqueued:
            self._enqueued.popleft().done.synchronize()

    def _decode(self, slot: Slot, words: Tensor, factor: float, result: Tensor, stream: int) -> None:
        scratch = slot.buffers.scratch
        if slot.quantization.codec not in FIXED_LENGTH:
            scratch = memory(native_cuda.decode_scratch_variable(slot.spec.count, slot.size), words.device)
        native_cuda.decode_sum(
            room(words),
            slot.size,
            slot.expected,
            factor,
            result.data_ptr(),
            slot.buffers.memory.data_ptr(),
            room(scratch),
            stream,
        )


def _explained(wrong: _Sum) -> str:
    verdict = wrong.buffers.verdict
    return (
        f"{wrong.what} from rank {verdict.bad_frame} {native.status_text(verdict.status)}. A GPU finds that "
        "late, and has made the sum NaN on this rank: the weights may be spoilt, so go back to a checkpoint"
    )


@functools.cache
def _have_kernels() -> bool:
    """Whether the CUDA kernels can be loaded; else says so, once."""
    try:
        native_cuda.library()
    except QSGDError as error:
        warnings.warn(f"gradients are copied to the CPU to be compressed, which is slow: {error}", stacklevel=2)
        return False
    return True
