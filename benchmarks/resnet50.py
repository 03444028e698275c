"""The tensors of a well-known model."""

from __future__ import annotations

import math


def elements(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def shapes() -> list[tuple[int, ...]]:
    """The parameters of ResNet-50 (He et al., 2016) for 1000 classes: 161 tensors of 25,557,032 elements in all."""

    def convolution(wide: int, narrow: int, size: int) -> list[tuple[int, ...]]:
        return [(wide, narrow, size, size), (wide,), (wide,)]  # with the batch norm after it

    found, channels = convolution(64, 3, 7), 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            found += convolution(width, channels, 1) + convolution(width, width, 3) + convolution(4 * width, width, 1)
            if block == 0:
                found += convolution(4 * width, channels, 1)
            channels = 4 * width
    return [*found, (1000, channels), (1000,)]
