"""The path of a gradient that stays on its GPU: packed and ternary codes.

Nothing here waits for the GPU but ``CudaPath.check``. Encoding runs on a stream of its own, beside what the caller
enqueues next; decoding runs on the caller's current stream. Checks of the frames run on the GPU as well. Where one
fails, the sum is NaN, and the error is raised by the first gradient that was compressed after that sum was enqueued,
when its own frames have arrived: by then the sum is long done.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, NamedTuple

import torch

from hvd_qsgd import native, native_cuda, torch_streams
from hvd_qsgd.compressor import Compressor
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.steps import Slot, Ticket
from hvd_qsgd.torch_cpu import CpuPath
from hvd_qsgd.torch_tensors import WIRE_DTYPES, Form, allocate_frame, most_words, readable

Tensor = torch.Tensor
CODECS = ("packed", "ternary")


class _Buffers:
    """A tensor's memory that serves it in every step."""

    def __init__(self, device: torch.device, ranks: int) -> None:
        self.device = device
        self.frames: list[Tensor] = []  # that nobody reads any more
        self.scratch = _words(native_cuda.decode_scratch(ranks), device)
        self.memory = torch_streams.GPU.pinned(8)
        self.verdict = native_cuda.Verdict.from_address(self.memory.data_ptr())

    def frame(self, size: int) -> Tensor:
        """Memory for a frame of ``size`` bytes."""
        while self.frames:
            frame = self.frames.pop()
            if 8 * frame.numel() == size:
                return frame
        return _words(size, self.device)


class _Sum(NamedTuple):
    """A sum that was enqueued, and is not known to be right."""

    serial: int  # of the tickets before it, which are less
    done: Any  # event
    buffers: _Buffers
    what: str  # tensor and step


class _Gathering(NamedTuple):
    """Frames on their way."""

    words: Any  # what to wait for
    frame: Tensor  # this rank's
    buffers: _Buffers | None  # that it is of

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
        self._scratch: dict[torch.device, Tensor] = {}  # for encoding
        self._enqueued: deque[_Sum] = deque()

    def takes(self) -> bool:
        """Whether the kernels can do what the compressor's settings ask for."""
        quantization, options = self._core.quantization, self._core.options
        kernels_can = quantization.codec in CODECS and quantization.fixed_length
        plain = quantization.dither == "nonsubtractive" and options.clip is None
        if not kernels_can or not plain or options.error_feedback or options.measure_error:
            return False
        return native_cuda.available()

    def start(self, ticket: Ticket, tensor: Tensor) -> _Gathering:
        """Encode the gradient and start gathering the frames: what to wait for."""
        slot: Slot = ticket.slot
        with torch_streams.GPU.encoding(tensor.device) as stream:
            frame = self._core.encode_by(lambda slot: self._encode(slot, tensor, stream), ticket, allocate_frame)
            gathering = self._transport.allgather(frame, slot.operation, most_words(slot), tensor.device)
        return _Gathering(gathering, frame, slot.buffers if ticket.encoded else None)

    def finish(self, ticket: Ticket, words: Tensor, factor: float, form: Form) -> Tensor:
        """The sum of the gathered frames, times ``factor``; NaN if ``check`` will find them wrong."""
        self.check(ticket.serial)
        slot: Slot = ticket.slot
        size = 8 * words.numel()
        # A frame of another length may be an error frame, or of a codec that only the CPU knows.
        if not ticket.encoded or size != slot.size * slot.history.frame_bytes:
            return self._cpu.finish(ticket, words, factor, form)
        device = slot.buffers.device
        words = words.to(device)
        result = torch.empty(form.shape, dtype=form.dtype, device=device)
        begin = time.perf_counter()
        with torch_streams.GPU.here(device) as stream:
            self._decode(slot, words, factor, result, stream)
        self._core.decoded(slot, size, begin)
        done = torch_streams.GPU.mark(device)
        self._enqueued.append(_Sum(self._core.steps.next_serial(), done, slot.buffers, str(slot)))
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

    def _encode(self, slot: Slot, tensor: Tensor, stream: int) -> Tensor:
        gradient = readable(tensor, WIRE_DTYPES[tensor.dtype].carrier)
        torch_streams.GPU.lend(tensor)
        if slot.buffers is None or slot.buffers.device != tensor.device:
            slot.buffers = _Buffers(tensor.device, slot.size)
        frame: Tensor = slot.buffers.frame(slot.most_bytes)
        scratch = self._encode_scratch(slot, tensor.device)
        native_cuda.encode(slot.spec, gradient.data_ptr(), frame.data_ptr(), slot.most_bytes, scratch, stream)
        slot.history.frame_bytes = slot.most_bytes
        return frame

    def _encode_scratch(self, slot: Slot, device: torch.device) -> tuple[int, int]:
        size = native_cuda.encode_scratch(slot.spec)
        scratch = self._scratch.get(device)
        if scratch is None or 8 * scratch.numel() < size:
            scratch = self._scratch[device] = _words(size, device)
        return scratch.data_ptr(), 8 * scratch.numel()

    def _decode(self, slot: Slot, words: Tensor, factor: float, result: Tensor, stream: int) -> None:
        buffers = slot.buffers
        native_cuda.decode_sum(
            (words.data_ptr(), 8 * words.numel()),
            slot.size,
            slot.expected,
            factor,
            result.data_ptr(),
            buffers.memory.data_ptr(),
            (buffers.scratch.data_ptr(), 8 * buffers.scratch.numel()),
            stream,
        )


def _words(size: int, device: torch.device) -> Tensor:
    return torch.empty(-(-size // 8), dtype=torch.int64, device=device)


def _explained(wrong: _Sum) -> str:
    verdict = wrong.buffers.verdict
    return (
        f"{wrong.what} from rank {verdict.bad_frame} {native.status_text(verdict.status)}. A GPU finds that "
        "late, and has made the sum NaN on this rank: the weights may be spoilt, so go back to a checkpoint"
    )
