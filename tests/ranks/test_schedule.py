"""Schedules: ranks agree on the levels of every step, whatever their gradients are, and budgets are kept."""

from __future__ import annotations

import copy
import json
from typing import Any

import horovod.torch as hvd
import pytest
import ranktools as rt
import torch
from rankcommon import on_two_ranks

from hvd_qsgd.schedule import DQSGD, Budget, Constant, Piecewise, Schedule
from hvd_qsgd.torch import QSGD

STEPS = 24


class Levels:
    """The levels, by tensor, of every frame that this rank sends."""

    def __init__(self, compressor: QSGD) -> None:
        self.of_frames: list[tuple[int, int]] = []
        core = compressor._core
        encode = core.encode

        def watched(ticket: Any, *arguments: Any) -> Any:
            frame = encode(ticket, *arguments)
            self.of_frames.append((ticket.slot.spec.tensor, ticket.slot.spec.levels))
            return frame

        core.encode = watched  # type: ignore[method-assign]

    def assert_equal_on_all_ranks(self) -> None:
        mine, self.of_frames = sorted(self.of_frames), []
        assert mine
        everyone = rt.from_all_ranks(mine)
        assert all(theirs == mine for theirs in everyone), everyone


def make(schedule: Schedule | None, **how: Any) -> tuple[Any, QSGD, Any]:
    model = rt.mlp(hidden=60)
    compressor = QSGD(min_size=0, schedule=schedule, named_parameters=model.named_parameters(), **how)
    return model, compressor, rt.wrap(model, compressor, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))


SETTINGS: list[dict[str, Any]] = [
    {"schedule": Budget(4.6, STEPS)},
    {"schedule": Budget(4.2, STEPS, 0.95), "codec": "rans", "norm": "l2", "bucket_size": None},
    {"schedule": Budget(4.4, STEPS, 0.97, allocation="tensor"), "codec": "auto"},
    {"schedule": Budget(5.0, STEPS, floor=2.0), "codec": "elias-sparse", "error_feedback": True},
    {"schedule": DQSGD(60.0, 0.9, STEPS), "codec": "elias-dense"},
    {"schedule": Piecewise({0: 2, 9: 5})},
    {"schedule": Constant(levels=9)},
]  # fmt: skip


def scaled(model: Any, factor: float) -> torch.Tensor:
    return factor * rt.loss_of(model, 7)


@pytest.mark.parametrize("how", SETTINGS, ids=str)
def test_ranks_agree(how: dict[str, Any]) -> None:
    """Though their gradients differ a hundredfold, one has a NaN in a step, one leaves parameters out in another."""
    model, compressor, optimizer = make(**how)
    levels = Levels(compressor)
    for step in range(12):
        loss = scaled(model, 100.0 if step % rt.SIZE == rt.RANK else 1.0)
        if step == 8 and rt.RANK == 0:
            loss = model[0].weight.square().sum()  # the others' parameters are unused here
        loss.backward()
        if step == 5 and rt.RANK == 1:
            model[2].weight.grad[1, 2] = float("nan")
        optimizer.synchronize()
        if step == 5:
            optimizer.zero_grad()
        with optimizer.skip_synchronize():
            optimizer.step()
        optimizer.zero_grad()
        levels.assert_equal_on_all_ranks()
    rt.assert_replicas_equal(model.parameters())
    states = rt.from_all_ranks(json.dumps(compressor._core.state()))
    assert len(set(states)) == 1
    if how["schedule"].needs_frames:
        assert compressor._core.state()["schedule"]["progress"]["norm"] is not None


@pytest.mark.parametrize(
    ("how", "tolerance"), [(SETTINGS[0], 0.01), (SETTINGS[1], 0.01), (SETTINGS[2], 0.02)], ids=str
)  # fmt: skip
def test_budgets_are_kept(how: dict[str, Any], tolerance: float) -> None:
    """With one rank's gradients a hundred times as large in the middle, and with a learning rate that falls."""
    model, compressor, optimizer = make(**{**how, "schedule": Budget(how["schedule"].bits_per_coordinate, 60)})
    rates = torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.3)
    for step in range(60):
        scaled(model, 100.0 if 20 < step < 25 and rt.RANK == 0 else 1.0).backward()
        torch.nn.utils.clip_grad_value_(model.parameters(), 100.0)
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
    spent = rt.from_all_ranks(compressor.stats().bits_per_coordinate)
    assert sum(spent) / rt.SIZE == pytest.approx(how["schedule"].bits_per_coordinate, rel=tolerance)


def test_a_step_is_a_reduction() -> None:
    """With backward_passes_per_step: of the optimizer."""
    model = rt.mlp(hidden=60)
    compressor = QSGD(min_size=0, schedule=Piecewise({0: 2, 2: 5}), named_parameters=model.named_parameters())
    optimizer = rt.wrap(model, compressor, backward_passes_per_step=2)
    levels = []
    for step in range(4):
        for part in range(2):
            rt.loss_of(model, step, part).backward()
        optimizer.step()
        optimizer.zero_grad()
        levels.append(compressor.levels)
    assert levels == [1, 1, 15, 15]
    assert compressor.state_dict()["schedule"]["progress"]["step"] == 4


@on_two_ranks
@pytest.mark.parametrize("how", SETTINGS[:5], ids=str)
def test_a_resumed_run_is_the_uninterrupted_one(how: dict[str, Any]) -> None:
    """Wherever it is stopped."""
    model, compressor, optimizer = make(**how)
    saved = []
    for step in range(9):
        if step in (0, 1, 4):
            saved.append(copy.deepcopy([step, model.state_dict(), optimizer.state_dict(), compressor.state_dict()]))
        end = rt.train(model, optimizer, range(step, step + 1))
    for step, weights, momenta, state in saved:
        again, its_compressor, its_optimizer = make(None, **{k: v for k, v in how.items() if k == "error_feedback"})
        again.load_state_dict(weights)
        its_optimizer.load_state_dict(momenta)
        its_compressor.load_state_dict(state)
        assert rt.train(again, its_optimizer, range(step, 9)) == end
        if how["schedule"].counts_bits:  # else lengths, which then do not matter, depend on those before
            assert its_compressor._core.state() == compressor._core.state()
    assert copy.deepcopy(compressor)._core.state() == compressor._core.state()


def test_changes() -> None:
    """A schedule begins anew where it is given, goes on when others change, and ends with bits=."""
    compressor = QSGD(bits=4, min_size=0)
    gradient = rt.randn(50, 50)

    def go() -> Any:
        rt.assert_replicas_equal([rt.reduced(gradient, compressor)])
        return compressor.levels

    assert go() == 7
    compressor.change(schedule=Piecewise({0: 2, 2: 3}))
    assert [go(), go(), go()] == [1, 1, 3]
    compressor.change(norm="l2", schedule=Budget(3.5, 20))
    assert len({go() for _ in range(5)}) > 1
    compressor.change(codec="rans")
    assert compressor._core.state()["schedule"]["progress"]["step"] == 5
    go()
    compressor.change(bits=3)
    assert go() == 3
    assert "schedule" not in compressor.state_dict()
    assert repr(QSGD(schedule=Constant(4))).startswith("QSGD(schedule=Constant(bits=4, levels=None), bucket_size=512")


@pytest.mark.parametrize(
    "others", [None, Budget(4.5, STEPS), Budget(4.0, STEPS, 0.9), DQSGD(3.0, 0.9, STEPS), Constant(4)], ids=str
)
def test_schedules_differ(others: Schedule | None) -> None:
    """From the beginning, or from a change on; when they are the same again, all is well."""
    gradient, mine = rt.randn(40, 40), Budget(4.0, STEPS)
    compressor = QSGD(schedule=mine if rt.RANK == 1 else others)
    rt.assert_all_raise(lambda: rt.reduced(gradient, compressor), "schedule differs between ranks")
    compressor.change(schedule=mine)
    rt.assert_within_grid(rt.reduced(gradient, compressor), gradient, bits=2)
    compressor.change(schedule=others if rt.RANK == 0 else Budget(4, STEPS))
    rt.assert_all_raise(lambda: rt.reduced(gradient, compressor), "schedule differs between ranks")


def test_a_step_that_is_given_up() -> None:
    """It counts nothing, on no rank."""
    compressor = QSGD(schedule=Budget(3.5, 20), min_size=0)
    gradient = rt.randn(40, 40)
    for _ in range(3):
        rt.reduced(gradient, compressor)
    before = compressor._core.state()["schedule"]["progress"]
    _, context = compressor.compress(gradient)
    hvd.barrier()
    del context
    after = compressor._core.state()["schedule"]["progress"]
    assert after == {**before, "step": before["step"] + 1}
    rt.reduced(gradient, compressor)
    assert len(set(rt.from_all_ranks(compressor.levels))) == 1
