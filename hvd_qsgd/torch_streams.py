"""Streams, events and pinned memory of PyTorch's CUDA devices: all of ``torch.cuda`` that is used here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

Tensor = torch.Tensor
# With it, Horovod says that an operation has ended when that is only put on the device's default stream.
ASYNC_COMPLETION_VARIABLE = "HOROVOD_ENABLE_ASYNC_COMPLETION"


class Gpu:
    """What the device path needs of the GPUs. Streams are passed to the kernels by their addresses."""

    def __init__(self) -> None:
        self._encoding: dict[torch.device, Any] = {}  # the stream of each device for encoding
        self._reading: dict[torch.device, Any] = {}  # for tokens

    def holds(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` lies on a GPU."""
        return tensor.is_cuda

    def capturing(self) -> bool:
        """Whether a CUDA graph is being captured."""
        return bool(torch.cuda.is_current_stream_capturing())

    @contextlib.contextmanager
    def encoding(self, device: torch.device) -> Iterator[int]:
        """Work goes to a stream beside the current one, whose work so far it waits for: gives its address.

        Of high priority, since other ranks wait for what is made there. Horovod records on it, too, when the frame of
        an operation that is started here is ready.
        """
        side = _stream_of(device, self._encoding)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            yield side.cuda_stream

    def lend(self, tensor: Tensor) -> None:
        """Keep the memory of ``tensor``, when it is freed, until what was put on the stream for encoding is done."""
        tensor.record_stream(self._encoding[tensor.device])

    @contextlib.contextmanager
    def here(self, device: torch.device) -> Iterator[int]:
        """Work goes to the caller's current stream: gives its address."""
        with torch.cuda.device(device):
            yield torch.cuda.current_stream(device).cuda_stream

    @contextlib.contextmanager
    def arriving(self, device: torch.device) -> Iterator[None]:
        """Wait for Horovod's operations inside: on the default stream, which its threads allocate and order by."""
        with torch.cuda.stream(torch.cuda.default_stream(device)):
            yield

    def arrived(self, everything: list[Tensor]) -> None:
        """The current stream is going to read all of these, which came by Horovod to one device."""
        device = everything[0].device
        current, default = torch.cuda.current_stream(device), torch.cuda.default_stream(device)
        if current != default:
            current.wait_stream(default)
            for words in everything:
                words.record_stream(current)

    def read(self, tensor: Tensor) -> Tensor:
        """A copy on the CPU of what Horovod has reduced, which does not wait for the current stream."""
        device = tensor.device
        stream = _stream_of(device, self._reading)
        if os.environ.get(ASYNC_COMPLETION_VARIABLE, "0") != "0":
            stream.wait_stream(torch.cuda.default_stream(device))
        with torch.cuda.stream(stream):
            return tensor.cpu()

    def pinned(self, size: int) -> Tensor:
        """``size`` bytes of the CPU's memory, all zero, that kernels can write to."""
        return torch.zeros(size, dtype=torch.uint8, pin_memory=True)

    def mark(self, device: torch.device) -> Any:
        """An event: ``synchronize()`` waits for what is on the current stream now."""
        return torch.cuda.current_stream(device).record_event()


def _stream_of(device: torch.device, streams: dict[torch.device, Any]) -> Any:
    if device not in streams:
        streams[device] = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
    return streams[device]


GPU = Gpu()
