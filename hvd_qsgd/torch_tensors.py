"""Tensors as the kernels and Horovod take them: dtypes, layouts, frames, tokens."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch

from hvd_qsgd import native, torch_streams
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.steps import Slot

Tensor = torch.Tensor
CPU = torch.device("cpu")


class Wire(NamedTuple):
    """What a gradient is encoded as."""

    original: torch.dtype
    carrier: torch.dtype
    dtype: str


# float64 travels as float32.
WIRE_DTYPES = {
    wire.original: wire
    for wire in (
        Wire(torch.float32, torch.float32, "float32"),
        Wire(torch.float16, torch.float16, "float16"),
        Wire(torch.bfloat16, torch.bfloat16, "bfloat16"),
        Wire(torch.float64, torch.float32, "float32"),
    )
}
# With error feedback float32 travels, whatever comes.
FEEDBACK_WIRE = {dtype: Wire(dtype, torch.float32, "float32") for dtype in WIRE_DTYPES}
# A shape that no gradient has, so that ranks of which only one compresses are told by Horovod.
TOKEN_SHAPE = (native.TOKEN_LENGTH, 1, 1, 1, 1, 1, 1)
TOKEN_BYTES = 4 * native.TOKEN_LENGTH
# No frame of n elements is longer than this many bytes: a scale and a code for each element.
BYTES_PER_ELEMENT, BYTES_PER_FRAME = 9, 4096
_WORDS = torch.empty(0, dtype=torch.int64, device="cpu")  # more like these take less time than from nothing


def readable(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` where the kernels of its device can read it, which may be itself."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise QSGDError("QSGD cannot be differentiated: reduce tensor.detach(), or call it under torch.no_grad()")
    if not (tensor.is_cpu or tensor.is_cuda):
        raise QSGDError(
            f"hvd_qsgd compresses gradients on the CPU and on CUDA GPUs, not those on {tensor.device}: move the model "
            "to one of them"
        )
    if tensor.dtype is dtype and tensor.is_contiguous():
        return tensor
    return tensor.detach().to(dtype).contiguous()


def clipped(gradient: Tensor, deviations: float) -> Tensor:
    """A copy with values limited to so many standard deviations; equal ones, which deviate by nothing, stay."""
    mean = gradient.sum(dtype=torch.float64) / gradient.numel()
    square = torch.linalg.vector_norm(gradient, dtype=torch.float64).square() / gradient.numel()
    limit = deviations * float((square - mean.square()).clamp(min=0).sqrt())
    return gradient if limit == 0 else gradient.clamp(-limit, limit)


def allocate_frame(size: int) -> tuple[Tensor, int]:
    """Memory of the CPU for a frame of ``size`` bytes, and its address."""
    frame = _WORDS.new_empty(size // 8)
    return frame, frame.data_ptr()


def most_words(slot: Slot) -> int:
    """No rank's frame of this tensor is longer, whatever its settings."""
    return (BYTES_PER_ELEMENT * slot.count + BYTES_PER_FRAME) // 8


def saved_residual(name: str, saved: Any) -> Tensor:
    """A copy of a saved residual."""
    if not isinstance(saved, Tensor) or saved.dtype is not torch.float32:
        raise QSGDError(f"the residual of tensor {name!r} is no float32 tensor: pass what state_dict() returned")
    return saved.detach().to("cpu", copy=True).contiguous()


def bytes_of(tokens: Tensor) -> bytes:
    """The entries of a token, or of several that lie side by side, reduced or not."""
    if torch_streams.GPU.holds(tokens):
        tokens = torch_streams.GPU.read(tokens)
    tokens = tokens.contiguous()
    return ctypes.string_at(tokens.data_ptr(), 4 * tokens.numel())
