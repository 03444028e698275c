"""State that is saved and loaded, steps that are given up, settings that change, and automatic mixed precision."""

from __future__ import annotations

import copy
import pickle
import time
from typing import Any

import horovod.torch as hvd
import pytest
import ranktools as rt
import torch

from hvd_qsgd.torch import QSGD


def make(seed: int = 5, **how: Any) -> tuple[torch.nn.Module, QSGD, Any]:
    model = rt.mlp()
    compressor = QSGD(seed=seed, min_size=0, named_parameters=model.named_parameters(), **how)
    return model, compressor, rt.wrap(model, compressor, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    model, compressor, optimizer = make(bits=3, norm="l2")
    rt.train(model, optimizer, range(5))
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict(), compressor.state_dict()])
    end = rt.train(model, optimizer, range(5, 10))

    again, its_compressor, its_optimizer = make(seed=99)  # bits, norm and seed come from the state
    again.load_state_dict(saved[0])
    its_optimizer.load_state_dict(saved[1])
    its_compressor.load_state_dict(saved[2])
    assert rt.train(again, its_optimizer, range(5, 10)) == end
    assert its_compressor.state_dict() == compressor.state_dict()

    without, _, its_optimizer = make(bits=3, norm="l2")
    without.load_state_dict(saved[0])
    its_optimizer.load_state_dict(saved[1])
    assert rt.train(without, its_optimizer, range(5, 10)) != end, "the random numbers of the first steps, used again"


def test_the_state_can_be_broadcast() -> None:
    model, compressor, optimizer = make()
    if rt.RANK == 0:
        compressor.load_state_dict({**compressor.state_dict(), "step": 77})
    rt.loss_of(model, 0).backward()
    messages = rt.assert_all_raise(optimizer.step, "hvd.broadcast_object(compressor.state_dict())")
    assert all("77" in text for text in messages)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad()
    hvd.barrier()
    compressor.load_state_dict(hvd.broadcast_object(compressor.state_dict(), root_rank=0))
    rt.train(model, optimizer, range(3))
    assert compressor.state_dict()["step"] >= 80


@pytest.mark.parametrize("transport", ["horovod", "mpi"])
def test_ranks_in_different_steps_are_told(transport: str) -> None:
    compressor = QSGD(transport=transport)
    gradient = rt.randn(40, 40)
    compressor.load_state_dict({**compressor.state_dict(), "step": 10 + rt.RANK})
    for _ in range(2):
        rt.assert_all_raise(lambda: rt.reduced(gradient, compressor), "state_dict()")
    compressor.load_state_dict({**compressor.state_dict(), "step": 3})
    rt.assert_within_grid(rt.reduced(gradient, compressor), gradient)


@pytest.mark.parametrize("transport", ["horovod", "mpi"])
@pytest.mark.parametrize("named", [True, False])
def test_a_step_that_an_exception_ends(named: bool, transport: str) -> None:
    """Between backward and step, on one rank later than on the other; then training goes on."""
    model = rt.mlp()
    names = model.named_parameters() if named else None
    compressor = QSGD(8, named_parameters=names, transport=transport)
    optimizer = rt.wrap(model, compressor)
    for step in range(6):
        if step % 2:
            time.sleep(0.05 * rt.RANK)
            with pytest.raises(ZeroDivisionError) as kept:  # which holds on to all that was on its way
                backward_and_fail(model, step)
            hvd.barrier()
            if step % 4 == 1:
                del kept
            optimizer.load_state_dict(optimizer.state_dict())
            model.zero_grad()
        local = rt.local_gradients(model, lambda m: rt.loss_of(m, step).backward())  # noqa: B023
        rt.loss_of(model, step).backward()
        optimizer.step()
        rt.assert_gradients_right(model, local, bits=8)
        optimizer.zero_grad()
    rt.assert_replicas_equal(model.parameters())
    states = rt.from_all_ranks(compressor.state_dict())
    assert all(state == states[0] for state in states)


def backward_and_fail(model: torch.nn.Module, step: int) -> None:
    rt.loss_of(model, step).backward()
    raise ZeroDivisionError


@pytest.mark.parametrize("transport", ["horovod", "mpi"])
def test_what_was_compressed_and_thrown_away(transport: str) -> None:
    """As when something raises between compress and the reduction; the frames are on their way all the same."""
    compressor = QSGD(transport=transport)
    gradient = rt.randn(200, 200)
    for k in range(20):
        given_up = [tuple(compressor.compress(gradient)) for _ in range(3)]
        if k % 2:
            del given_up
        result = rt.reduced(gradient, compressor)
        rt.assert_replicas_equal([result])
    rt.assert_within_grid(result, gradient)


@pytest.mark.parametrize("looked_into", [False, True])
def test_a_given_up_step_that_is_still_held(looked_into: bool) -> None:
    """The same parameter sets out again: that is another step, with random numbers of its own."""
    parameter = torch.nn.Parameter(torch.zeros(40, 40))
    parameter.grad = rt.randn(40, 40)
    compressor = QSGD(named_parameters=[("p", parameter)])
    held = compressor.compress(parameter.grad)
    held = tuple(held) if looked_into else held  # then it has set out
    token, context = compressor.compress(parameter.grad)
    assert compressor.stats().steps == 2
    reduced = rt.reduced(token, hvd.Compression.none)
    result = compressor.decompress(reduced, context)
    rt.assert_within_grid(result, parameter.grad)
    rt.assert_all_raise(lambda: compressor.decompress(reduced, held[1]), "twice")
    assert compressor.state_dict()["step"] == 2
    first = rt.reduced(parameter.grad, QSGD(named_parameters=[("p", parameter)]))
    assert not torch.equal(result, first)


@pytest.mark.parametrize("named", [False, True])
def test_a_held_context_stops_no_random_numbers(named: bool) -> None:
    """Something is on its way for ever; the other tensors go on, each step with numbers of its own."""
    parameters = [torch.nn.Parameter(torch.zeros(40, 40)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = rt.randn(40, 40)
    names = [(str(k), parameter) for k, parameter in enumerate(parameters)]
    compressor = QSGD(named_parameters=names if named else None)
    held = tuple(compressor.compress(parameters[0].grad))
    digests = {rt.digest([rt.reduced(parameters[1].grad, compressor)]) for _ in range(20)}
    assert len(digests) == 20
    del held


def test_a_step_given_up_while_its_tokens_are_being_reduced() -> None:
    """Horovod reduces tokens in place: the next step's are others, and no gradient is counted twice."""
    weights = [torch.nn.Parameter(torch.zeros(40, 40)) for _ in range(2)]
    compressor = QSGD(bits=8)
    optimizers = [
        hvd.DistributedOptimizer(
            torch.optim.SGD([weight], lr=1.0), [(f"given up {k}", weight)], compression=compressor, op=hvd.Sum
        )
        for k, weight in enumerate(weights)
    ]
    for _ in range(100):
        weights[0].sum().backward()
        optimizers[0].load_state_dict(optimizers[0].state_dict())
        optimizers[1].zero_grad()
        weights[1].sum().backward()
        optimizers[1].synchronize()
        assert torch.equal(weights[1].grad, torch.full((40, 40), float(rt.SIZE)))
        with optimizers[1].skip_synchronize():
            optimizers[1].step()


def test_copies_go_on_from_the_same_state() -> None:
    compressor = QSGD(bits=3, seed=5, min_size=0, norm="l2")
    gradient = rt.randn(40, 40)
    rt.reduced(gradient, compressor)
    copies = [copy.deepcopy(compressor), pickle.loads(pickle.dumps(compressor))]
    results = {rt.digest([rt.reduced(gradient, each)]) for each in (compressor, *copies)}
    assert len(results) == 1


def test_loading_a_state_while_frames_are_on_their_way() -> None:
    """A rank that is ahead loads the state while the others have not yet sent theirs."""
    compressor = QSGD()
    gradient = rt.randn(40, 40)
    expected = rt.digest([rt.reduced(gradient, QSGD())])
    state = compressor.state_dict()
    if rt.RANK:
        time.sleep(0.5)
    on_its_way = tuple(compressor.compress(gradient))
    compressor.load_state_dict(state)
    result = rt.reduced(gradient, compressor)
    assert rt.digest([result]) == expected
    with pytest.raises(Exception, match="state was loaded"):
        compressor.decompress(*on_its_way)


def test_decompressing_twice_is_refused() -> None:
    compressor = QSGD()
    token, context = compressor.compress(rt.randn(40, 40))
    reduced = rt.reduced(token, hvd.Compression.none)
    compressor.decompress(reduced, context)
    rt.assert_all_raise(lambda: compressor.decompress(reduced, context), "decompressed twice")


def test_settings_change_between_steps() -> None:
    model = rt.mlp()
    compressor = QSGD(2, named_parameters=model.named_parameters())
    optimizer = rt.wrap(model, compressor)
    settings: list[dict[str, Any]] = [
        {"bits": 8},
        {"bits": 3, "bucket_size": None},
        {"norm": "l2", "bits": 5, "bucket_size": 64},
        {"codec": "ternary", "norm": "max"},
        {"codec": "packed", "levels": 100, "bucket_size": 512},
    ]
    for step, change in enumerate(settings):
        local = rt.local_gradients(model, lambda m: rt.loss_of(m, step).backward())  # noqa: B023
        compressor.change(**change)
        state = compressor.state_dict()
        rt.loss_of(model, step).backward()
        optimizer.step()
        how = {name: state[name] for name in ("levels", "bucket_size", "norm")}
        rt.assert_gradients_right(model, local, **how)
        optimizer.zero_grad()
    rt.assert_replicas_equal(model.parameters())
    # In the middle of a step: what is on its way keeps its format.
    gradient = rt.randn(40, 40)
    token, context = compressor.compress(gradient)
    compressor.change(bits=2)
    result = compressor.decompress(rt.reduced(token, hvd.Compression.none), context)
    rt.assert_within_grid(result, gradient, levels=100)


@pytest.mark.parametrize("transport", ["horovod", "mpi"])
def test_ranks_may_differ_in_their_settings(transport: str) -> None:
    mine: dict[str, Any] = [
        {"bits": 2, "bucket_size": 100},
        {"levels": 1, "codec": "ternary", "norm": "l2"},
        {"bits": 8, "bucket_size": None},
        {"levels": 5, "norm": "l2", "bucket_size": 64},
    ][rt.RANK]
    model = rt.mlp()
    compressor = QSGD(**mine, seed=rt.RANK, named_parameters=model.named_parameters(), transport=transport)
    optimizer = rt.wrap(model, compressor)
    for step in range(4):
        local = rt.local_gradients(model, lambda m: rt.loss_of(m, step).backward())  # noqa: B023
        rt.loss_of(model, step).backward()
        optimizer.step()
        rt.assert_gradients_right(model, local, levels=1, norm="l2", bucket_size=None)  # looser than any of them
        optimizer.zero_grad()
        if step == 2 and rt.RANK == 1:
            compressor.change(codec="packed", bits=6)
    rt.assert_replicas_equal(model.parameters())


def test_an_infinite_gradient_under_grad_scaler() -> None:
    """Inf on the last rank alone: all skip the step and halve the scale."""
    model = rt.mlp()
    optimizer = rt.wrap(model, QSGD(8, named_parameters=model.named_parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    scales = [scaler.get_scale()]
    for step in range(5):
        before = rt.digest(model.parameters())
        loss = rt.loss_of(model, step)
        bad = step in (1, 4)
        if bad and rt.RANK == rt.SIZE - 1:
            loss = loss + model[0].weight[3, 7] * 3e38 * 10
        scaler.scale(loss).backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        if bad:
            assert model[0].weight.grad.isnan().any()
            assert not model[2].weight.grad.isnan().any()
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert (rt.digest(model.parameters()) == before) == bad
        scales.append(scaler.get_scale())
    assert scales == [2.0**10, 2.0**10, 2.0**9, 2.0**9, 2.0**10, 2.0**9]
    assert rt.from_all_ranks(scales) == [scales] * rt.SIZE
    rt.assert_replicas_equal(model.parameters())
