"""Train a perceptron on MNIST with Horovod and PyTorch, its gradients compressed by QSGD.

    horovodrun -np 2 python torch_mnist.py --bits 4

This is an ordinary Horovod script: QSGD is the one argument compression= of DistributedOptimizer.
The network (784-4096-10), the batch of 256 images and the step size of 0.1 are those of the literature; the batch
is divided among the ranks, so that learning does not depend on their number.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import horovod.torch as hvd
import torch
from mnist_data import CLASSES, PIXELS, DataError, batches, load_mnist
from options import parse_options, quantization
from record import Record, digest
from torch import nn

from hvd_qsgd import QSGDError
from hvd_qsgd.torch import QSGD


def make_compression(options: argparse.Namespace, model: nn.Module) -> Any:
    """What Horovod does to gradients before it sends them."""
    if options.compression == "none":
        return hvd.Compression.none
    if options.compression == "fp16":
        return hvd.Compression.fp16
    return QSGD(**quantization(options), seed=options.seed, named_parameters=model.named_parameters())


def mean_over_ranks(values: list[float]) -> list[float]:
    means: list[float] = hvd.allreduce(torch.tensor(values, dtype=torch.float64)).tolist()
    return means


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Every rank tests its share of the images."""
    own_images, own_labels = images[hvd.rank() :: hvd.size()], labels[hvd.rank() :: hvd.size()]
    correct = (model(own_images).argmax(dim=1) == own_labels).sum()
    return int(hvd.allreduce(correct, op=hvd.Sum)) / len(labels)


def train(options: argparse.Namespace) -> None:
    train_images, train_labels, test_images, test_labels = map(
        torch.from_numpy, load_mnist(options.data_dir, options.train_images)
    )
    torch.manual_seed(options.seed)
    model = nn.Sequential(nn.Linear(PIXELS, 4096), nn.ReLU(), nn.Linear(4096, CLASSES))
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)

    compression = make_compression(options, model)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=options.step_size),
        named_parameters=model.named_parameters(),
        compression=compression,
    )

    record = Record("torch", options, hvd.rank(), hvd.size())
    for epoch in range(options.epochs):
        own_batches = batches(len(train_images), options.batch_size, hvd.rank(), hvd.size(), (options.seed, epoch))
        for batch in record.steps(own_batches[: options.steps_per_epoch]):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(train_images[batch]), train_labels[batch])
            loss.backward()
            optimizer.step()
            record.add_loss(loss.item())
        record.end_epoch(mean_over_ranks(record.epoch_losses), accuracy(model, test_images, test_labels))

    weights = digest(parameter.detach().numpy() for parameter in model.parameters())
    record.compare_replicas(hvd.allgather_object(weights))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    record.finish(parameters, compression.stats() if options.compression == "qsgd" else None)


def main() -> None:
    options = parse_options(__doc__)
    hvd.init()
    if "OMP_NUM_THREADS" not in os.environ:  # ranks on one machine share its processors
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // hvd.local_size()))
    try:
        train(options)
    except (DataError, QSGDError) as error:
        sys.exit(f"torch_mnist: {error}")


if __name__ == "__main__":
    main()
