"""Frames that are made on a GPU, on the stream for encoding, in memory that is used again."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from hvd_qsgd import native, native_cuda, torch_streams
from hvd_qsgd.steps import Slot
from hvd_qsgd.torch_tensors import WIRE_DTYPES, readable

Tensor = torch.Tensor
# Codecs of which there are kernels: with the first ones the host knows how long frames are.
FIXED_LENGTH, VARIABLE_LENGTH = ("packed", "ternary"), ("elias-dense", "elias-sparse", "rans")


_Pair = tuple[Slot, Tensor]  # a tensor's slot, and its gradient as the kernels read it


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

    def encode(self, slots: list[Slot], tensors: list[Tensor], stream: int) -> list[Tensor]:
        """The frames of tensors of one device; their lengths are told to the slots' histories."""
        pairs = [self._prepare(slot, tensor) for slot, tensor in zip(slots, tensors)]
        frames: dict[int, Tensor] = {}
        for codecs, encode in (
            (FIXED_LENGTH, self._encode_fixed if len(pairs) == 1 else self._encode_many),
            (VARIABLE_LENGTH, self._encode_variable),
        ):
            numbers = [k for k, slot in enumerate(slots) if slot.quantization.codec in codecs]
            if numbers:
                frames.update(zip(numbers, encode([pairs[k] for k in numbers], stream)))
        return [frames[k] for k in range(len(slots))]

    def _prepare(self, slot: Slot, tensor: Tensor) -> _Pair:
        gradient = readable(tensor, WIRE_DTYPES[tensor.dtype].carrier)
        torch_streams.GPU.lend(tensor)
        if slot.buffers is None or slot.buffers.device != tensor.device:
            slot.buffers = Buffers(tensor.device, slot.size)
        return slot, gradient

    def _encode_fixed(self, pairs: list[_Pair], stream: int) -> list[Tensor]:
        ((slot, gradient),) = pairs
        frame: Tensor = slot.buffers.frame(slot.most_bytes)
        scratch = self._scratch_of(native_cuda.encode_scratch(slot.spec), gradient.device)
        native_cuda.encode(slot.spec, gradient.data_ptr(), frame.data_ptr(), slot.most_bytes, scratch, stream)
        slot.history.frame_bytes = slot.most_bytes
        return [frame]

    def _encode_many(self, pairs: list[_Pair], stream: int) -> list[Tensor]:
        frames: list[Tensor] = [slot.buffers.frame(slot.most_bytes) for slot, _ in pairs]
        table = (native_cuda.Encoding * len(pairs))(
            *[
                native_cuda.Encoding(
                    ctypes.addressof(slot.spec), gradient.data_ptr(), frame.data_ptr(), slot.most_bytes
                )
                for (slot, gradient), frame in zip(pairs, frames)
            ]
        )
        scratch = self._scratch_of(native_cuda.encode_many_scratch(table), frames[0].device)
        native_cuda.encode_many(table, scratch, stream)
        for slot, _ in pairs:
            slot.history.frame_bytes = slot.most_bytes
        return frames

    def _encode_variable(self, pairs: list[_Pair], stream: int) -> list[Tensor]:
        """As ``native.encode_next``; the host waits for the lengths, once for all."""
        device = pairs[0][1].device
        memories = [memory(native_cuda.encode_scratch(slot.spec), device) for slot, _ in pairs]
        work = [room(scratch) for scratch in memories]
        lengths = torch.empty(len(pairs), dtype=torch.int64, device=device)
        for k, ((slot, gradient), scratch) in enumerate(zip(pairs, work)):
            native_cuda.encode_begin(slot.spec, gradient.data_ptr(), lengths.data_ptr() + 8 * k, scratch, stream)
        sizes = [
            min(native.padded_bytes(length, slot.history.frame_bytes), slot.most_bytes // 16 * 16)
            for length, (slot, _) in zip(lengths.tolist(), pairs)
        ]
        frames: list[Tensor] = [slot.buffers.frame(size) for (slot, _), size in zip(pairs, sizes)]
        for (slot, _), frame, size, scratch in zip(pairs, frames, sizes, work):
            native_cuda.encode_end(slot.spec, frame.data_ptr(), size, scratch, stream)
        for (slot, _), size in zip(pairs, sizes):
            slot.history = native.History(frame_bytes=size, codec=slot.spec.codec)
        return frames

    def _scratch_of(self, size: int, device: torch.device) -> tuple[int, int]:
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
