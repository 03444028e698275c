"""Frames that are made on a GPU, on the stream for encoding, in memory that is used again."""

from __future__ import annotations

from typing import Any

import torch

from hvd_qsgd import native, native_cuda, torch_streams
from hvd_qsgd.steps import Slot
from hvd_qsgd.torch_tensors import WIRE_DTYPES, readable

Tensor = torch.Tensor
# Codecs of which there are kernels: with the first ones the host knows how long frames are.
FIXED_LENGTH, VARIABLE_LENGTH = ("packed", "ternary"), ("rans",)


class Buffers:
    """A tensor's memory that serves it in every step."""

    def __init__(self, device: torch.device, ranks: int) -> None:
        self.device = device
        self.frames: list[Tensor] = []  # that nobody reads any more
        self.scratch = memory(native_cuda.decode_scratch(ranks), device)  # for sums of fixed widths
        self.memory = torch_streams.GPU.pinned(8)
        self.verdict = native_cuda.Verdict.from_address(self.memory.data_ptr())

    def frame(self, size: int) -> Tensor:
        """Memory for a frame of ``size`` bytes."""
        while self.frames:
            frame = self.frames.pop()
            if 8 * frame.numel() == size:
                return frame
        return memory(size, self.device)


class Encoder:
    """Makes the frames of one compressor."""

    def __init__(self) -> None:
        self._scratch: dict[torch.device, Tensor] = {}

    def encode(self, slot: Slot, tensor: Tensor, stream: int) -> Tensor:
        """The frame of ``tensor``; its length is told to the slot's history."""
        gradient = readable(tensor, WIRE_DTYPES[tensor.dtype].carrier)
        torch_streams.GPU.lend(tensor)
        if slot.buffers is None or slot.buffers.device != tensor.device:
            slot.buffers = Buffers(tensor.device, slot.size)
        scratch = self._scratch_for(slot, tensor.device)
        if slot.quantization.codec in VARIABLE_LENGTH:
            return self._encode_in_two_steps(slot, gradient, scratch, stream)
        frame: Tensor = slot.buffers.frame(slot.most_bytes)
        native_cuda.encode(slot.spec, gradient.data_ptr(), frame.data_ptr(), slot.most_bytes, scratch, stream)
        slot.history.frame_bytes = slot.most_bytes
        return frame

    def _encode_in_two_steps(self, slot: Slot, gradient: Tensor, scratch: tuple[int, int], stream: int) -> Tensor:
        """As ``native.encode_next``; the host waits for the length."""
        length = torch.empty(1, dtype=torch.int64, device=gradient.device)
        native_cuda.encode_begin(slot.spec, gradient.data_ptr(), length.data_ptr(), scratch, stream)
        padded = native.padded_bytes(int(length.item()), slot.history.frame_bytes)
        size = min(padded, slot.most_bytes // 16 * 16)
        frame: Tensor = slot.buffers.frame(size)
        native_cuda.encode_end(slot.spec, frame.data_ptr(), size, scratch, stream)
        slot.history = native.History(frame_bytes=size, codec=slot.spec.codec)
        return frame

    def _scratch_for(self, slot: Slot, device: torch.device) -> tuple[int, int]:
        size = native_cuda.encode_scratch(slot.spec)
        scratch = self._scratch.get(device)
        if scratch is None or 8 * scratch.numel() < size:
            scratch = self._scratch[device] = memory(size, device)
        return room(scratch)


def memory(size: int, device: torch.device) -> Tensor:
    """Memory of the device for so many bytes."""
    return torch.empty(-(-size // 8), dtype=torch.int64, device=device)


def room(words: Tensor) -> tuple[int, int]:
    """Address and bytes of what ``memory`` returned."""
    return words.data_ptr(), 8 * words.numel()


def takes(quantization: Any) -> bool:
    """Whether the kernels can make, and add up, such frames as they are asked for."""
    schedule = quantization.schedule
    decided = quantization.variance is None and not (schedule is not None and schedule.needs_frames)
    return (
        decided and quantization.codec in (*FIXED_LENGTH, *VARIABLE_LENGTH) and quantization.dither == "nonsubtractive"
    )
