"""QSVRG: every step is what the algorithm says, from `hvd_qsgd.encode` and `decode_sum` alone; state; mistakes."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import horovod.torch as hvd
import numpy as np
import pytest
import ranktools as rt
import torch
from rankcommon import on_two_ranks

import hvd_qsgd
from hvd_qsgd import QSGDError
from hvd_qsgd.steps import tensor_id
from hvd_qsgd.torch import QSGD, QSVRG

ROWS, BATCH, STEPS = 40, 4, 6
SHAPES = [(6, 5), (7,)]
Closure = Callable[[], torch.Tensor]


class Shard:
    """Least squares over this rank's own rows."""

    def __init__(self, dtype: torch.dtype = torch.float64, **how: Any) -> None:
        size = sum(int(np.prod(shape)) for shape in SHAPES)
        self.data = torch.randn(ROWS, size, generator=rt.rng(3)).to(dtype) / 4
        self.labels = torch.randn(ROWS, generator=rt.rng(4)).to(dtype)
        self.weights = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
        self.optimizer = QSVRG(self.weights, lr=0.2, **how)

    def closure(self, rows: slice, weights: list[torch.nn.Parameter] | None = None) -> Closure:
        def backward() -> torch.Tensor:
            flat = torch.cat([w.flatten() for w in weights or self.weights])
            loss = (self.data[rows] @ flat - self.labels[rows]).square().mean() / 2 + 0.05 * flat.square().sum()
            loss.backward()
            return loss

        return backward

    def train(self, steps: range) -> str:
        for step in steps:
            if step % STEPS == 0:
                self.optimizer.snapshot(self.closure(slice(None)))
            self.optimizer.step(self.closure(rows_of(step)))
        return rt.assert_replicas_equal(self.weights)

    def gradient(self, at: np.ndarray, rows: slice) -> np.ndarray:
        """As a vector, by the same closure."""
        parts = np.split(at, np.cumsum([np.prod(shape) for shape in SHAPES])[:-1].astype(int))
        twins = [torch.nn.Parameter(torch.from_numpy(part.reshape(s).copy())) for part, s in zip(parts, SHAPES)]
        self.closure(rows, twins)()
        return np.concatenate([twin.grad.numpy().ravel() for twin in twins])


def rows_of(step: int) -> slice:
    start = step * BATCH % ROWS
    return slice(start, start + BATCH)


def flat(weights: list[torch.nn.Parameter]) -> np.ndarray:
    return np.concatenate([w.detach().numpy().ravel() for w in weights])


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_step_is_the_algorithm_s(average: bool, dtype: torch.dtype) -> None:
    name = f"qsvrg {average} {dtype}"
    how = {"levels": "sqrt", "norm": "l2", "bucket_size": None, "codec": "elias-dense"}
    shard = Shard(dtype, average=average, compression=QSGD(min_size=0, name=name, **how))
    x = flat(shard.weights)
    for epoch in range(3):
        iterates: list[np.ndarray] = []
        shard.optimizer.snapshot(shard.closure(slice(None)))
        own = rt.from_all_ranks(shard.gradient(x, slice(None)))
        full = sum(own[1:], own[0]) / rt.SIZE
        y, total = x, np.zeros_like(x)
        for t in range(STEPS):
            step = epoch * STEPS + t
            loss = shard.optimizer.step(shard.closure(rows_of(step)))
            assert loss.item() > 0
            v = shard.gradient(x, rows_of(step)) - shard.gradient(y, rows_of(step)) + full
            frame = hvd_qsgd.encode(v, rank=rt.RANK, tensor=tensor_id(name, "#0"), step=step, **how)
            mean = hvd_qsgd.decode_sum(rt.from_all_ranks(frame), 1 / rt.SIZE).astype(x.dtype)
            iterates.append(x)
            total = total + x
            x = x - mean * x.dtype.type(0.2)
            assert np.array_equal(flat(shard.weights), x), (epoch, t)
        x = total / x.dtype.type(STEPS) if average else x


@on_two_ranks
def test_it_converges_to_float64_s_precision() -> None:
    shard = Shard(average=False)
    gaps = []
    data, labels = (np.concatenate(rt.from_all_ranks(part.numpy())) for part in (shard.data, shard.labels))
    hessian = data.T @ data / len(data) + 0.1 * np.eye(data.shape[1])
    best = np.linalg.solve(hessian, data.T @ labels / len(data))
    for epoch in range(100):
        shard.train(range(epoch * STEPS, (epoch + 1) * STEPS))
        off = flat(shard.weights) - best
        gaps.append(off @ hessian @ off / 2)
    assert gaps[-1] < 1e-12 < gaps[0]


@on_two_ranks
@pytest.mark.parametrize("compression", ["default", "none"])
def test_resumed_at_any_step(compression: str) -> None:
    def make() -> Shard:
        return Shard(compression=None if compression == "default" else hvd.Compression.none)

    shard, saved = make(), []
    for step in range(2 * STEPS + 2):
        file = io.BytesIO()
        torch.save([shard.weights, shard.optimizer.state_dict()], file)
        saved.append(file.getvalue())
        end = shard.train(range(step, step + 1))
    for step, content in enumerate(saved):
        again = make()
        weights, state = torch.load(io.BytesIO(content), weights_only=True)
        before = copy.deepcopy(state)
        with torch.no_grad():
            for weight, value in zip(again.weights, weights):
                weight.copy_(value)
        again.optimizer.load_state_dict(state)
        assert again.train(range(step, 2 * STEPS + 2)) == end, step
        for number, own in before["state"].items():
            assert all(torch.equal(own[key], state["state"][number][key]) for key in own if key != "step")


def test_mistakes_are_told_on_all_ranks() -> None:
    last = rt.RANK == rt.SIZE - 1
    shard = Shard()
    whole, batch = shard.closure(slice(None)), shard.closure(rows_of(0))
    with pytest.raises(QSGDError, match="begins with snapshot"):
        shard.optimizer.step(batch)
    rt.assert_all_raise(
        lambda: shard.optimizer.snapshot((lambda: None) if last else whole),
        f"rank {rt.SIZE - 1}: the closure left no gradients",
    )
    shard.optimizer.snapshot(whole)
    draws = iter(range(100))
    other = lambda: shard.closure(rows_of(next(draws)))()  # noqa: E731
    rt.assert_all_raise(lambda: shard.optimizer.step(other if last else batch), "two gradients for the same weights")
    shard = Shard()
    whole = shard.closure(slice(None))
    with torch.no_grad():
        shard.weights[0][0] += last
    rt.assert_all_raise(lambda: shard.optimizer.snapshot(whole), "hvd.broadcast_parameters")
    shard = Shard()
    whole = shard.closure(slice(None))
    shard.optimizer.param_groups[0]["lr"] += last
    rt.assert_all_raise(lambda: shard.optimizer.snapshot(whole), "lr or average differ")
    extra = [torch.nn.Parameter(torch.zeros(3))] if last else []
    other_size = QSVRG([*shard.weights, *extra], lr=0.2)
    rt.assert_all_raise(lambda: other_size.snapshot(shard.closure(slice(None))), "different numbers of weights")


@on_two_ranks
def test_arguments_and_states_that_are_refused() -> None:
    weights = Shard().weights
    with pytest.raises(QSGDError, match="lr=0 is not a positive number"):
        QSVRG(weights, lr=0)
    with pytest.raises(QSGDError, match="average=1 is neither"):
        QSVRG(weights, lr=1, average=1)  # type: ignore[arg-type]
    with pytest.raises(QSGDError, match=r"hvd\.DistributedOptimizer is not for it"):
        hvd.DistributedOptimizer(QSVRG(weights, lr=1))
    optimizer = QSVRG(weights, lr=1)
    with pytest.raises(QSGDError, match="no state of QSVRG"):
        optimizer.load_state_dict(torch.optim.SGD(weights, lr=1).state_dict())
    with pytest.raises(QSGDError, match="another kind of compression"):
        QSVRG(weights, lr=1, compression=hvd.Compression.none).load_state_dict(optimizer.state_dict())


WRONG: list[tuple[Callable[[Shard], Any], str]] = [
    (lambda s: QSVRG([{"params": s.weights, "lr": -1}], lr=1), "lr=-1 is not a positive number"),
    (lambda s: QSVRG([{"params": s.weights, "average": "no"}], lr=1), "average='no' is neither True nor False"),
    (lambda s: s.optimizer.add_param_group({"params": [], "lr": None}), "lr=None is not a positive number"),
    (lambda s: QSVRG(s.weights, lr=1, compression=5), "compression=5 is none"),
    (lambda s: QSVRG(s.weights, lr=1, compression=QSGD(bits=4)), "make it with min_size=0"),
    (lambda s: QSVRG(s.weights, lr=1, compression=QSGD), "make it with min_size=0"),
    (lambda s: s.optimizer.step(), "closure=None is no function"),
    (lambda s: s.optimizer.snapshot(3), "closure=3 is no function"),  # type: ignore[arg-type]
]


@on_two_ranks
@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=[words for _, words in WRONG])
def test_wrong_arguments(wrong: Callable[[Shard], Any], words: str) -> None:
    rt.assert_all_raise(lambda: wrong(Shard()), words)


@on_two_ranks
def test_states_that_are_no_states() -> None:
    """Whatever is missing or of other weights; the optimizer stays as it is, with a learning rate of 0, too."""
    shard = Shard()
    shard.train(range(2))
    shard.optimizer.param_groups[0]["lr"] = 0.0
    good = copy.deepcopy(shard.optimizer.state_dict())
    digest = rt.assert_replicas_equal(shard.optimizer.state[shard.weights[0]][name] for name in ("reference", "sum"))
    for where, key in [((), "state"), ((), "param_groups"), ((), "compression"), (("param_groups", 0), "average")]:
        bad = copy.deepcopy(good)
        content: Any = bad
        for name in where:
            content = content[name]
        del content[key]
        rt.assert_all_raise(lambda: shard.optimizer.load_state_dict(bad), "this")  # noqa: B023
    for key in good["state"][0]:
        bad = copy.deepcopy(good)
        del bad["state"][0][key]
        rt.assert_all_raise(lambda: shard.optimizer.load_state_dict(bad), f"no state of QSVRG: KeyError({key!r})")  # noqa: B023
    bad = copy.deepcopy(good)
    bad["state"][0]["sum"] = torch.zeros(3)
    rt.assert_all_raise(lambda: shard.optimizer.load_state_dict(bad), "is of other weights")
    bad = copy.deepcopy(good)
    bad["state"][0]["step"] += 1
    rt.assert_all_raise(lambda: shard.optimizer.load_state_dict(bad), "after different steps of the epoch: [2, 3]")
    for nothing in (None, 5, "state"):
        rt.assert_all_raise(lambda: shard.optimizer.load_state_dict(nothing), "no state of QSVRG")  # type: ignore[arg-type] # noqa: B023
    state = shard.optimizer.state[shard.weights[0]]
    assert rt.digest(state[name] for name in ("reference", "sum")) == digest
    shard.optimizer.load_state_dict(good)


def test_a_process_set_and_half_precision() -> None:
    """One rank alone is a process set, too."""
    ranks = rt.EVEN if rt.EVEN.included() else rt.ODD
    size, rank = ranks.size(), ranks.rank()
    weight = torch.nn.Parameter(torch.zeros(9, dtype=torch.bfloat16))
    optimizer = QSVRG([weight], lr=0.25, process_set=ranks)

    def backward() -> torch.Tensor:
        loss = ((weight - rank) ** 2).sum() / 2
        loss.backward()
        return loss

    for _ in range(4):
        optimizer.snapshot(backward)
        for _ in range(8):
            optimizer.step(backward)
    assert torch.allclose(weight.float(), torch.full((9,), (size - 1) / 2), atol=0.02)
