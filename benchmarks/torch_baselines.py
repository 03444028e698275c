"""What users have without us: Horovod's fp16 cast, PyTorch's quantization hooks, and QSGD in torch operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

LEVELS = 7


def cases(n: int, bucket_size: int) -> Iterator[tuple[dict[str, Any], Callable[[], Any]]]:
    """Nothing where torch is not installed."""
    if torch is None:
        return
    torch.set_num_threads(1)
    gradient = torch.randn(n)
    yield {"name": "fp16_cast"}, lambda: fp16_cast(gradient)
    yield {"name": "torch_qsgd_encode", "bits": 4, "norm": "max"}, lambda: qsgd_encode(gradient, bucket_size)


def fp16_cast(gradient: Any) -> Any:
    """``hvd.Compression.fp16``: there and back."""
    return gradient.type(torch.float16).type(torch.float32)


def qsgd_encode(gradient: Any, bucket_size: int) -> Any:
    """Scales and 4-bit codes, two a byte."""
    buckets = gradient.view(-1, bucket_size)
    scales = buckets.abs().amax(dim=1, keepdim=True)
    codes = torch.floor(buckets * (LEVELS / scales) + torch.rand_like(buckets)).to(torch.int8) + 8
    return scales, codes.view(-1, 2)[:, 0] | (codes.view(-1, 2)[:, 1] << 4)


class OneRank:
    """A process group, and a bucket of gradients, as PyTorch's DDP passes them to its hooks; with this rank alone."""

    def __init__(self, gradient: Any) -> None:
        self.buffer = lambda: gradient

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 1

    def all_gather(self, out: list[Any], tensor: Any, **_: Any) -> OneRank:
        """Answers as NCCL does: one tensor of all ranks. Gloo answers with a list, with which the hooks fail."""
        out[0].copy_(tensor)
        self._future = torch.futures.Future(devices=[tensor.device] if tensor.is_cuda else [])
        self._future.set_result([tensor[None]])
        return self

    def get_future(self) -> Any:
        return self._future


def quantization_hook(name: str, gradient: Any) -> Any:
    """The mean of one rank's gradient that a hook of PyTorch's DDP makes: 8 bits, without the communication."""
    from torch.distributed.algorithms.ddp_comm_hooks import quantization_hooks

    one = OneRank(gradient)
    with mock.patch.object(quantization_hooks.dist, "all_gather", one.all_gather):
        return getattr(quantization_hooks, name)(one, one).wait()
