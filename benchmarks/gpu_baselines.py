"""What benchmarks.gpu compares with, and the tensors of a well-known model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.gpu_device import Device, Run


class Bucket:
    """As much of a ``torch.distributed.GradBucket``, which only DDP can make, as its quantization hooks use."""

    def __init__(self, gradient: torch.Tensor) -> None:
        self._gradient = gradient

    def buffer(self) -> torch.Tensor:
        return self._gradient


@contextmanager
def quantization_hook(device: Device, gradient: torch.Tensor) -> Iterator[Run]:
    """PyTorch's hook that quantizes by bucket, in a group of one rank."""
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks import quantization_hooks

    backend = "gloo" if device.emulated else "nccl"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    bucket: Any = Bucket(gradient)
    try:
        yield lambda: quantization_hooks.quantization_perchannel_hook(dist.group.WORLD, bucket).wait()
    finally:
        dist.destroy_process_group()


def elements(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def resnet50_shapes() -> list[tuple[int, ...]]:
    """The parameters of ResNet-50 (He et al., 2016) for 1000 classes: 161 tensors of 25,557,032 elements in all."""

    def convolution(wide: int, narrow: int, size: int) -> list[tuple[int, ...]]:
        return [(wide, narrow, size, size), (wide,), (wide,)]  # with the batch norm after it

    shapes, channels = convolution(64, 3, 7), 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += convolution(width, channels, 1) + convolution(width, width, 3) + convolution(4 * width, width, 1)
            if block == 0:
                shapes += convolution(4 * width, channels, 1)
            channels = 4 * width
    return [*shapes, (1000, channels), (1000,)]
