"""The models whose gradients save_gradients.py saves, each with its data and what trains it."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from mnist_data import CLASSES, PIXELS, load_mnist
from text_data import load_rows
from torch import nn

VOCABULARY, CONTEXT, WIDTH = 8192, 64, 128
QUICK_IMAGES, QUICK_WORDS = 4096, 20_000


class Task(NamedTuple):
    """What to train on what: rows of ``inputs`` and ``targets`` (class numbers) in batches, for some epochs."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: torch.Tensor
    targets: torch.Tensor
    batch_size: int
    epochs: tuple[int, ...]  # after which the gradients are saved


class Transformer(nn.Module):
    """Predicts each next word of a text: two blocks, embedding and output apart."""

    def __init__(self, vocabulary: int = VOCABULARY, context: int = CONTEXT, width: int = WIDTH) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(
            width, nhead=4, dim_feedforward=4 * width, dropout=0, activation="gelu", batch_first=True, norm_first=True
        )
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.TransformerEncoder(block, num_layers=2, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.output = nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context), persistent=False)

    def forward(self, words: torch.Tensor) -> Any:
        return self.output(self.blocks(self.embedding(words) + self.position.weight, mask=self.mask, is_causal=True))


def perceptron(options: argparse.Namespace) -> Task:
    """784-4096-10 on MNIST, trained as in torch_mnist.py."""
    data = load_mnist(options.data_dir, QUICK_IMAGES if options.quick else None)
    layers = [("hidden", nn.Linear(PIXELS, 4096)), ("relu", nn.ReLU()), ("output", nn.Linear(4096, CLASSES))]
    model = nn.Sequential(OrderedDict(layers))
    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)
    return Task(model, torch.optim.SGD(model.parameters(), lr=0.1), images, labels, 256, (0, 1, 5))


def convolutional(options: argparse.Namespace) -> Task:
    """Two convolutions and two dense layers on Fashion-MNIST."""
    data = load_mnist(options.fashion_dir, QUICK_IMAGES if options.quick else None)
    layers = [
        ("convolution1", nn.Conv2d(1, 32, 3, padding=1)), ("relu1", nn.ReLU()), ("pool1", nn.MaxPool2d(2)),
        ("convolution2", nn.Conv2d(32, 64, 3, padding=1)), ("relu2", nn.ReLU()), ("pool2", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()), ("hidden", nn.Linear(64 * 7 * 7, 128)), ("relu3", nn.ReLU()),
        ("output", nn.Linear(128, CLASSES)),
    ]  # fmt: skip
    model = nn.Sequential(OrderedDict(layers))
    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Task(model, optimizer, images.reshape(-1, 1, 28, 28), labels, 256, (0, 1))


def transformer(options: argparse.Namespace) -> Task:
    """2.5 M parameters on English text, 32 rows of 64 words a step."""
    rows = torch.from_numpy(load_rows(VOCABULARY, CONTEXT + 1, QUICK_WORDS if options.quick else None))
    model = Transformer()
    return Task(model, torch.optim.Adam(model.parameters()), rows[:, :-1], rows[:, 1:], 32, (0, 1))


MODELS = {"perceptron": perceptron, "convolutional": convolutional, "transformer": transformer}
