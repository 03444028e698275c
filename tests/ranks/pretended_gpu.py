"""A GPU that is pretended: CPU tensors take the GPU's path, with the CUDA kernels as the emulation runs them.

The one seam is `torch_streams.GPU`, behind which is all of `torch.cuda` that the path uses. What is enqueued here is
done at once; that nothing waits, and streams, can only be tested on a GPU (`tests/test_gpu_torch.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hvd_qsgd import native_cuda, torch_streams

EMULATED = Path(__file__).parents[2] / "build/cuda-emulated/libhvd_qsgd_cuda.so"


class Event:
    """What ``mark`` returns: counts who waits for it."""

    waits = 0

    def synchronize(self) -> None:
        Event.waits += 1


class PretendedGpu(torch_streams.Gpu):
    """Every tensor lies on it."""

    def __init__(self) -> None:
        super().__init__()
        self.lent: list[torch.Tensor] = []
        self.is_capturing = False
        self.arrivals = 0

    def holds(self, tensor: torch.Tensor) -> bool:
        return True

    def capturing(self) -> bool:
        return self.is_capturing

    @contextlib.contextmanager
    def encoding(self, device: torch.device) -> Iterator[int]:
        yield 0

    def lend(self, tensor: torch.Tensor) -> None:
        self.lent.append(tensor)

    @contextlib.contextmanager
    def here(self, device: torch.device) -> Iterator[int]:
        yield 0

    @contextlib.contextmanager
    def arriving(self, device: torch.device) -> Iterator[None]:
        yield

    def arrived(self, everything: list[torch.Tensor]) -> None:
        self.arrivals += len(everything)

    def read(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(tensors)

    def pinned(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.uint8)

    def mark(self, device: torch.device) -> Any:
        return Event()


def pretend(patch: pytest.MonkeyPatch, library: str = str(EMULATED)) -> PretendedGpu:
    """From now on, until ``patch`` is undone, tensors lie on a GPU."""
    gpu = PretendedGpu()
    patch.setattr(torch_streams, "GPU", gpu)
    patch.setenv(native_cuda.LIBRARY_VARIABLE, library)
    native_cuda.library.cache_clear()
    native_cuda.available.cache_clear()
    return gpu


def pretended_libraries() -> Iterator[None]:
    """What a fixture of tests that pretend does: skips them without the emulation; afterwards others can be loaded."""
    if not EMULATED.exists():
        pytest.skip("the emulated CUDA kernels are not there: make cuda-emulated")
    yield
    native_cuda.library.cache_clear()
    native_cuda.available.cache_clear()
