"""What the tests inside ranks share. What ranks tell one another here travels by mpi4py, past Horovod and hvd_qsgd."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch
from rankcommon import RANK, SIZE, assert_all_raise, from_all_ranks, outcomes

__all__ = ["RANK", "SIZE", "assert_all_raise", "from_all_ranks", "outcomes"]  # and what is below

# Made by hvd.init(): a part of the ranks; two that are disjoint; and, of four ranks, three.
if SIZE >= 4:
    EVEN, ODD, THREE = hvd.ProcessSet([0, 2]), hvd.ProcessSet([1, 3]), hvd.ProcessSet([0, 1, 2])
    PROCESS_SETS = [EVEN, ODD, THREE]
else:
    EVEN, ODD = hvd.ProcessSet([0]), hvd.ProcessSet([1])
    PROCESS_SETS = [EVEN, ODD]

_names = itertools.count()


def rng(*seed: int, rank: int = RANK) -> torch.Generator:
    """Random numbers that differ between ranks."""
    return shared_rng(*seed, rank + 1)


def shared_rng(*seed: int) -> torch.Generator:
    """Random numbers that are the same on all ranks."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, rank: int = RANK) -> torch.Tensor:
    """This rank's gradient (or another's): buckets of different scales."""
    values = torch.randn(shape, generator=rng(seed, len(shape), *shape, rank=rank))
    scales = torch.exp2(torch.randint(-6, 6, (values.numel() // 100 + 1,), generator=rng(seed, rank=rank)).float())
    return (values.flatten() * scales.repeat_interleave(100)[: values.numel()]).view(values.shape).to(dtype)


def reduced(tensors: Any, compression: Any, name: str | None = None, function: str | None = None, **how: Any) -> Any:
    """`hvd.allreduce`, or the grouped one for a list, under a name.

    Names that Horovod invents are numbers that differ between ranks after a call that only some of them made. Give
    one to such a call yourself.
    """
    function = function or ("grouped_allreduce" if isinstance(tensors, list) else "allreduce")
    return getattr(hvd, function)(tensors, name=name or f"call{next(_names)}", compression=compression, **how)


def numbers(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """As float64, exactly, in C order."""
    return tensor.detach().to(torch.float64).contiguous().numpy().copy()


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """Of the bytes of all of them."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def assert_replicas_equal(tensors: Iterable[torch.Tensor], what: object = "") -> str:
    """Bit for bit, on all ranks; returns the digest."""
    digests = from_all_ranks(digest(tensors))
    assert len(set(digests)) == 1, f"{what} differs between ranks: {digests}"
    return digests[0]


def unit_of(values: np.ndarray[Any, Any], levels: int, bucket_size: int | None, norm: str) -> np.ndarray[Any, Any]:
    """The distance of neighbouring grid points, for every element."""
    flat = values.ravel()
    width = max(flat.size, 1) if bucket_size is None else bucket_size
    rows = np.pad(flat, (0, -flat.size % width)).reshape(-1, width)
    scales = np.abs(rows).max(axis=1) if norm == "max" else np.sqrt((rows**2).sum(axis=1))
    return np.repeat(scales / levels, width)[: flat.size].reshape(values.shape)


def assert_within_grid(
    result: torch.Tensor,
    mine: torch.Tensor,
    *,
    bits: int = 4,
    levels: int | None = None,
    bucket_size: int | None = 512,
    norm: str = "max",
    average: bool = True,
    everyone: Sequence[torch.Tensor] | None = None,
    what: object = "",
) -> float:
    """The result is off the exact average (or sum) of all ranks' gradients by less than the averaged grid spacing.

    The gradients are asked from all ranks unless ``everyone`` has them. Returns the relative error in the l2 norm.
    """
    levels = levels or 2 ** (bits - 1) - 1
    gradients = from_all_ranks(numbers(mine)) if everyone is None else [numbers(g) for g in everyone]
    factor = 1 / len(gradients) if average else 1.0
    exact = factor * np.sum(gradients, axis=0)
    bound = factor * np.sum([unit_of(g, levels, bucket_size, norm) for g in gradients], axis=0)
    assert result.shape == mine.shape, f"{what}: {result.shape} instead of {mine.shape}"
    assert result.dtype is mine.dtype, f"{what}: {result.dtype} instead of {mine.dtype}"
    precision = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}.get(mine.dtype, 2.0**-21)
    magnitude = factor * np.sum([np.abs(g) for g in gradients], axis=0) + bound
    error = np.abs(numbers(result) - exact)
    slack = precision * magnitude + (6e-8 if mine.dtype is torch.float16 else 0)
    assert (error <= bound + slack).all(), f"{what}: off by {(error - bound - slack).max()} more than the grid allows"
    scale = np.sqrt((exact**2).sum())
    return float(np.sqrt((error**2).sum()) / scale) if scale else 0.0


def mlp(inputs: int = 48, hidden: int = 40, outputs: int = 10, seed: int = 0) -> torch.nn.Sequential:
    """The same on all ranks. Both weights are matrices, the second smaller than the default min_size."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(inputs, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, outputs))


def batch(model: torch.nn.Module, *seed: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of this rank for ``mlp``: labels that can be learnt."""
    weight = next(model.parameters())
    inputs = torch.randn(size, weight.shape[1], generator=rng(*seed))
    return inputs.to(weight.dtype), inputs[:, :10].argmax(dim=1)


def loss_of(model: torch.nn.Module, *seed: int, size: int = 16) -> torch.Tensor:
    inputs, labels = batch(model, *seed, size=size)
    return torch.nn.functional.cross_entropy(model(inputs).float(), labels)


def train(model: torch.nn.Module, optimizer: Any, steps: range) -> str:
    """Train on this rank's batch of each of the steps. Returns the digest of the weights, equal on all ranks."""
    for step in steps:
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return assert_replicas_equal(model.parameters())


def wrap(
    model: torch.nn.Module | Iterable[tuple[str, torch.nn.Parameter]],
    compression: Any,
    optimizer: torch.optim.Optimizer | None = None,
    **options: Any,
) -> Any:
    """A distributed optimizer (SGD, if none is given) whose operations' names nobody else uses."""
    prefix = f"model{next(_names)}"
    named = list(model.named_parameters() if isinstance(model, torch.nn.Module) else model)
    optimizer = optimizer or torch.optim.SGD([p for _, p in named], lr=0.1)
    options.setdefault("named_parameters", [(f"{prefix}.{name}", p) for name, p in named])
    return hvd.DistributedOptimizer(optimizer, compression=compression, **options)


def local_gradients(model: torch.nn.Module, backward: Callable[[torch.nn.Module], Any]) -> dict[str, torch.Tensor]:
    """What ``backward`` leaves in the gradients of a copy that knows no Horovod."""
    twin = copy.deepcopy(model)
    twin.zero_grad()
    backward(twin)
    return {name: p.grad.clone() for name, p in twin.named_parameters() if p.grad is not None}


def assert_gradients_right(
    model: torch.nn.Module,
    local: dict[str, torch.Tensor],
    min_size: int = 1024,
    max_error: float | None = None,
    **how: Any,
) -> None:
    """The gradients that the optimizer left are the average of the local ones: within the grid, or exactly."""
    for name, p in model.named_parameters():
        if not p.requires_grad:
            assert p.grad is None
            continue
        assert p.grad is not None, name
        mine = local.get(name, torch.zeros_like(p))
        grad, mine = (p.grad.to_dense(), mine.to_dense()) if p.grad.is_sparse else (p.grad, mine)
        compressed = mine.numel() >= min_size and (mine.dim() > 1 or min_size == 0)
        if compressed:
            error = assert_within_grid(grad, mine, what=name, **how)
            assert max_error is None or error < max_error, f"{name}: relative error {error}"
        else:
            error = assert_within_grid(grad, mine, what=name, **{**how, "bits": 60, "levels": None})
        assert_replicas_equal([grad], name)
