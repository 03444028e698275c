"""Gradients that are compressed together on a GPU, which is pretended: `pretended_gpu.py` says how."""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import horovod.torch as hvd
import pytest
import ranktools as rt
import torch
from pretended_gpu import Event, pretend, pretended_libraries
from rankcommon import on_two_ranks

from hvd_qsgd import native_cuda, torch_cuda
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.torch import QSGD


@pytest.fixture(autouse=True)
def other_libraries_afterwards() -> Iterator[None]:
    yield from pretended_libraries()


def count_calls(patch: pytest.MonkeyPatch) -> Counter[str]:
    """Of the functions that enqueue kernels."""
    calls: Counter[str] = Counter()

    def counted(name: str) -> Any:
        function = getattr(native_cuda, name)

        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return function(*arguments)

        return call

    for name in ("encode", "encode_many", "encode_begin", "decode_sum", "decode_sum_many"):
        patch.setattr(native_cuda, name, counted(name))
    return calls


class Group:
    """Gradients that are reduced as an optimizer reduces a group: in place."""

    def __init__(self, **options: Any) -> None:
        self.compressor = QSGD(**options)

    def step(self, seed: int = 0, sizes: tuple[int, ...] = (60, 1, 7)) -> list[torch.Tensor]:
        gradients = [rt.randn(size, 50, seed=seed + k) for k, size in enumerate(sizes)]
        tokens, contexts = zip(*[self.compressor.compress(gradient) for gradient in gradients])
        outputs = hvd.synchronize(hvd.grouped_allreduce_async_(list(tokens), name="group"))
        return [self.compressor.decompress(output, ctx) for output, ctx in zip(outputs, contexts)]


@pytest.mark.parametrize("codec", ["packed", "ternary", "rans"])
@pytest.mark.parametrize("grouped", [True, False])
def test_a_group_takes_one_call(monkeypatch: pytest.MonkeyPatch, grouped: bool, codec: str) -> None:
    """Decoding too, once tokens have come back as they did before."""
    options = {"codec": codec, "grouped": grouped, "min_size": 0}
    cpu = Group(**options)
    expected = [rt.digest(cpu.step(step)) for step in range(3)]
    pretend(monkeypatch)
    calls, gpu = count_calls(monkeypatch), Group(**options)
    for step in range(3):
        calls.clear()
        assert rt.digest(gpu.step(step)) == expected[step]
        if codec == "rans":
            assert calls == {"encode_begin": 3, "decode_sum": 3}
        else:
            assert calls == {"encode_many": 1, **({"decode_sum_many": 1} if step else {"decode_sum": 3})}
    gpu.compressor.stats()


@on_two_ranks
@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("codec", ["packed", "rans"])
def test_a_group_travels_as_one(monkeypatch: pytest.MonkeyPatch, codec: str, on_gpu: bool) -> None:
    if on_gpu:
        pretend(monkeypatch)
    started: list[tuple[str, int]] = []

    def counted(name: str) -> Any:
        start = getattr(hvd, name)
        return lambda what, **how: (started.append((name, len(what))), start(what, **how))[1]

    for name in ("allgather_async", "grouped_allgather_async"):
        monkeypatch.setattr(hvd, name, counted(name))
    group = Group(codec=codec, min_size=0)
    for step in range(3):
        group.step(step)
    assert started == [("grouped_allgather_async", 3)] * 3


@on_two_ranks
def test_a_pair_is_looked_into_again() -> None:
    """While others still wait for the rest of their group."""
    compressor, gradients = QSGD(min_size=0), [rt.randn(20, 10, seed=k) for k in range(2)]
    first = compressor.compress(gradients[0])
    token, context = first
    second = compressor.compress(gradients[1])
    assert len(first) == 2
    assert first[0] is token
    assert first[-1] is context
    assert second.token is None
    for name, pair, gradient in zip("ab", (first, second), gradients):
        result = compressor.decompress(hvd.allreduce_(pair[0], name=name), pair[1])
        rt.assert_within_grid(result, gradient)


@on_two_ranks
def test_what_waits_in_another_thread_is_of_another_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks need not reach the same in one thread when they are at the same place in another."""
    started: list[str] = []
    start = hvd.allgather_async

    def named(words: torch.Tensor, **how: Any) -> Any:
        started.append(how["name"])
        return start(words, **how)

    monkeypatch.setattr(hvd, "allgather_async", named)
    compressor, gradients = QSGD(), [rt.randn(60, 50, seed=k) for k in range(2)]
    waiting = compressor.compress(gradients[0])
    with ThreadPoolExecutor(1) as other:
        pairs = [other.submit(lambda: tuple(compressor.compress(gradients[1]))).result()]
        pairs.insert(0, other.submit(tuple, waiting).result())  # even if it is looked into elsewhere
    assert [name[-2:] for name in started] == ["#1", "#0"]
    tokens, contexts = zip(*pairs)
    for output, ctx, gradient in zip(rt.reduced(list(tokens), hvd.Compression.none), contexts, gradients):
        rt.assert_within_grid(compressor.decompress(output, ctx), gradient)


@on_two_ranks
@pytest.mark.parametrize(("most", "calls_of_each"), [(2**23, (0, 1)), (100, (1, 1)), (0, (3, 0))])
def test_what_set_out_by_itself_is_added_up_together(
    monkeypatch: pytest.MonkeyPatch, most: int, calls_of_each: tuple[int, int]
) -> None:
    """As far as tokens tell that it is on its way from all ranks, and up to so many elements more."""
    group = Group(min_size=0)
    expected = [rt.digest(group.step(step)) for step in range(3)]
    pretend(monkeypatch)
    monkeypatch.setattr(torch_cuda, "MOST_AHEAD", most)
    calls, compressor = count_calls(monkeypatch), QSGD(min_size=0)
    for step in range(3):
        gradients = [rt.randn(size, 50, seed=step + k) for k, size in enumerate((60, 1, 7))]
        tokens, contexts = zip(*[tuple(compressor.compress(gradient)) for gradient in gradients])
        calls.clear()
        outputs = hvd.synchronize(hvd.grouped_allreduce_async_(list(tokens), name="alone"))
        results = [compressor.decompress(output, ctx) for output, ctx in zip(outputs, contexts)]
        assert rt.digest(results) == expected[step]
        one, many = calls_of_each if step else (3, 0)
        assert (calls["decode_sum"], calls["decode_sum_many"]) == (one, many)
    compressor.stats()


@on_two_ranks
def test_a_group_of_one_codec_and_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed in between."""
    pretend(monkeypatch)
    group = Group(bits=8)
    group.step()
    calls, compress, count = count_calls(monkeypatch), group.compressor.compress, itertools.count()

    def changing(gradient: torch.Tensor) -> Any:
        group.compressor.change(codec="packed" if next(count) % 2 else "rans", bits=8)
        return compress(gradient)

    monkeypatch.setattr(group.compressor, "compress", changing)
    sizes = (60, 50, 40, 30)
    gradients = [rt.randn(size, 50, seed=k) for k, size in enumerate(sizes)]
    for result, gradient in zip(group.step(sizes=sizes), gradients):
        rt.assert_within_grid(result, gradient, bits=8)
    assert calls["encode_many"] == 1
    assert calls["encode_begin"] == 2


def test_a_group_of_which_a_rank_cannot_encode_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    group = Group(min_size=0)

    def fails(*arguments: Any) -> Any:
        raise QSGDError("the dog ate it")

    for step in range(2):  # of which the second adds up together
        expected = group.step(step)
        with monkeypatch.context() as patch:
            if rt.RANK == 1:
                patch.setattr(native_cuda, "encode_many", fails)
            rt.assert_all_raise(group.step, "rank 1 could not encode", "the dog ate it")
        assert not any(result.isnan().any() for result in expected)


def test_a_group_with_a_damaged_frame_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    group = Group(min_size=0)
    group.step()
    send = hvd.grouped_allgather_async

    def damaged(frames: list[torch.Tensor], **how: Any) -> Any:
        frames = [frame.clone() for frame in frames]
        frames[2][20] ^= (1 << 17) * (rt.RANK == 1)
        return send(frames, **how)

    with monkeypatch.context() as patch:
        patch.setattr(hvd, "grouped_allgather_async", damaged)
        assert [bool(result.isnan().any()) for result in group.step()] == [False, False, True]
    rt.assert_all_raise(group.compressor.stats, "tensor '#2'", "step 1", "rank 1 is damaged")
    assert not any(result.isnan().any() for result in group.step())


@on_two_ranks
def test_a_group_that_is_reduced_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """And differently from last time: each gradient gets the factor of its own token."""
    pretend(monkeypatch)
    compressor = QSGD(min_size=0)
    gradients = [rt.randn(60, 50, seed=k) for k in range(3)]
    for ops in ((hvd.Sum, hvd.Sum, hvd.Sum), (hvd.Sum, hvd.Average, hvd.Sum), (hvd.Average, hvd.Sum, hvd.Sum)):
        tokens, contexts = zip(*[compressor.compress(gradient) for gradient in gradients])
        handles = [hvd.allreduce_async_(token, name=f"t{k}", op=op) for k, (token, op) in enumerate(zip(tokens, ops))]
        results = [compressor.decompress(hvd.synchronize(h), ctx) for h, ctx in zip(handles, contexts)]
        for result, gradient, op in zip(results, gradients, ops):
            rt.assert_within_grid(result / (rt.SIZE if op == hvd.Sum else 1), gradient)


@on_two_ranks
def test_gradients_that_are_not_looked_into_do_not_set_out(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = pretend(monkeypatch)
    compressor, gradient = QSGD(), rt.randn(60, 60)
    compressor.compress(gradient)
    rt.reduced(gradient, compressor)
    assert len(gpu.lent) == 1
    sent = compressor.compress(gradient)
    assert len(gpu.lent) == 1
    token, ctx = sent[0], sent[1]
    assert len(gpu.lent) == 2
    output = hvd.allreduce(token, name="by_number")
    rt.assert_within_grid(compressor.decompress(output, ctx), gradient)


@on_two_ranks
def test_a_sum_that_failed_is_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The group's other gradients, which were to be added up by the call that failed, are added up later."""
    pretend(monkeypatch)
    compressor = QSGD(min_size=0)
    gradients = [rt.randn(60, 50, seed=k) for k in range(3)]
    for step in range(2):  # of which the second adds up together
        tokens, contexts = zip(*[compressor.compress(gradient) for gradient in gradients])
        outputs = hvd.synchronize(hvd.grouped_allreduce_async_(list(tokens), name="failed"))
        if step == 0:
            for output, ctx in zip(outputs, contexts):
                compressor.decompress(output, ctx)

    def fails(*arguments: Any) -> Any:
        raise QSGDError("no memory is left")

    with monkeypatch.context() as patch:
        patch.setattr(native_cuda, "decode_sum_many", fails)
        with pytest.raises(QSGDError, match="no memory is left"):
            compressor.decompress(outputs[0], contexts[0])
    for output, ctx, gradient in zip(outputs[1:], contexts[1:], gradients[1:]):
        rt.assert_within_grid(compressor.decompress(output, ctx), gradient)


@on_two_ranks
def test_a_compressor_that_goes_waits_for_its_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their verdicts are still to be written."""
    pretend(monkeypatch)
    compressor = QSGD()
    rt.reduced(rt.randn(60, 60), compressor)
    monkeypatch.setattr(Event, "waits", 0)
    del compressor
    gc.collect()
    assert Event.waits == 1
