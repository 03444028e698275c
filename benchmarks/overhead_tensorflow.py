"""What QSGD adds to Horovod's own allgather in a graph: mpirun -n 2 python -m benchmarks.overhead_tensorflow [--json]

A function reduces many small tensors with QSGD, another gathers as many frames of the same size with Horovod alone.
They take turns; time on the clock, in microseconds a tensor, medians over the runs. Both wait for the other ranks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any, Callable

import horovod.tensorflow as hvd
import tensorflow as tf

from hvd_qsgd.tensorflow import QSGD


def make_functions(tensors: int, elements: int) -> dict[str, Callable[[], Any]]:
    gradients = [tf.random.normal((elements // 10, 10)) for _ in range(tensors)]
    frames = [tf.zeros(elements // 16 + 20, tf.int64) for _ in range(tensors)]
    compression = QSGD(seed=1)

    @tf.function
    def qsgd() -> Any:
        reduced = hvd.grouped_allreduce(gradients, compression=compression, name="gradients")
        return tf.add_n([tensor[0, 0] for tensor in reduced])

    @tf.function
    def allgather() -> Any:
        gathered = [hvd.allgather(frame, name=f"frame{k}") for k, frame in enumerate(frames)]
        return tf.add_n([words[0] for words in gathered])

    return {"qsgd": qsgd, "allgather": allgather}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--tensors", type=int, default=161)
    parser.add_argument("--elements", type=int, default=1100, help="of each tensor")
    parser.add_argument("--runs", type=int, default=60)
    options = parser.parse_args()
    hvd.init()
    functions = make_functions(options.tensors, options.elements)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(options.runs + 5):
        for name, function in functions.items():
            start = time.perf_counter()
            function().numpy()
            seconds[name].append(time.perf_counter() - start)
    if hvd.rank() == 0:
        each = {name: 1e6 * statistics.median(times[5:]) / options.tensors for name, times in seconds.items()}
        row = {"ranks": hvd.size(), **{f"{name}_us": value for name, value in each.items()}}
        row["added_us"] = each["qsgd"] - each["allgather"]
        print(json.dumps(row) if options.json else "  ".join(f"{name} {value:.1f}" for name, value in row.items()))


if __name__ == "__main__":
    main()
