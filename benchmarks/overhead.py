"""Host time that gradients cost beside the waiting: mpirun -n 2 python -m benchmarks.overhead [--json] [--grouped]

As an optimizer does it: ``compress`` for all tensors of a step, the tokens reduced, ``decompress`` for all. Processor
time of the calling thread and time on the clock, a tensor and a step; medians over the steps, and the least. Only the
waiting for other ranks' frames is left out: everything else that ``compress`` and ``decompress`` do is in, Horovod's
own ``allgather_async`` and ``synchronize`` too, which are given by themselves for comparison, and so are torch's own
calls that make as many tensors. With ``--grouped`` all tensors are one group of an optimizer. With ``--device cuda``
they lie on a GPU; with ``--device pretended`` on none, and kernels do nothing: that is the host's part but for CUDA's
own calls (``make cuda-emulated`` first). Without ``mpirun`` there is one rank.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import statistics
import time

import horovod.torch as hvd
import torch

from benchmarks import pretended, resnet50
from hvd_qsgd import native_cuda, torch_streams
from hvd_qsgd.torch import QSGD

WARM_UP = 5  # steps


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


def measure_torch(gradients: list[torch.Tensor]) -> dict[str, Clock]:
    """What the processor makes of a known piece of work at that moment."""
    clock = Clock()
    clock.start()
    for _ in gradients:
        torch.empty(1000, dtype=torch.int64, device="cpu")
    clock.stop()
    return {"torch.empty": clock}


def row(name: str, clocks: list[Clock], tensors: int) -> dict[str, float | str | int]:
    """Microseconds a tensor: the median, and the least."""
    found: dict[str, float | str | int] = {"name": name, "ranks": hvd.size(), "tensors": tensors}
    for kind in ("processor", "wall"):
        times = [1e6 * getattr(clock, kind) / tensors for clock in clocks]
        found[f"{kind}_us"], found[f"{kind}_least_us"] = statistics.median(times), min(times)
    return found


def line(of: dict[str, float | str | int]) -> str:
    both = [
        f"{of[f'{kind}_us']:6.1f} us {kind}, at least {of[f'{kind}_least_us']:6.1f}" for kind in ("processor", "wall")
    ]
    step = float(of["wall_us"]) * int(of["tensors"]) / 1e3
    return f"{of['name']:16s} {'; '.join(both)}; {step:6.2f} ms a step"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--tensors", type=int, default=161)
    parser.add_argument("--elements", type=int, default=1100, help="of each tensor")
    parser.add_argument("--resnet50", action="store_true", help="the 161 tensors of ResNet-50 instead")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--grouped", action="store_true", help="all tensors are a group")
    parser.add_argument("--device", choices=["cpu", "cuda", "pretended"], default="cpu", help="where they lie")
    parser.add_argument("--profile", action="store_true", help="then, which functions the first rank spent its time in")
    options = parser.parse_args()
    hvd.init()
    torch.set_num_threads(1)
    if options.device == "cuda":
        torch.cuda.set_device(hvd.local_rank())
    if options.device == "pretended":
        os.environ[native_cuda.LIBRARY_VARIABLE], os.environ[pretended.EMPTY_VARIABLE] = str(pretended.EMULATED), "1"
        torch_streams.GPU = pretended.PretendedGpu()
    device = "cuda" if options.device == "cuda" else "cpu"
    shapes = resnet50.shapes() if options.resnet50 else [(options.elements // 10, 10)] * options.tensors
    gradients = [torch.randn(shape, device=device) for shape in shapes]
    compression = QSGD(seed=1, min_size=0, grouped=options.grouped)
    words = [torch.zeros(90, dtype=torch.int64) for _ in gradients]
    profile = cProfile.Profile(time.thread_time)  # of the processor, which others may use, too
    steps = []
    for _ in range(WARM_UP + options.steps):
        if options.profile:
            profile.enable()
        ours = measure(gradients, compression, options.grouped)
        profile.disable()
        steps.append({**ours, **measure_horovod(words), **measure_torch(gradients)})
    if hvd.rank() == 0:
        for name in steps[0]:
            of = row(name, [step[name] for step in steps[WARM_UP:]], len(gradients))
            print(json.dumps(of) if options.json else line(of))
        if options.profile:
            pstats.Stats(profile).sort_stats("tottime").print_stats(40)
    hvd.shutdown()


if __name__ == "__main__":
    main()
