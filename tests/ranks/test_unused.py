"""Parameters that a rank does not use in a step, and reductions that QSGD cannot be part of."""

from __future__ import annotations

from typing import Any

import horovod.torch as hvd
import pytest
import ranktools as rt
import torch

from hvd_qsgd.torch import QSGD


class Branches(torch.nn.Module):
    """Four equal layers, of which a call uses some: without names, their gradients cannot be told apart."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.branches = torch.nn.ModuleList(torch.nn.Linear(40, 40) for _ in range(4))

    def loss(self, used: list[int], step: int) -> torch.Tensor:
        x = torch.randn(8, 40, generator=rt.rng(step))
        for k in used:
            x = x + self.branches[k](x)
        return x.square().mean()


def used_by(rank: int, step: int) -> list[int]:
    """One branch each, then two each, then all in an order of their own, then rank 0 all and the others one."""
    if step % 4 == 0:
        return [(rank + step // 4) % 4]
    if step % 4 == 1:
        return [(rank + 1) % 4, rank % 4]
    if step % 4 == 2:
        return [(k + rank) % 4 for k in range(4)]
    return [0, 1, 2, 3] if rank == 0 else [3]


def test_with_names_the_gradients_are_right() -> None:
    """Without groups=: with it, stock Horovod waits for ever if ranks use different parameters."""
    model = Branches()
    compressor = QSGD(8, named_parameters=model.named_parameters())
    optimizer = rt.wrap(model, compressor)
    for step in range(8):
        used = used_by(rt.RANK, step)
        local = rt.local_gradients(model, lambda m: m.loss(used, step).backward())  # noqa: B023
        model.loss(used, step).backward()
        optimizer.synchronize()
        rt.assert_gradients_right(model, local, bits=8)
        with optimizer.skip_synchronize():
            optimizer.step()
        optimizer.zero_grad()
    rt.assert_replicas_equal(model.parameters())


def right_or_refused(model: Branches, optimizer: Any, used: list[int], step: int) -> list[tuple[str, str]]:
    """One step: either right on all ranks, or an error on all of them, and then the step is given up."""
    local = rt.local_gradients(model, lambda m: m.loss(used, step).backward())
    model.loss(used, step).backward()
    found = rt.outcomes(optimizer.synchronize)
    kinds = {kind for kind, _ in found}
    assert kinds in ({""}, {"QSGDError"}), found
    if kinds == {""}:
        rt.assert_gradients_right(model, local, bits=8)
        with optimizer.skip_synchronize():
            optimizer.step()
        optimizer.zero_grad()
    else:
        optimizer.load_state_dict(optimizer.state_dict())
        model.zero_grad()
        hvd.barrier()  # what the given-up step has left behind has ended on all ranks
    return found


@pytest.mark.parametrize("transport", ["horovod", "mpi"])
def test_else_they_are_right_or_refused_by_all(transport: str) -> None:
    """Without names; or over MPI, which matches frames by their order."""
    model = Branches()
    names = model.named_parameters() if transport == "mpi" else None
    optimizer = rt.wrap(model, QSGD(8, transport=transport, named_parameters=names))
    found = [right_or_refused(model, optimizer, used_by(rt.RANK, step), step) for step in range(8)]
    advice = "named_parameters" if transport == "horovod" else "in the same order"
    assert all(advice in text for step in found for kind, text in step if kind), found
    assert any(kind for step in found for kind, _ in step)
    # All ranks use the same parameters in the same order: right, also after such errors.
    everyone = right_or_refused(model, optimizer, [2, 0, 3, 1], 99)
    assert not any(kind for kind, _ in everyone), everyone
    rt.assert_replicas_equal(model.parameters())


@pytest.mark.parametrize("op", ["Adasum", "Min", "Max", "Product"])
def test_reductions_that_are_no_sum_are_refused(op: str) -> None:
    compressor = QSGD()
    gradient = rt.randn(40, 40)
    for _ in range(2):
        rt.assert_all_raise(lambda: rt.reduced(gradient, compressor, op=getattr(hvd, op)), "hvd.Average", op)
        rt.assert_all_raise(
            lambda: rt.reduced([gradient, gradient], compressor, op=getattr(hvd, op)), "hvd.Average", op
        )
    rt.assert_within_grid(rt.reduced(gradient, compressor), gradient)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("op", ["Adasum", "Min", "Max", "Product"])
def test_optimizers_that_do_not_sum_are_refused(op: str, named: bool) -> None:
    model = rt.mlp()
    compressor = QSGD(named_parameters=model.named_parameters() if named else None)
    optimizer = rt.wrap(model, compressor, op=getattr(hvd, op))
    rt.loss_of(model).backward()
    rt.assert_all_raise(optimizer.step, "hvd.Average", op)
