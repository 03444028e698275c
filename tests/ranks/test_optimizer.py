"""`hvd.DistributedOptimizer` with QSGD, in all the ways in which Horovod lets one use it."""

from __future__ import annotations

import itertools
from typing import Any

import horovod.torch as hvd
import pytest
import ranktools as rt
import torch

from hvd_qsgd.torch import QSGD


def check_steps(
    model: torch.nn.Module, optimizer: Any, steps: int = 3, passes: int = 1, max_error: float | None = 0.02, **how: Any
) -> None:
    """Train, and look at the gradients of every step and at the weights in the end."""
    how.setdefault("bits", 8)
    for step in range(steps):

        def backward(m: torch.nn.Module, step: int = step) -> None:
            for k in range(passes):
                rt.loss_of(m, step, k).backward()

        local = rt.local_gradients(model, backward)
        backward(model)
        optimizer.synchronize()
        rt.assert_gradients_right(model, local, max_error=max_error, **how)
        with optimizer.skip_synchronize():
            optimizer.step()
        optimizer.zero_grad()
    rt.assert_replicas_equal(model.parameters())


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, {}),
        ({"groups": 2}, {}),
        ({"groups": "list"}, {}),
        ({"backward_passes_per_step": 2}, {"passes": 2}),
        ({"backward_passes_per_step": 2, "groups": 1}, {"passes": 2}),
        ({"op": hvd.Sum}, {"average": False}),
        ({"gradient_predivide_factor": 4.0}, {}),
        ({"named_parameters": None}, {}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_options(options: dict[str, Any], how: dict[str, Any], named: bool) -> None:
    model = rt.mlp()
    if options.get("groups") == "list":
        options = {**options, "groups": [[model[0].weight, model[2].bias], [model[2].weight]]}
    compressor = QSGD(8, named_parameters=model.named_parameters() if named else None)
    check_steps(model, rt.wrap(model, compressor, **options), **how)
    stats = compressor.stats()
    assert (stats.steps, stats.tensors_compressed, stats.tensors_skipped) == (3, 3, 9)


def test_the_class_itself() -> None:
    model = rt.mlp()
    check_steps(model, rt.wrap(model, QSGD), bits=4, max_error=None)


def test_everything_compressed_by_number_or_by_name() -> None:
    for named in (True, False):
        model = rt.mlp()
        names = model.named_parameters() if named else None
        compressor = QSGD(8, min_size=0, named_parameters=names)
        check_steps(model, rt.wrap(model, compressor), min_size=0)
        assert compressor.stats().tensors_skipped == 0


@pytest.mark.parametrize(
    ("skip", "skipped"),
    [("0.*", 2), (["*.bias", "2.weight"], 3), (lambda name, gradient: name == "2.weight", 1), ([], 0)],
    ids=["pattern", "patterns", "function", "nothing"],
)
def test_skip(skip: Any, skipped: int) -> None:
    model = rt.mlp()
    compressor = QSGD(min_size=0, named_parameters=model.named_parameters(), skip=skip)
    optimizer = rt.wrap(model, compressor)
    local = rt.local_gradients(model, lambda m: rt.loss_of(m).backward())
    rt.loss_of(model).backward()
    optimizer.step()
    stats = compressor.stats()
    assert (stats.tensors_skipped, stats.tensors_compressed) == (skipped, 4 - skipped)
    for name, p in model.named_parameters():
        if (name, skip) in (("0.weight", "0.*"), ("2.weight", ["*.bias", "2.weight"])):
            rt.assert_within_grid(p.grad, local[name], bits=60)


@pytest.mark.parametrize("named", [True, False])
def test_process_set(named: bool) -> None:
    """Two halves of the ranks train apart, at the same time."""
    mine = rt.EVEN if rt.EVEN.included() else rt.ODD
    model = rt.mlp()
    compressor = QSGD(8, process_set=mine, named_parameters=model.named_parameters() if named else None)
    optimizer = rt.wrap(model, compressor, process_set=mine)
    for step in range(3):
        rt.loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    digests = rt.from_all_ranks(rt.digest(model.parameters()))
    assert len({digests[rank] for rank in rt.EVEN.ranks}) == 1
    assert len({digests[rank] for rank in rt.ODD.ranks}) == 1
    assert digests[0] != digests[1]


def test_only_the_optimizer_has_a_process_set() -> None:
    """Its ranks are told, and do not wait for the frames of the others."""
    model = rt.mlp()
    compressor = QSGD(name="everyone", named_parameters=model.named_parameters())
    optimizer = rt.wrap(model, compressor, process_set=rt.ODD)
    rt.loss_of(model).backward()
    found = rt.outcomes(optimizer.step)
    for rank, (kind, text) in enumerate(found):
        if rank in rt.ODD.ranks:
            assert kind == "QSGDError", found
            assert "process set" in text
            assert "'0.weight'" in text
        else:
            assert not kind, found
    if not rt.ODD.included():  # let their allgather end
        tuple(compressor.compress(model[0].weight.grad))


def test_only_the_compressor_has_a_process_set() -> None:
    model = rt.mlp()
    compressor = QSGD(process_set=rt.ODD, named_parameters=model.named_parameters())
    optimizer = rt.wrap(model, compressor)
    if rt.ODD.included():
        rt.loss_of(model).backward()
    else:  # are told before anything is sent
        with pytest.raises(Exception, match="not in"):
            rt.loss_of(model).backward()
    # The others' token waits for ever, as with stock Horovod when a rank raises: it is not waited for here.
    del optimizer


def test_two_compressors_at_once() -> None:
    models = [rt.mlp(seed=0), rt.mlp(seed=1, hidden=56)]
    compressors = [QSGD(8), QSGD(2, norm="l2", named_parameters=models[1].named_parameters())]
    optimizers = [rt.wrap(model, compressor) for model, compressor in zip(models, compressors)]
    for step in range(4):
        local = [rt.local_gradients(model, lambda m: rt.loss_of(m, step).backward()) for model in models]  # noqa: B023
        for model in models if step % 2 else reversed(models):
            rt.loss_of(model, step).backward()
        for optimizer in optimizers if step < 2 else reversed(optimizers):
            optimizer.step()
        rt.assert_gradients_right(models[0], local[0], bits=8)
        rt.assert_gradients_right(models[1], local[1], bits=2, norm="l2")
        for optimizer in optimizers:
            optimizer.zero_grad()
    assert [compressor.stats().steps for compressor in compressors] == [4, 4]
    rt.assert_replicas_equal(itertools.chain(models[0].parameters(), models[1].parameters()))


def test_one_compressor_for_two_optimizers() -> None:
    models = [rt.mlp(seed=0), rt.mlp(seed=1, hidden=56)]
    compressor = QSGD(8)
    optimizers = [rt.wrap(model, compressor) for model in models]
    for step in range(3):
        local = [rt.local_gradients(model, lambda m: rt.loss_of(m, step).backward()) for model in models]  # noqa: B023
        for model, optimizer in zip(models, optimizers):  # as a GAN's
            rt.loss_of(model, step).backward()
            optimizer.step()
        for model, gradients in zip(models, local):
            rt.assert_gradients_right(model, gradients, bits=8)
        for optimizer in optimizers:
            optimizer.zero_grad()
    assert compressor.stats().steps == 6
    for model in models:  # both on their way at once
        rt.loss_of(model, 9).backward()
    for optimizer in optimizers:
        optimizer.step()
    rt.assert_replicas_equal(itertools.chain(models[0].parameters(), models[1].parameters()))


def test_a_given_name_is_taken() -> None:
    first, second = QSGD(name="taken"), QSGD(name="taken")
    gradient = rt.randn(40, 40)
    rt.reduced(gradient, first)
    rt.assert_all_raise(lambda: rt.reduced(gradient, second), "'taken'")
    del first
    rt.reduced(gradient, second)


def test_frozen_parameters() -> None:
    model = rt.mlp()
    model[2].weight.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    before = rt.digest([model[2].weight, model[0].bias])
    check_steps(model, rt.wrap(model, QSGD(8, min_size=0, named_parameters=model.named_parameters())), min_size=0)
    assert rt.digest([model[2].weight, model[0].bias]) == before


@pytest.mark.parametrize("groups", [None, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_dtypes(dtype: torch.dtype, groups: int | None) -> None:
    model = rt.mlp().to(dtype)
    check_steps(model, rt.wrap(model, QSGD(8, named_parameters=model.named_parameters()), groups=groups))
    assert all(p.dtype is dtype and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("groups", [None, 2])
def test_a_model_of_mixed_dtypes(groups: int | None) -> None:
    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(
                torch.nn.Linear(40, 40, dtype=dtype)
                for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float16)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x.to(layer.weight.dtype))
            return x

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mixed()
    check_steps(model, rt.wrap(model, QSGD(8), groups=groups))


def test_gradients_of_any_layout() -> None:
    class Layouts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transposed = torch.nn.Parameter(torch.randn(48, 40, generator=rt.shared_rng(1)).t())
            self.conv = torch.nn.Conv2d(8, 20, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            images = torch.nn.functional.linear(x, self.transposed).view(-1, 8, 1, 5).repeat(1, 1, 5, 1)
            return self.conv(images.contiguous(memory_format=torch.channels_last)).mean((2, 3))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Layouts().to(memory_format=torch.channels_last)
    rt.loss_of(model).backward()
    assert not model.transposed.grad.is_contiguous()
    assert not model.conv.weight.grad.is_contiguous()
    model.zero_grad()
    check_steps(model, rt.wrap(model, QSGD(8, named_parameters=model.named_parameters())))


class Words(torch.nn.Module):
    """An embedding with sparse gradients under a linear layer; ranks use different words."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding = torch.nn.Embedding(60, 32, sparse=True)
            self.linear = torch.nn.Linear(32, 40)

    def loss(self, step: int) -> torch.Tensor:
        words = torch.randint(0, 60, (25,), generator=rt.rng(step))
        return self.linear(self.embedding(words)).square().mean()


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("sparse_as_dense", [True, False])
def test_sparse_gradients(sparse_as_dense: bool, named: bool) -> None:
    model = Words()
    compressor = QSGD(8, named_parameters=model.named_parameters() if named else None)
    optimizer = rt.wrap(model, compressor, sparse_as_dense=sparse_as_dense)
    for step in range(3):
        local = rt.local_gradients(model, lambda m: m.loss(step).backward())  # noqa: B023
        model.loss(step).backward()
        optimizer.synchronize()
        bits = 8 if sparse_as_dense else 60
        rt.assert_within_grid(model.embedding.weight.grad.to_dense(), local["embedding.weight"].to_dense(), bits=bits)
        rt.assert_within_grid(model.linear.weight.grad, local["linear.weight"], bits=8)
        with optimizer.skip_synchronize():
            optimizer.step()
        optimizer.zero_grad()
    rt.assert_replicas_equal(model.parameters())


def test_clipping() -> None:
    model = rt.mlp()
    optimizer = rt.wrap(model, QSGD(4, named_parameters=model.named_parameters()))
    for step in range(5):
        rt.loss_of(model, step).backward()
        optimizer.synchronize()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        assert len(set(rt.from_all_ranks(norm.item()))) == 1
        assert norm > 0.05
        clipped = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        assert clipped == pytest.approx(0.05, rel=1e-3)
        with optimizer.skip_synchronize():
            optimizer.step()
        optimizer.zero_grad()
    rt.assert_replicas_equal(model.parameters())


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.RMSprop], ids=lambda make: make.__name__)
def test_optimizers_with_state(make: Any) -> None:
    model = rt.mlp()
    optimizer = rt.wrap(model, QSGD(4), make(model.parameters(), lr=1e-2))
    for step in range(5):

        def closure(step: int = step) -> torch.Tensor:
            return rt.loss_of(model, step)

        closure().backward()
        optimizer.step()
        optimizer.zero_grad()
    rt.assert_replicas_equal(model.parameters())


def test_steps_without_zero_grad_and_gradients_that_stay_in_place() -> None:
    """A gradient that is added to, in the same tensor, from step to step; as with zero_grad(set_to_none=False)."""
    model = rt.mlp()
    optimizer = rt.wrap(model, QSGD(8, named_parameters=model.named_parameters()))
    for step in range(3):
        for p in model.parameters():
            if p.grad is not None:
                p.grad.zero_()
        local = rt.local_gradients(model, lambda m: rt.loss_of(m, step).backward())  # noqa: B023
        rt.loss_of(model, step).backward()
        optimizer.step()
        rt.assert_gradients_right(model, local, bits=8)


def test_gradient_accumulation_by_hand() -> None:
    """Backward passes of which only the last is followed by a step, with backward_passes_per_step that says so."""
    model = rt.mlp()
    compressor = QSGD(8, named_parameters=model.named_parameters())
    optimizer = rt.wrap(model, compressor, backward_passes_per_step=3)
    for step in range(2):
        local = rt.local_gradients(model, lambda m: rt.loss_of(m, step).backward())  # noqa: B023
        rt.loss_of(model, step).backward()
        optimizer.step()  # early: fewer passes than announced
        rt.assert_gradients_right(model, local, bits=8)
        optimizer.zero_grad()
    assert compressor.stats().steps == 2
