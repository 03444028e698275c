"""Jobs that `tests/test_ranks.py` starts on their own: most of them are meant to fail. No MPI but Horovod's."""

from __future__ import annotations

import hashlib
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import horovod.torch as hvd
import torch

from hvd_qsgd.errors import QSGDError
from hvd_qsgd.torch import QSGD

STEPS, BAD_STEP = 8, 3


def say(text: str) -> None:
    """In one piece, so that ranks do not write into each other's lines."""
    os.write(1, f"rank {hvd.rank()}: {text}\n".encode())


def train(before_step: Callable[[int], None] = lambda step: None, extra: int = 0, **options: Any) -> str:
    """Train a small model and return the digest of its weights."""
    torch.manual_seed(1)
    layers = [torch.nn.Linear(40, 40) for _ in range(2 + extra)]
    model = torch.nn.Sequential(*layers)
    named = list(model.named_parameters())
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), named, QSGD(named_parameters=named, **options)
    )
    torch.manual_seed(100 + hvd.rank())
    for step in range(STEPS):
        before_step(step)
        optimizer.zero_grad()
        model(torch.randn(8, 40)).square().mean().backward()
        optimizer.step()
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


def trivial() -> None:
    digests = hvd.allgather_object(train())
    assert len(digests) == hvd.size() >= 2
    assert len(set(digests)) == 1
    if not hvd.mpi_enabled():
        try:
            hvd.allreduce(torch.randn(40, 40), compression=QSGD(transport="mpi"))
        except QSGDError as error:
            say(f"told: {error}")
    say(f"trained, mpi={hvd.mpi_enabled()}")


def killed() -> None:
    def before_step(step: int) -> None:
        if step == BAD_STEP and hvd.rank() == 1:
            say("is killed")
            os.kill(os.getpid(), signal.SIGKILL)

    train(before_step)


def raising() -> None:
    def before_step(step: int) -> None:
        if step == BAD_STEP and hvd.rank() == 1:
            raise ZeroDivisionError("only here")

    train(before_step)


def receiving() -> None:
    """Frames that are damaged on the way to rank 1 alone."""
    finish = hvd.synchronize
    bad = False

    def damaging(handle: int) -> Any:
        result = finish(handle)
        if bad and hvd.rank() == 1 and result.dtype is torch.int64:
            result[40] ^= 1 << 17
        return result

    def before_step(step: int) -> None:
        nonlocal bad
        bad = step == BAD_STEP

    hvd.synchronize = damaging
    train(before_step)


def counting() -> None:
    """Rank 0 has a layer more than the others."""
    train(extra=1 if hvd.rank() == 0 else 0)


def transports() -> None:
    """Rank 0 uses another transport than the others."""
    train(transport="mpi" if hvd.rank() == 0 else "horovod")


def disagreeing() -> None:
    """Mistakes of which all ranks are told, and that leave operations behind that never end; then a good end."""
    tensor = torch.randn(40, 40)
    first = hvd.rank() == 0
    for what, compressor in (
        ("min_size", QSGD(min_size=5000 if first else 0, name="min_size")),
        ("name", QSGD(name="a" if first else "b")),
        ("compression", hvd.Compression.none if first else QSGD(name="compression")),
        ("process_set", QSGD(process_set=hvd.global_process_set, name="set")),
    ):
        try:
            hvd.allreduce(tensor, name=what, compression=compressor)
        except Exception as error:
            say(f"{what}: {type(error).__name__}: {error}")
    say("goes on")
    assert train()


def again() -> None:
    """Horovod is shut down with operations on their way, and started again, as its elastic mode does.

    MPI must outlast it: mpi4py was there first.
    """
    compressor = QSGD(name="again")
    world = sys.modules["mpi4py.MPI"].COMM_WORLD
    torch.manual_seed(hvd.rank())
    for k in range(3):
        for _ in range(2):
            tuple(compressor.compress(torch.randn(40, 40)))  # given up
        world.Barrier()  # or a rank that is late finds Horovod shut down
        hvd.shutdown()
        hvd.init()
        others = [hvd.allreduce_async(torch.ones(3), name=f"other{i}") for i in range(20)]
        tensor = torch.full((40, 40), float(hvd.rank() + k))
        for _ in range(3):
            result = hvd.allreduce(tensor, compression=compressor)
            assert torch.equal(result, torch.full((40, 40), (hvd.size() - 1) / 2 + k))
        lost = [i for i, handle in enumerate(others) if hvd.synchronize(handle) is None]
        say(f"other operations lost their results: {lost}" if lost else "others are well")
    assert train()
    say("went on")


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1] == "again":
        importlib.import_module("mpi4py.MPI")
    hvd.init()
    start = time.monotonic()
    try:
        globals()[sys.argv[1]]()
    except BaseException as error:
        say(f"{type(error).__name__}: {error}")
        raise
    finally:
        say(f"after {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    main()
