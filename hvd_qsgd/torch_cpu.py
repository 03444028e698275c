"""The path of a gradient by way of the CPU: for those that lie there, and for all that the GPU's kernels cannot do."""

from __future__ import annotations

from typing import Any

import torch

from hvd_qsgd.compressor import Compressor
from hvd_qsgd.residuals import Residuals
from hvd_qsgd.steps import Slot, Ticket
from hvd_qsgd.torch_tensors import WIRE_DTYPES, Form, allocate_frame, bytes_of, clipped, most_words, readable

Tensor = torch.Tensor


class CpuPath:
    """Encodes and decodes on the CPU, for one compressor. ``transport`` is a ``torch_transport.Transport``."""

    def __init__(self, core: Compressor, transport: Any, residuals: Residuals | None) -> None:
        self._core = core
        self._transport = transport
        self._residuals = residuals

    def start(self, ticket: Ticket, token: Tensor, form: Form) -> Any:
        """Encode the gradient and start gathering the frames: what to wait for."""
        core, slot, tensor = self._core, ticket.slot, form.gradient
        try:
            gradient = self._prepared(slot, tensor)
        except Exception as error:  # told to all ranks, which would wait for this one's frame for ever
            frame = core.refuse(ticket, error, allocate_frame)
        else:
            frame = core.encode(ticket, gradient.data_ptr(), allocate_frame)
        device = tensor.device if tensor.is_cuda else None
        gathering = self._transport.allgather(frame, slot.operation, most_words(slot), device)
        if core.options.measure_error and ticket.encoded:
            self._measure(ticket, frame, gradient)
        if self._residuals is not None and ticket.encoded:
            self._residuals.subtract(slot, frame.data_ptr())
        return gathering

    def reduced(self, gathering: Any, output: Tensor) -> bytes:
        """The entries of the token that came back as ``output``."""
        return bytes_of(output)

    def finish(self, ticket: Ticket, words: Tensor, factor: float, form: Form) -> Tensor:
        """The sum of the gathered frames, times ``factor``."""
        words = _on_cpu(words)
        result = form.on_cpu()
        self._core.decode(ticket, words.data_ptr(), 8 * words.numel(), factor, result.data_ptr())
        return result if form.gradient.is_cpu else result.to(form.gradient.device)

    def _prepared(self, slot: Slot, tensor: Tensor) -> Tensor:
        """What is to be encoded."""
        own = WIRE_DTYPES[tensor.dtype]
        gradient = _on_cpu(readable(tensor, own.carrier))
        if self._core.options.clip is not None:
            gradient = clipped(gradient, self._core.options.clip)
        if self._residuals is not None:
            gradient = self._residuals.add(slot, tensor.shape, gradient.data_ptr(), own.dtype)
        return gradient

    def _measure(self, ticket: Ticket, frame: Tensor, gradient: Tensor) -> None:
        decoded = torch.empty_like(gradient)
        self._core.decode_own(ticket, frame.data_ptr(), decoded.data_ptr())
        exact = gradient.double()
        self._core.stats.squared_error += float((decoded.double() - exact).square().sum())
        self._core.stats.squared_norm += float(exact.square().sum())


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_cpu else tensor.detach().cpu()  # which costs even where nothing is to be done
