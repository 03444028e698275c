"""The path of a gradient by way of the CPU: for those that lie there, and for all that the GPU's kernels cannot do."""

from __future__ import annotations

from typing import Any

import torch

from hvd_qsgd.compressor import Compressor
from hvd_qsgd.residuals import Residuals
from hvd_qsgd.steps import Slot
from hvd_qsgd.torch_groups import Departure, Journey, arrive
from hvd_qsgd.torch_tensors import WIRE_DTYPES, allocate_frame, clipped, readable

Tensor = torch.Tensor


class CpuPath:
    """Encodes and decodes on the CPU, for one compressor. ``transport`` is a ``torch_transport.Transport``."""

    def __init__(self, core: Compressor, transport: Any, residuals: Residuals | None) -> None:
        self._core = core
        self._transport = transport
        self._residuals = residuals

    def depart(self, departure: Departure, journeys: list[Journey]) -> None:
        """Encode the gradients and start gathering the frames."""
        group = departure.group
        frames = list(map(self._encode, journeys))
        departure.gathering = self._transport.allgather(frames, group.operations, group.bounds, group.gpu)

    def finish(self, journey: Journey, factor: float) -> Tensor:
        """The sum of all ranks' frames, which it waits for, times ``factor``."""
        if journey.words is None:
            arrive([journey.departure], self._transport, self._core.stats)
        return self.add_up(journey, factor)

    def add_up(self, journey: Journey, factor: float) -> Tensor:
        """The sum of the frames, which are here, times ``factor``."""
        assert journey.words is not None
        words = _on_cpu(journey.words)
        journey.words = None
        result = self._memory(journey)
        self._core.decode(journey.ticket, words.data_ptr(), 8 * words.numel(), factor, result.data_ptr())
        return result if journey.gradient.is_cpu else result.to(journey.gradient.device)

    def _encode(self, journey: Journey) -> Tensor:
        core, ticket, slot = self._core, journey.ticket, journey.slot
        try:
            gradient = self._prepared(slot, journey.gradient)
        except Exception as error:  # told to all ranks, which would wait for this one's frame for ever
            return core.refuse(ticket, error, allocate_frame)
        frame = core.encode(ticket, gradient.data_ptr(), allocate_frame)
        if core.options.measure_error and ticket.encoded:
            self._measure(journey, frame, gradient)
        if self._residuals is not None and ticket.encoded:
            self._residuals.subtract(slot, frame.data_ptr())
        return frame

    def _prepared(self, slot: Slot, tensor: Tensor) -> Tensor:
        """What is to be encoded."""
        own = WIRE_DTYPES[tensor.dtype]
        gradient = _on_cpu(readable(tensor, own.carrier))
        if self._core.options.clip is not None:
            gradient = clipped(gradient, self._core.options.clip)
        if self._residuals is not None:
            gradient = self._residuals.add(slot, tensor.shape, gradient.data_ptr(), own.dtype)
        return gradient

    def _measure(self, journey: Journey, frame: Tensor, gradient: Tensor) -> None:
        decoded = torch.empty_like(gradient)
        self._core.decode_own(journey.ticket, frame.data_ptr(), decoded.data_ptr())
        exact = gradient.double()
        self._core.stats.squared_error += float((decoded.double() - exact).square().sum())
        self._core.stats.squared_norm += float(exact.square().sum())

    def _memory(self, journey: Journey) -> Tensor:
        """For the result, or for what becomes it."""
        gradient, shape, dtype = journey.gradient, journey.slot.shape, journey.wire.carrier
        if gradient.is_cpu and gradient.shape == shape:  # faster than from nothing
            return torch.empty_like(gradient, dtype=dtype, memory_format=torch.contiguous_format)
        return torch.empty(shape, dtype=dtype, device="cpu")


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_cpu else tensor.detach().cpu()  # which costs even where nothing is to be done
