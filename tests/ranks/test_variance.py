"""`variance=` and `codec="auto"`: levels and codecs differ between ranks, results do not."""

from __future__ import annotations

import copy
from typing import Any

import horovod.torch as hvd
import numpy as np
import pytest
import ranktools as rt
import torch

import hvd_qsgd
from hvd_qsgd.steps import tensor_id
from hvd_qsgd.torch import QSGD


class Frames:
    """Keeps the frames that this rank sends."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.sent: list[bytes] = []
        start = hvd.allgather_async

        def allgather_async(words: torch.Tensor, **how: Any) -> Any:
            self.sent.append(words.numpy().tobytes())
            return start(words, **how)

        patch.setattr(hvd, "allgather_async", allgather_async)


def gradient(seed: int, kind: int) -> torch.Tensor:
    """Dense with all magnitudes alike, or mostly zeros."""
    values = torch.rand(120, 100, generator=rt.rng(seed)) * 2 - 1
    return values if kind == 0 else values * (torch.rand(120, 100, generator=rt.rng(seed, 1)) < 0.05)


@pytest.mark.parametrize("transport", ["horovod", "mpi"])
@pytest.mark.parametrize(
    "how", [{"variance": 0.1}, {"variance": 0.3, "norm": "max", "bucket_size": 64}, {"levels": 127, "codec": "auto"}],
    ids=str,
)  # fmt: skip
def test_ranks_differ_and_results_do_not(how: dict[str, Any], transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"differ{how}{transport}"
    compressor, frames = QSGD(name=name, transport=transport, **how), Frames(monkeypatch)
    for step in range(3):
        mine = gradient(step, kind=rt.RANK % 2)
        result = rt.reduced(mine, compressor)
        where = {"tensor": tensor_id(name, "#0"), "step": step}
        everyone = rt.from_all_ranks(mine.numpy())
        alone = [hvd_qsgd.encode(each, rank=rank, **how, **where) for rank, each in enumerate(everyone)]
        expected = hvd_qsgd.decode_sum(alone, 1 / rt.SIZE)
        assert np.array_equal(result.numpy().ravel(), expected)
        rt.assert_replicas_equal([result])
    if transport == "horovod":
        headers = rt.from_all_ranks(hvd_qsgd.inspect(frames.sent[-1]))
        assert len({(header.levels, header.codec) for header in headers}) > 1


def test_training_meets_the_variance() -> None:
    for variance in (0.03, 0.3):
        model = rt.mlp(hidden=200)
        compressor = QSGD(variance=variance, named_parameters=model.named_parameters(), measure_error=True)
        optimizer = rt.wrap(model, compressor)
        for step in range(10):
            rt.loss_of(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()
        rt.assert_replicas_equal(model.parameters())
        stats = compressor.stats()
        assert stats.relative_error == pytest.approx(variance, rel=0.1)  # some thousand random numbers
        assert stats.frames_resized <= 5


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    """Though the codec is chosen anew: it changes no value."""

    def make(**how: Any) -> tuple[Any, QSGD, Any]:
        model = rt.mlp()
        compressor = QSGD(min_size=0, named_parameters=model.named_parameters(), **how)
        return model, compressor, rt.wrap(model, compressor)

    model, compressor, optimizer = make(variance=0.2)
    rt.train(model, optimizer, range(5))
    saved = copy.deepcopy([model.state_dict(), compressor.state_dict()])
    assert saved[1]["variance"] == 0.2
    assert saved[1]["levels"] is None
    end = rt.train(model, optimizer, range(5, 10))
    again, its_compressor, its_optimizer = make(bits=4)
    again.load_state_dict(saved[0])
    its_compressor.load_state_dict(saved[1])
    assert rt.train(again, its_optimizer, range(5, 10)) == end
    assert its_compressor.state_dict() == compressor.state_dict()
    assert repr(its_compressor) == "QSGD(variance=0.2, bucket_size=None, norm='l2', codec='auto')"
    assert its_compressor.levels is None
    assert copy.deepcopy(compressor).state_dict() == compressor.state_dict()


def test_the_variance_changes() -> None:
    """On ranks one after the other: frames say how they were made."""
    compressor, mine = QSGD(variance=0.5, measure_error=True), gradient(0, 0)
    for step in range(2 * rt.SIZE + 2):
        if step == 2 * rt.RANK + 1:
            assert compressor.stats().relative_error == pytest.approx(0.5, rel=0.1)
            compressor.reset_stats()
            compressor.change(variance=0.05)
        rt.assert_replicas_equal([rt.reduced(mine, compressor)])
    assert compressor.stats().relative_error == pytest.approx(0.05, rel=0.1)
    compressor.change(bits=8, norm="max", bucket_size=512)
    assert compressor.levels == 127
    rt.assert_within_grid(rt.reduced(mine, compressor), mine, bits=8)


def test_what_is_not_finite() -> None:
    compressor = QSGD(variance=0.1)
    for value in (float("nan"), float("inf")):
        mine = gradient(0, 0)
        if rt.RANK == 1:
            mine[3, 4] = value
        assert rt.reduced(mine, compressor).isnan().all()
    assert (rt.reduced(torch.zeros(50, 50), compressor) == 0).all()
