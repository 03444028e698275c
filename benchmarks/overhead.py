"""Host time a small tensor costs beside the waiting: mpirun -n 2 python -m benchmarks.overhead [--json] [--grouped]

As an optimizer does it: ``compress`` for all tensors of a step, the tokens reduced, ``decompress`` for all. Processor
time of the calling thread and time on the clock, in microseconds a tensor, medians over the steps. Only the waiting
for other ranks' frames is left out: everything else that ``compress`` and ``decompress`` do is in, Horovod's own
``allgather_async`` and ``synchronize`` too, which are given by themselves for comparison. With ``--grouped`` all
tensors are one group of an optimizer, with ``--device cuda`` they lie on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import horovod.torch as hvd
import torch

from hvd_qsgd.torch import QSGD


class Clock:
    """Adds up processor time of this thread and time on the clock between ``start`` and ``stop``."""

    def __init__(self) -> None:
        self.processor = self.wall = 0.0

    def start(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.thread_time()

    def stop(self) -> None:
        self.processor += time.thread_time() - self._processor
        self.wall += time.perf_counter() - self._wall


def settle() -> None:
    """Let all operations that are on their way end, so that nothing is waited for after this."""
    hvd.barrier()


def measure(gradients: list[torch.Tensor], compression: QSGD, grouped: bool) -> dict[str, Clock]:
    """One step."""
    clocks = {"compress": Clock(), "decompress": Clock()}
    clocks["compress"].start()
    if grouped:
        tokens, contexts = zip(*[compression.compress(gradient) for gradient in gradients])
    else:
        tokens, contexts = zip(*[tuple(compression.compress(gradient)) for gradient in gradients])
    clocks["compress"].stop()
    reduced = hvd.synchronize(hvd.grouped_allreduce_async_(list(tokens), name="tokens"))
    settle()
    clocks["decompress"].start()
    for token, context in zip(reduced, contexts):
        compression.decompress(token, context)
    clocks["decompress"].stop()
    return clocks


def measure_horovod(words: list[torch.Tensor]) -> dict[str, Clock]:
    """Horovod's part alone: the same gathers without a compressor."""
    clocks = {"allgather_async": Clock(), "synchronize": Clock()}
    clocks["allgather_async"].start()
    handles = [hvd.allgather_async(part, name=f"gather{k}") for k, part in enumerate(words)]
    clocks["allgather_async"].stop()
    settle()
    clocks["synchronize"].start()
    for handle in handles:
        hvd.synchronize(handle)
    clocks["synchronize"].stop()
    return clocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--tensors", type=int, default=161)
    parser.add_argument("--elements", type=int, default=1100, help="of each tensor")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--grouped", action="store_true", help="all tensors are a group")
    parser.add_argument("--device", default="cpu", help="where they lie: cpu or cuda")
    options = parser.parse_args()
    hvd.init()
    torch.set_num_threads(1)
    if options.device == "cuda":
        torch.cuda.set_device(hvd.local_rank())
    gradients = [torch.randn(options.elements // 10, 10, device=options.device) for _ in range(options.tensors)]
    compression = QSGD(seed=1, grouped=options.grouped)
    words = [torch.zeros(90, dtype=torch.int64) for _ in gradients]
    steps = [
        {**measure(gradients, compression, options.grouped), **measure_horovod(words)} for _ in range(options.steps + 5)
    ][5:]
    if hvd.rank() == 0:
        for name in steps[0]:
            row = {
                "name": name,
                "ranks": hvd.size(),
                **{
                    f"{kind}_us": 1e6 * statistics.median(getattr(step[name], kind) for step in steps) / len(gradients)
                    for kind in ("processor", "wall")
                },
            }
            print(
                json.dumps(row)
                if options.json
                else f"{name:16s} {row['processor_us']:6.1f} us processor, {row['wall_us']:6.1f} us wall"
            )
    hvd.shutdown()


if __name__ == "__main__":
    main()
