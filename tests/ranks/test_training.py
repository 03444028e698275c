"""Replicas stay equal bit for bit while they learn, and a run is what its seed says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ranktools as rt
import torch

from hvd_qsgd.torch import QSGD

STEPS = 200
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "2 bits, max": {"bits": 2},
    "4 bits, l2": {"bits": 4, "norm": "l2", "bucket_size": 64},
    "8 bits, one bucket": {"bits": 8, "bucket_size": None},
    "ternary": {"codec": "ternary", "bucket_size": 128},
    "ternary, l2, all tensors": {"codec": "ternary", "norm": "l2", "bucket_size": 32, "min_size": 0},
}


def train(models: list[torch.nn.Module], make: Callable[[int, torch.nn.Module], QSGD], steps: int) -> list[float]:
    """Several models at once, each with its optimizer and compressor: their messages travel together."""
    optimizers = [rt.wrap(model, make(k, model)) for k, model in enumerate(models)]
    for step in range(steps):
        losses = [rt.loss_of(model, step) for model in models]
        torch.stack(losses).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return [loss.item() for loss in losses]


def test_replicas_are_equal_after_200_steps() -> None:
    models = [rt.mlp() for _ in CONFIGURATIONS]
    configurations = list(CONFIGURATIONS.values())
    with torch.no_grad():
        before = rt.loss_of(models[0], 1, size=1000).item()
    train(models, lambda k, model: QSGD(named_parameters=model.named_parameters(), **configurations[k]), STEPS)
    digests = {rt.assert_replicas_equal(m.parameters(), name) for name, m in zip(CONFIGURATIONS, models)}
    assert len(digests) == len(CONFIGURATIONS)
    for name, model in zip(CONFIGURATIONS, models):
        with torch.no_grad():
            after = rt.loss_of(model, 1, size=1000).item()
        assert after < 0.8 * before, f"{name}: loss {before} before training, {after} after"


@pytest.mark.parametrize("named", [True, False])
def test_the_seed_decides(named: bool) -> None:
    def run(seeds: list[int]) -> list[str]:
        models = [rt.mlp() for _ in seeds]

        def make(k: int, model: torch.nn.Module) -> QSGD:
            names = model.named_parameters() if named else None
            return QSGD(seed=seeds[k], min_size=0, named_parameters=names)

        train(models, make, 10)
        return [rt.assert_replicas_equal(model.parameters()) for model in models]

    first, again, other, largest = run([7, 7, 8, 2**64 - 1])
    assert first == again
    assert len({first, other, largest}) == 3
    assert run([8, 7]) == [other, first]


def test_ranks_round_independently() -> None:
    """The average of equal gradients: its error is smaller than one rank's, because the ranks round differently."""
    gradient = torch.randn(200, 500, generator=rt.shared_rng(3))
    error = (rt.reduced(gradient, QSGD(4)) - gradient).square().sum()
    if rt.EVEN.included():
        fewer = rt.reduced(gradient, QSGD(4, process_set=rt.EVEN), name="fewer", process_set=rt.EVEN)
        assert error == pytest.approx(float((fewer - gradient).square().sum()) / 2, rel=0.05)
