"""The ways in which frames travel give the same results."""

from __future__ import annotations

import functools
from typing import Any

import horovod.torch as hvd
import pytest
import ranktools as rt
import torch

from hvd_qsgd import torch_transport
from hvd_qsgd.torch import QSGD
from hvd_qsgd.transport.horovod import HorovodTransport


def training(compressor: QSGD, model: torch.nn.Module) -> str:
    optimizer = rt.wrap(model, compressor)
    for step in range(5):
        rt.loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return rt.assert_replicas_equal(model.parameters())


@pytest.mark.parametrize("named", [True, False])
def test_mpi_gives_the_same_bits(named: bool) -> None:
    def run(transport: str) -> str:
        model = rt.mlp()
        names = model.named_parameters() if named else None
        return training(QSGD(3, min_size=0, named_parameters=names, transport=transport), model)

    assert run("mpi") == run("horovod")


@pytest.mark.parametrize("transport", ["horovod", "mpi"])
def test_ranks_may_decompress_in_any_order(transport: str) -> None:
    gradients = [rt.randn(40, 40 + k) for k in range(5)]
    compressor = QSGD(8, transport=transport)
    for given_up in (False, True):
        if given_up:
            kept = list(zip(*[compressor.compress(gradient) for gradient in gradients]))
            compressor.load_state_dict(compressor.state_dict())
        tokens, contexts = zip(*[compressor.compress(gradient) for gradient in gradients])
        reduced = rt.reduced(list(tokens), hvd.Compression.none)
        order = [(k * (rt.RANK + 1)) % 5 for k in range(5)]
        results = {k: compressor.decompress(reduced[k], contexts[k]) for k in order}
        for k, gradient in enumerate(gradients):
            rt.assert_within_grid(results[k], gradient, bits=8)
            rt.assert_replicas_equal([results[k]])
    del kept


@pytest.mark.parametrize("transport", ["horovod", "mpi"])
def test_every_dtype_and_size(transport: str) -> None:
    tensors = [
        rt.randn(*shape, dtype=dtype)
        for shape in ((), (1,), (700, 3), (0, 4), (33, 31))
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    ]
    theirs = rt.reduced(tensors, QSGD(5, min_size=0))
    compressor = QSGD(5, min_size=0, transport=transport)
    ours = rt.reduced(tensors, compressor)
    assert rt.digest(ours) == rt.digest(theirs)
    again = rt.reduced(list(reversed(tensors)), compressor)
    for tensor, result in zip(reversed(tensors), again):
        rt.assert_within_grid(result, tensor, bits=5)


def test_mpi_within_a_process_set() -> None:
    process_set = rt.EVEN if rt.EVEN.included() else rt.ODD
    gradient = rt.randn(50, 50)
    results = [
        rt.reduced(gradient, QSGD(process_set=process_set, transport=transport), name="within", process_set=process_set)
        for transport in ("mpi", "horovod")
    ]
    assert torch.equal(*results)
    rt.assert_within_grid(results[0], gradient, everyone=[rt.randn(50, 50, rank=rank) for rank in process_set.ranks])


@pytest.mark.parametrize("max_words", [1000, 301, 64, 1])
@pytest.mark.parametrize("same", [True, False])
def test_frames_that_are_cut_in_parts(monkeypatch: pytest.MonkeyPatch, max_words: int, same: bool) -> None:
    """Also when the ranks' frames are of different lengths."""
    bits = 4 if same else [2, 8, 3, 5][rt.RANK]
    small, large = rt.randn(3, 5), rt.randn(30, 40) if max_words < 64 else rt.randn(50, 60)
    whole = rt.reduced([small, large, small], QSGD(bits, min_size=0))
    started = []
    start = hvd.allgather_async

    def counting(words: torch.Tensor, **how: Any) -> Any:
        started.append(len(words))
        return start(words, **how)

    monkeypatch.setattr(hvd, "allgather_async", counting)
    monkeypatch.setattr(torch_transport, "HorovodTransport", functools.partial(HorovodTransport, max_words=max_words))
    compressor = QSGD(bits, min_size=0)
    for step in range(2):
        parts = rt.reduced([small, large, small], compressor)
        if step == 0:
            assert len(started) > 4
            assert max(started) * rt.SIZE <= max(max_words, rt.SIZE)
            assert rt.digest(parts) == rt.digest(whole)
    rt.assert_replicas_equal(parts)


def test_a_step_given_up_while_its_parts_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_transport, "HorovodTransport", functools.partial(HorovodTransport, max_words=500))
    compressor = QSGD()
    gradient = rt.randn(50, 60)
    for _ in range(5):
        tuple(compressor.compress(gradient))
        result = rt.reduced(gradient, compressor)
    rt.assert_within_grid(result, gradient)
    rt.assert_replicas_equal([result])


def test_hundreds_of_tensors_of_new_sizes() -> None:
    compressor = QSGD(min_size=0)
    for k in range(3):
        tensors = [rt.randn(1, 1 + i + 100 * k) for i in range(100)]
        results = rt.reduced(tensors, compressor)
        for i in (0, 50, 99):
            rt.assert_within_grid(results[i], tensors[i])
        rt.assert_replicas_equal(results)


def test_all_of_a_group_hear_that_it_did_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    compressor = QSGD(min_size=0)
    gradients = [rt.randn(40, 40 + k) for k in range(3)]
    finish = HorovodTransport.finish

    def fail(self: HorovodTransport, name: str) -> None:
        finish(self, name)
        raise hvd.mpi_ops.HorovodInternalError("the network is down")

    tokens, contexts = zip(*[compressor.compress(gradient) for gradient in gradients])
    reduced = rt.reduced(list(tokens), hvd.Compression.none)
    with monkeypatch.context() as patch:
        patch.setattr(HorovodTransport, "finish", fail)
        for token, context in zip(reduced, contexts):
            with pytest.raises(hvd.mpi_ops.HorovodInternalError, match="the network is down"):
                compressor.decompress(token, context)
    for result, gradient in zip(rt.reduced(gradients, compressor), gradients):
        rt.assert_within_grid(result, gradient)


def test_names_like_those_of_groups() -> None:
    """A group, and parameters that are called as its operation might be, travel at once."""
    named = [(name, torch.nn.Parameter(torch.empty(40, 40))) for name in ("a", "b", "a+1", "2 of a")]
    for k, (_, parameter) in enumerate(named):
        parameter.grad = rt.randn(40, 40, seed=k)
    gradients = [parameter.grad for _, parameter in named]
    compressor = QSGD(named_parameters=named)
    grouped = zip(*[compressor.compress(gradient) for gradient in gradients[:2]])
    alone = [tuple(compressor.compress(gradient)) for gradient in gradients[2:]]
    tokens, contexts = zip(*zip(*grouped), *alone)
    outputs = rt.reduced(list(tokens), hvd.Compression.none)
    for output, ctx, gradient in zip(outputs, contexts, gradients):
        rt.assert_within_grid(compressor.decompress(output, ctx), gradient)
