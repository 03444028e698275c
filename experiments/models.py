"""The networks that the experiments train."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from mnist_data import CLASSES, PIXELS
from torch import nn


def perceptron(hidden: int = 4096) -> nn.Sequential:
    """784-hidden-10, the papers' network for MNIST."""
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))


def convolutional(shape: Sequence[int], channels: int = 16, hidden: int = 128) -> nn.Sequential:
    """Two convolutions, each before a pooling, and two dense layers, on images of channels x height x width."""
    inputs, height, width = shape
    layers = [
        ("convolution1", nn.Conv2d(inputs, channels, 3, padding=1)), ("relu1", nn.ReLU()), ("pool1", nn.MaxPool2d(2)),
        ("convolution2", nn.Conv2d(channels, 2 * channels, 3, padding=1)), ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(2)), ("flatten", nn.Flatten()),
        ("dense1", nn.Linear(2 * channels * (height // 4) * (width // 4), hidden)), ("relu3", nn.ReLU()),
        ("dense2", nn.Linear(hidden, CLASSES)),
    ]  # fmt: skip
    return nn.Sequential(OrderedDict(layers))
