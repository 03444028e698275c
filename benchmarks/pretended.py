"""A GPU that is pretended: CPU tensors take the GPU's path, with the CUDA kernels as the emulation runs them, or empty.

What is enqueued is done at once, and streams do not exist.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hvd_qsgd import torch_streams

EMULATED = Path(__file__).parents[1] / "build/cuda-emulated/libhvd_qsgd_cuda.so"
EMPTY_VARIABLE = "HVD_QSGD_CUDA_EMULATION_EMPTY"  # if it is set, kernels do nothing


class Event:
    """What ``mark`` returns."""

    def synchronize(self) -> None:
        """All is done already."""


class PretendedGpu(torch_streams.Gpu):
    """Every tensor lies on it."""

    def holds(self, tensor: torch.Tensor) -> bool:
        return True

    def capturing(self) -> bool:
        return False

    @contextlib.contextmanager
    def encoding(self, device: torch.device) -> Iterator[int]:
        yield 0

    def lend(self, tensor: torch.Tensor) -> None:
        pass

    @contextlib.contextmanager
    def here(self, device: torch.device) -> Iterator[int]:
        yield 0

    @contextlib.contextmanager
    def arriving(self, device: torch.device) -> Iterator[None]:
        yield

    def arrived(self, everything: list[torch.Tensor]) -> None:
        pass

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def pinned(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.uint8)

    def mark(self, device: torch.device) -> Any:
        return Event()
