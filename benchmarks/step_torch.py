"""The perceptron's training step with PyTorch, for benchmarks.step."""

from __future__ import annotations

from typing import Any, Callable

import horovod.torch as hvd
import torch

from hvd_qsgd.torch import QSGD

__all__ = ["QSGD", "hvd", "make_step", "prepare"]


def prepare() -> None:
    """Once a process, after hvd.init()."""
    torch.set_num_threads(1)


def make_step(compression: Any, batch: int) -> Callable[[], None]:
    """A function that trains one step with ``compression``."""
    model = torch.nn.Sequential(torch.nn.Linear(784, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 10))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        named_parameters=model.named_parameters(),
        compression=compression,
    )
    images, labels = torch.randn(batch, 784), torch.randint(10, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step
