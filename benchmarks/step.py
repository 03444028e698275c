"""Wall-clock training steps of the MNIST perceptron (784-4096-10) on the network at hand: none, fp16 and QSGD.

Run it as a job, on the machines that you mean to train on:
    mpirun -n 4 python -m benchmarks.step [--steps 10] [--rounds 3] [--json]
Compressions take turns, so that slow moments of the network hit all of them; figures are medians over all steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import horovod.torch as hvd
import torch

from hvd_qsgd.torch import QSGD

BATCH = 256


def perceptron() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(784, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 10))


def make_step(compression: Any) -> Any:
    """A function that trains one step with ``compression``."""
    model = perceptron()
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        named_parameters=model.named_parameters(),
        compression=compression,
    )
    images, labels = torch.randn(BATCH, 784), torch.randint(10, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="steps a turn (default 10)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each compression (default 3)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    options = parser.parse_args()
    hvd.init()
    torch.set_num_threads(1)
    compressions = {"none": hvd.Compression.none, "fp16": hvd.Compression.fp16}
    compressions.update({f"qsgd {bits} bits": QSGD(bits=bits, name=f"bits{bits}") for bits in (8, 4, 2)})
    compressions["qsgd ternary"] = QSGD(codec="ternary", name="ternary")
    steps = {name: make_step(compression) for name, compression in compressions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            step()  # not counted: buffers, Horovod's cache
            for _ in range(options.steps):
                start = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - start)
    if hvd.rank() == 0:
        report({name: statistics.median(times) for name, times in seconds.items()}, options.json)


def report(medians: dict[str, float], as_json: bool) -> None:
    for name, median in medians.items():
        row = {"name": name, "ranks": hvd.size(), "seconds": round(median, 4), "of_none": median / medians["none"]}
        if as_json:
            print(json.dumps(row))
        else:
            print(f"{name:14s} {median:8.3f} s a step   {row['of_none']:5.2f} of none")


if __name__ == "__main__":
    main()
