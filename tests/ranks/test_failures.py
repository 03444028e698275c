"""What goes wrong on one rank is told to all: nobody waits, nobody goes on with something else than the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import horovod.torch as hvd
import pytest
import ranktools as rt
import torch

from hvd_qsgd import native, torch_cpu
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.torch import QSGD

Failing = Callable[..., Any]


def fails_once(original: Failing, error: Exception) -> Failing:
    """``original``, whose first call raises."""
    calls = []

    def function(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise error
        return original(*args)

    return function


@pytest.mark.parametrize("transport", ["horovod", "mpi"])
@pytest.mark.parametrize("measure_error", [False, True])
def test_a_rank_that_cannot_encode(monkeypatch: pytest.MonkeyPatch, measure_error: bool, transport: str) -> None:
    compressor = QSGD(transport=transport, measure_error=measure_error)
    gradient = rt.randn(60, 60)
    rt.reduced(gradient, compressor)
    if rt.RANK == 1:
        monkeypatch.setattr(native, "encode", fails_once(native.encode, QSGDError("the dog ate it")))
    messages = rt.assert_all_raise(lambda: rt.reduced(gradient, compressor), "rank 1", "the dog ate it")
    assert len(set(messages)) == 1
    rt.assert_within_grid(rt.reduced(gradient, compressor), gradient)  # and all go on together


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_a_rank_that_has_no_memory_for_its_frame(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    """PyTorch says RuntimeError."""
    compressor = QSGD()
    gradient = rt.randn(60, 60)
    if rt.RANK == 1:
        allocate = fails_once(torch_cpu.allocate_frame, error("DefaultCPUAllocator: can't allocate memory"))
        monkeypatch.setattr(torch_cpu, "allocate_frame", allocate)
    rt.assert_all_raise(lambda: rt.reduced(gradient, compressor), "rank 1", "can't allocate memory")
    rt.assert_within_grid(rt.reduced(gradient, compressor), gradient)


def test_a_rank_that_has_one_of_a_group_elsewhere() -> None:
    """On a device that cannot be read."""
    compressor, gradients = QSGD(), [rt.randn(60, 60, seed=k) for k in range(3)]
    elsewhere = [gradients[0], gradients[1].to("meta" if rt.RANK == 1 else "cpu"), gradients[2]]
    rt.assert_all_raise(lambda: rt.reduced(elsewhere, compressor), "rank 1 could not encode tensor '#1'", "on meta")
    for result, gradient in zip(rt.reduced(gradients, compressor), gradients):
        rt.assert_within_grid(result, gradient)


def test_a_rank_that_cannot_encode_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model = rt.mlp()
    compressor = QSGD(8, min_size=0, named_parameters=model.named_parameters())
    optimizer = rt.wrap(model, compressor)
    if rt.RANK == rt.SIZE - 1:
        monkeypatch.setattr(native, "encode", fails_once(native.encode, QSGDError("the dog ate it")))
    rt.loss_of(model).backward()
    rt.assert_all_raise(optimizer.step, "the dog ate it", f"rank {rt.SIZE - 1}")
    optimizer.load_state_dict(optimizer.state_dict())
    model.zero_grad()
    hvd.barrier()
    for step in range(2):
        local = rt.local_gradients(model, lambda m: rt.loss_of(m, step).backward())  # noqa: B023
        rt.loss_of(model, step).backward()
        optimizer.step()
        rt.assert_gradients_right(model, local, bits=8, min_size=0)
        optimizer.zero_grad()
    rt.assert_replicas_equal(model.parameters())


@pytest.mark.parametrize(
    ("place", "bit"), [("magic", 0), ("count", 64 * 2 + 1), ("scale", 8 * 97), ("payload", -70), ("end", -1)]
)
def test_a_frame_that_is_damaged_before_it_is_sent(monkeypatch: pytest.MonkeyPatch, place: str, bit: int) -> None:
    compressor = QSGD()
    gradient = rt.randn(60, 60)
    send = hvd.allgather_async

    def damaged(words: torch.Tensor, **how: Any) -> Any:
        if place == "end":
            return send(words[:-2].clone(), **how)  # cut off
        words = words.clone()
        words[bit // 64] ^= 1 << bit % 63
        return send(words, **how)

    with monkeypatch.context() as patch:
        if rt.RANK == 1:
            patch.setattr(hvd, "allgather_async", damaged)
        # Where nothing shows how long a frame should be, the one after it is found to be wrong.
        rt.assert_all_raise(lambda: rt.reduced(gradient, compressor), "from rank" if place == "end" else "from rank 1")
    rt.assert_within_grid(rt.reduced(gradient, compressor), gradient)


# ---- ranks that do not mean the same ----


def test_shapes_differ() -> None:
    gradient = rt.randn(40, 40 + rt.RANK)
    compressor = QSGD()
    rt.assert_all_raise(lambda: rt.reduced(gradient, compressor), "size, dtype")
    rt.assert_all_raise(lambda: rt.reduced([rt.randn(50, 50), gradient], compressor), "size, dtype")
    same = rt.randn(40, 40)
    rt.assert_within_grid(rt.reduced(same, compressor), same)


def test_one_rank_of_all_has_another_shape() -> None:
    gradient = rt.randn(40, 41 if rt.RANK == rt.SIZE - 1 else 40)
    rt.assert_all_raise(lambda: rt.reduced(gradient, QSGD()), "size, dtype")


def test_dtypes_differ() -> None:
    gradient = rt.randn(40, 40, dtype=torch.float16 if rt.RANK else torch.float32)
    rt.assert_all_raise(lambda: rt.reduced(gradient, QSGD()), "size, dtype")
    half = rt.randn(40, 40, dtype=torch.float64 if rt.RANK else torch.float32)  # travel alike: no reason to refuse
    rt.assert_within_grid(rt.reduced(half, QSGD()), half)


def test_the_same_count_in_another_shape_is_no_mistake_that_anyone_can_see() -> None:
    gradient = rt.randn(50, 40) if rt.RANK else rt.randn(40, 50)
    assert rt.reduced(gradient, QSGD()).shape == gradient.shape


def test_the_order_differs() -> None:
    tensors = [rt.randn(40, 40, seed=1), rt.randn(40, 50, seed=2), rt.randn(60, 60, seed=3)]
    if rt.RANK == 1:
        tensors.reverse()
    compressor = QSGD()
    rt.assert_all_raise(lambda: rt.reduced(tensors, compressor), "named_parameters")


@pytest.mark.parametrize("named", [True, False])
def test_models_differ(named: bool) -> None:
    model = rt.mlp(hidden=40 + 8 * rt.RANK)
    compressor = QSGD(named_parameters=model.named_parameters() if named else None, min_size=0)
    optimizer = rt.wrap(model, compressor)
    rt.loss_of(model).backward()
    rt.assert_all_raise(optimizer.step, "size, dtype")


def test_only_one_rank_asks_for_gradients_to_flow() -> None:
    """Told to all; the call after it is the same one on all ranks."""
    tensor = rt.randn(40, 40).requires_grad_(rt.RANK == 1)
    compressor = QSGD()
    rt.assert_all_raise(lambda: rt.reduced(tensor, compressor), "rank 1", "detach()")
    rt.assert_within_grid(rt.reduced(tensor.detach(), compressor), tensor)


def test_only_one_rank_compresses() -> None:
    """Even where the gradient has as many elements as a token. (A name, or later compressors would not be the same.)"""
    tensor = torch.ones(16)
    compression = QSGD(min_size=0, name="alone") if rt.RANK == 1 else hvd.Compression.none
    assert all(kind for kind, _ in rt.outcomes(lambda: rt.reduced(tensor, compression)))


@pytest.mark.parametrize("change", [lambda g: g.resize_(3), lambda g: g.set_(torch.zeros(2))], ids=["resize", "set"])
def test_a_gradient_that_changes_its_size_on_its_way(change: Callable[[torch.Tensor], Any]) -> None:
    compressor = QSGD()
    gradient = rt.randn(300, 300)
    expected = rt.reduced(gradient, QSGD())
    token, context = compressor.compress(gradient)
    reduced = rt.reduced(token, hvd.Compression.none)
    if rt.RANK == 1:
        change(gradient)
    assert torch.equal(compressor.decompress(reduced, context), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_torch_has_other_defaults(dtype: torch.dtype) -> None:
    gradient = rt.randn(40, 40)
    expected = rt.reduced(gradient, QSGD())
    try:
        torch.set_default_dtype(dtype)
        torch.set_default_device("meta")
        result = rt.reduced(gradient, QSGD())
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(result, expected)
