"""Frames that are made on a GPU, on the stream for encoding, in memory that is used again."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from hvd_qsgd import native, native_cuda, torch_streams
from hvd_qsgd.steps import Slot
from hvd_qsgd.torch_groups import Group, Journey
from hvd_qsgd.torch_tensors import WIRE_DTYPES, readable

Tensor = torch.Tensor
# Codecs of which there are kernels: with the first ones the host knows how long frames are.
FIXED_LENGTH, VARIABLE_LENGTH = ("packed", "ternary"), ("elias-dense", "elias-sparse", "rans")


class Verdicts:
    """Memory of the host in which the sums of a group's tensors leave how they ended."""

    def __init__(self, count: int) -> None:
        self._memory = torch_streams.GPU.pinned(count * ctypes.sizeof(native_cuda.Verdict))
        self.address = self._memory.data_ptr()
        self._each = (native_cuda.Verdict * count).from_address(self.address)

    def of(self, number: int) -> native_cuda.Verdict:
        """As the tensor's last sum ended."""
        verdict: native_cuda.Verdict = self._each[number]
        return verdict

    def address_of(self, number: int) -> int:
        """Where the tensor's is."""
        return self.address + number * ctypes.sizeof(native_cuda.Verdict)


class Plan:
    """How a group's gradients are encoded and added up, as long as they are quantized alike, and memory for it."""

    def __init__(self, group: Group, verdicts: Verdicts | None) -> None:
        self.slots, self.device = group.slots, group.device
        self._quantizations = [slot.quantization for slot in self.slots]
        self.possible = all(takes(quantization) for quantization in self._quantizations)
        self.fixed = [k for k, slot in enumerate(self.slots) if not varies(slot)]
        self.variable = [k for k, slot in enumerate(self.slots) if varies(slot)]
        self.specs = [ctypes.addressof(slot.spec) for slot in self.slots]
        self.free: list[list[Tensor]] = []  # frames of fixed length that nobody reads any more
        self.verdicts = verdicts
        self.decode_scratch = 0  # bytes for a sum of fixed length, once that is known

    def is_valid(self) -> bool:
        """Whether they are quantized as they were."""
        return all(was is slot.quantization for was, slot in zip(self._quantizations, self.slots))

    def prepare(self) -> None:
        """Get what does not change from step to step."""
        self.decode_scratch = self.decode_scratch or native_cuda.decode_scratch(self.slots[0].size)
        self.verdicts = self.verdicts or Verdicts(len(self.slots))

    def frames(self) -> list[Tensor]:
        """Memory for those of fixed length."""
        return self.free.pop() if self.free else [memory(self.slots[k].most_bytes, self.device) for k in self.fixed]


class Encoder:
    """Makes the frames of one compressor."""

    def __init__(self) -> None:
        self._scratch: dict[torch.device, Tensor] = {}

    def encode(self, plan: Plan, journeys: list[Journey], stream: int) -> list[Tensor]:
        """A frame of each; their lengths are told to the slots' histories."""
        plan.prepare()
        gradients = [_lent(journey.gradient) for journey in journeys]
        addresses = [gradient.data_ptr() for gradient in gradients]
        fixed = self._encode_fixed(plan, addresses, stream) if plan.fixed else []
        variable = self._encode_variable(plan, addresses, stream) if plan.variable else []
        if not variable:
            return fixed
        frames = dict(zip([*plan.fixed, *plan.variable], [*fixed, *variable]))
        return [frames[k] for k in range(len(journeys))]

    def _encode_fixed(self, plan: Plan, gradients: list[int], stream: int) -> list[Tensor]:
        slots, frames = [plan.slots[k] for k in plan.fixed], plan.frames()
        if len(slots) == 1:
            (slot,), (frame,) = slots, frames
            scratch = self._scratch_of(native_cuda.encode_scratch(slot.spec), plan.device)
            gradient = gradients[plan.fixed[0]]
            native_cuda.encode(slot.spec, gradient, frame.data_ptr(), slot.most_bytes, scratch, stream)
        else:
            table = native_cuda.encodings(
                (plan.specs[k], gradients[k], frame.data_ptr(), plan.slots[k].most_bytes)
                for k, frame in zip(plan.fixed, frames)
            )
            scratch = self._scratch_of(native_cuda.encode_many_scratch(table), plan.device)
            native_cuda.encode_many(table, scratch, stream)
        for slot in slots:
            slot.history.frame_bytes = slot.most_bytes
        return frames

    def _encode_variable(self, plan: Plan, gradients: list[int], stream: int) -> list[Tensor]:
        """As ``native.encode_next``; the host waits for the lengths, once for all."""
        slots, device = [plan.slots[k] for k in plan.variable], plan.device
        memories = [memory(native_cuda.encode_scratch(slot.spec), device) for slot in slots]
        work = [room(scratch) for scratch in memories]
        lengths = torch.empty(len(slots), dtype=torch.int64, device=device)
        for number, (k, slot, scratch) in enumerate(zip(plan.variable, slots, work)):
            native_cuda.encode_begin(slot.spec, gradients[k], lengths.data_ptr() + 8 * number, scratch, stream)
        sizes = [
            min(native.padded_bytes(length, slot.history.frame_bytes), slot.most_bytes // 16 * 16)
            for length, slot in zip(lengths.tolist(), slots)
        ]
        frames = [memory(size, device) for size in sizes]
        for slot, frame, size, scratch in zip(slots, frames, sizes, work):
            native_cuda.encode_end(slot.spec, frame.data_ptr(), size, scratch, stream)
        for slot, size in zip(slots, sizes):
            slot.history = native.History(frame_bytes=size, codec=slot.spec.codec)
        return frames

    def _scratch_of(self, size: int, device: torch.device) -> tuple[int, int]:
        scratch = self._scratch.get(device)
        if scratch is None or 8 * scratch.numel() < size:
            scratch = self._scratch[device] = memory(size, device)
        return room(scratch)


def _lent(tensor: Tensor) -> Tensor:
    """The gradient as the kernels read it, whose memory is kept until they have."""
    gradient = readable(tensor, WIRE_DTYPES[tensor.dtype].carrier)
    torch_streams.GPU.lend(tensor)
    return gradient


def memory(size: int, device: torch.device) -> Tensor:
    """Memory of the device for so many bytes."""
    return torch.empty(-(-size // 8), dtype=torch.int64, device=device)


def room(words: Tensor) -> tuple[int, int]:
    """Address and bytes of what ``memory`` returned."""
    return words.data_ptr(), 8 * words.numel()


def varies(slot: Slot) -> bool:
    """Whether the lengths of the tensor's frames do."""
    return slot.quantization.codec not in FIXED_LENGTH


def takes(quantization: Any) -> bool:
    """Whether the kernels can make, and add up, such frames as they are asked for."""
    decided = quantization.variance is None and quantization.dither == "nonsubtractive"
    return decided and quantization.codec in (*FIXED_LENGTH, *VARIABLE_LENGTH)
