"""Training a model of PyTorch by simulated workers: each computes the gradient of its share of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable, NamedTuple

import numpy as np
import torch
from mnist_data import batches
from numpy.typing import NDArray
from torch import nn

from experiments.runs import Row
from experiments.workers import Exchange
from hvd_qsgd.compressor import Options

TEST_BATCH = 1000
Compressed = Callable[[str, torch.Tensor], bool]


class Task(NamedTuple):
    """What to train on what: inputs and targets (class numbers, one or more for each input), and those to test."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: torch.Tensor
    targets: torch.Tensor
    test_inputs: torch.Tensor
    test_targets: torch.Tensor


def compressed_by_default(name: str, gradient: torch.Tensor) -> bool:
    """What a compressor compresses by default: no small ones, nor those of one dimension."""
    return Options().wants(gradient.numel(), gradient.dim())


def train(
    task: Task,
    exchange: Exchange,
    *,
    workers: int,
    batch_size: int,
    steps: int,
    points: int,
    seed: int,
    compressed: Compressed = compressed_by_default,
) -> Iterator[Row]:
    """Train for some steps; now and then, ``points`` times in all, yield how far it is.

    Args:
        batch_size: of all workers together.
        seed: of the order of the data.
        compressed: (name, gradient) -> whether it is compressed, or exchanged as it is.

    Yields:
        step, loss (mean of the steps since the last point), test_loss, test_accuracy, megabits (sent by one worker
        since the first step).
    """
    losses: list[float] = []
    for step, batch in enumerate(_all_batches(len(task.inputs), batch_size, workers, steps, seed)):
        losses.append(_take_step(task, exchange, batch, step, compressed))
        if (step + 1) * points // steps > step * points // steps:
            loss, accuracy = evaluate(task)
            yield {
                "step": step + 1,
                "loss": float(np.mean(losses)),
                "test_loss": loss,
                "test_accuracy": accuracy,
                "megabits": exchange.bits_sent / 1e6,
            }
            losses.clear()


def loss_of(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy."""
    return nn.functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


@torch.no_grad()
def evaluate(task: Task) -> tuple[float, float]:
    """Loss and accuracy on what is not trained on."""
    loss, correct = 0.0, 0
    for inputs, targets in zip(task.test_inputs.split(TEST_BATCH), task.test_targets.split(TEST_BATCH)):
        scores = task.model(inputs).flatten(0, -2)
        loss += nn.functional.cross_entropy(scores, targets.flatten(), reduction="sum").item()
        correct += int((scores.argmax(dim=1) == targets.flatten()).sum())
    return loss / task.test_targets.numel(), correct / task.test_targets.numel()


def _all_batches(inputs: int, batch_size: int, workers: int, steps: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """For each step a row of numbers of inputs for each worker; epoch after epoch, each in an order of its own."""
    epoch = 0
    while steps > 0:
        shares = np.stack([batches(inputs, batch_size, worker, workers, (seed, epoch)) for worker in range(workers)], 1)
        yield from shares[:steps]
        steps -= len(shares)
        epoch += 1


def _take_step(task: Task, exchange: Exchange, batch: NDArray[np.int64], step: int, compressed: Compressed) -> float:
    """Gradients of all workers, their mean, and what the optimizer makes of it. Returns the mean loss."""
    losses, gradients = [], []
    for share in batch:
        task.optimizer.zero_grad()
        loss = loss_of(task.model, task.inputs[share], task.targets[share])
        loss.backward()
        losses.append(loss.item())
        gradients.append([parameter.grad for parameter in task.model.parameters()])
    for tensor, (name, parameter) in enumerate(task.model.named_parameters()):
        arrays = [own[tensor].numpy() for own in gradients]
        if compressed(name, parameter):
            mean = exchange.mean(arrays, step=step, tensor=tensor)
        else:
            mean = exchange.exact_mean(arrays)
        parameter.grad = torch.from_numpy(mean)
    task.optimizer.step()
    return float(np.mean(losses))
