"""Wall-clock training steps of the MNIST perceptron (784-4096-10) on the network at hand: none, fp16 and QSGD.

Run it as a job, on the machines that you mean to train on:
    mpirun -n 4 python -m benchmarks.step [--framework tensorflow] [--data-dir DIR] [--steps 10] [--rounds 3] [--json]
Compressions take turns, so that slow moments of the network hit all of them; figures are medians over all steps.
With --data-dir (MNIST; PyTorch) gradients are those of a model that has been trained for an epoch: what codecs of
variable length make of them depends on it. Without, they are of random images, and only fixed widths are measured.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import time
from pathlib import Path

BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", choices=("torch", "tensorflow"), default="torch", help="default: torch")
    parser.add_argument("--data-dir", type=Path, help="the folder with MNIST's four .gz files (PyTorch only)")
    parser.add_argument("--steps", type=int, default=10, help="steps a turn (default 10)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each compression (default 3)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help='of those that the table lists, such as "qsgd 4 bits"'
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    options = parser.parse_args()
    frontend = importlib.import_module(f"benchmarks.step_{options.framework}")
    frontend.hvd.init()
    if options.data_dir and options.framework != "torch":
        parser.error("--data-dir goes with --framework torch")
    frontend.prepare()
    qsgd = frontend.QSGD
    trained = [frontend.train_an_epoch(options.data_dir, BATCH)] if options.data_dir else []
    compressions = {"none": frontend.hvd.Compression.none, "fp16": frontend.hvd.Compression.fp16}
    compressions.update({f"qsgd {bits} bits": qsgd(bits=bits, name=f"bits{bits}") for bits in (8, 4, 2)})
    compressions["qsgd ternary"] = qsgd(codec="ternary", name="ternary")
    if trained:
        compressions["qsgd variance 0.1"] = qsgd(variance=0.1, name="variance")
    unknown = set(options.only or ()) - set(compressions)
    if unknown:
        parser.error(f"--only {', '.join(unknown)}: there are {', '.join(compressions)}")
    compressions = {name: compressions[name] for name in options.only or compressions}
    steps = {name: frontend.make_step(compression, BATCH, *trained) for name, compression in compressions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            step()  # not counted: buffers, Horovod's cache, TensorFlow's tracing
            for _ in range(options.steps):
                start = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - start)
    if frontend.hvd.rank() == 0:
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        report(medians, frontend.hvd.size(), options.json)


def report(medians: dict[str, float], ranks: int, as_json: bool) -> None:
    first, longest = next(iter(medians.items()))
    for name, median in medians.items():
        row = {"name": name, "ranks": ranks, "seconds": round(median, 4), "of_first": median / longest}
        if as_json:
            print(json.dumps(row))
        else:
            print(f"{name:18s} {median:8.3f} s a step   {row['of_first']:5.3f} of {first}")


if __name__ == "__main__":
    main()
