"""What users have without us: Horovod's fp16 cast, and QSGD written straightforwardly in torch operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

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
