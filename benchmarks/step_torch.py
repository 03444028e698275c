"""The perceptron's training step with PyTorch, for benchmarks.step."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple

import horovod.torch as hvd
import torch

from hvd_qsgd.torch import QSGD

__all__ = ["QSGD", "hvd", "make_step", "prepare", "train_an_epoch"]

Batch = tuple[torch.Tensor, torch.Tensor]


class Trained(NamedTuple):
    """A model's state after an epoch, and this rank's batches to go on with."""

    state: dict[str, torch.Tensor]
    batches: list[Batch]


def prepare() -> None:
    """Once a process, after hvd.init()."""
    torch.set_num_threads(1)


def make_model() -> torch.nn.Sequential:
    """784-4096-10, as the examples have it."""
    return torch.nn.Sequential(torch.nn.Linear(784, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 10))


def train_an_epoch(data_dir: Path, batch: int) -> Trained:
    """Of MNIST, without any communication, the same on all ranks."""
    sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
    from mnist_data import load_mnist

    data = load_mnist(data_dir)
    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)
    torch.manual_seed(0)
    batches = [(images[k], labels[k]) for k in torch.randperm(len(images)).split(batch)]
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for images, labels in batches:
        train(model, optimizer, images, labels)
    return Trained(model.state_dict(), batches[hvd.rank() :: hvd.size()])


def train(model: torch.nn.Module, optimizer: Any, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One step."""
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()


def make_step(compression: Any, batch: int, trained: Trained | None = None) -> Callable[[], None]:
    """A function that trains one step with ``compression``."""
    model = make_model()
    if trained:
        model.load_state_dict(trained.state)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        named_parameters=model.named_parameters(),
        compression=compression,
    )
    batches = forever(trained.batches if trained else [(torch.randn(batch, 784), torch.randint(10, (batch,)))])
    return lambda: train(model, optimizer, *next(batches))


def forever(batches: list[Batch]) -> Iterator[Batch]:
    """One after the other, again and again."""
    while True:
        yield from batches
