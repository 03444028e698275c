"""A GPU that is pretended: CPU tensors take the GPU's path, with the CUDA kernels as the emulation runs them.

The one seam is `torch_streams.GPU`, behind which is all of `torch.cuda` that the path uses. That nothing waits, and
streams, can only be tested on a GPU (`tests/test_gpu_torch.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks import pretended
from benchmarks.pretended import EMULATED
from hvd_qsgd import native_cuda, torch_streams


class Event(pretended.Event):
    """Counts who waits for it."""

    waits = 0

    def synchronize(self) -> None:
        Event.waits += 1


class PretendedGpu(pretended.PretendedGpu):
    """Counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.lent: list[torch.Tensor] = []
        self.is_capturing = False
        self.arrivals = 0

    def capturing(self) -> bool:
        return self.is_capturing

    def lend(self, tensor: torch.Tensor) -> None:
        self.lent.append(tensor)

    def arrived(self, everything: list[torch.Tensor]) -> None:
        self.arrivals += len(everything)

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
