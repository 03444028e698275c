"""Gradients on a GPU, which is pretended: `pretended_gpu.py` says how."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import horovod.torch as hvd
import pytest
import ranktools as rt
import torch
from pretended_gpu import Event, pretend, pretended_libraries
from rankcommon import on_two_ranks

from hvd_qsgd import native, native_cuda
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.schedule import Budget, Piecewise
from hvd_qsgd.torch import QSGD

pytestmark = on_two_ranks  # on four: test_gpu_groups.py
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
ON_GPU: list[dict[str, Any]] = [
    {},
    {"bits": 8, "bucket_size": 64},
    {"bits": 2, "norm": "l2", "bucket_size": None},
    {"codec": "ternary", "levels": 1},
    {"min_size": 0, "levels": "sqrt", "bucket_size": 100},
    {"schedule": Piecewise(levels={0: 3, 2: 100})},
]
WITH_WAITING: list[dict[str, Any]] = [
    {"codec": "elias-sparse", "levels": 7},
    {"codec": "elias-dense", "levels": 7},
    {"codec": "rans", "levels": 7},
    {"codec": "rans", "min_size": 0, "schedule": Piecewise(levels={0: 3, 1: 1000})},
]
BY_WAY_OF_CPU: list[dict[str, Any]] = [
    {"codec": "rans", "variance": 0.1},
    {"codec": "rans", "schedule": Budget(bits_per_coordinate=3, steps=9)},
    {"codec": "onebit", "error_feedback": True},
    {"variance": 0.1},
    {"dither": "subtractive"},
    {"measure_error": True},
    {"error_feedback": True, "bits": 8},
    {"clip": 2.5},
]


@pytest.fixture(autouse=True)
def other_libraries_afterwards() -> Iterator[None]:
    yield from pretended_libraries()


def tensors(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    """Contiguous, not contiguous, small, of one element, empty."""
    return [
        rt.randn(60, 50, seed=seed, dtype=dtype),
        rt.randn(50, 70, seed=seed, dtype=dtype).t(),
        rt.randn(3, 5, seed=seed, dtype=dtype),
        rt.randn(1, seed=seed, dtype=dtype),
        torch.empty(0, 4, dtype=dtype),
    ]


def results(dtype: torch.dtype = torch.float32, **options: Any) -> list[torch.Tensor]:
    """Of three steps with a new compressor: always the same, to the last bit."""
    compressor = QSGD(**options)
    return [result for step in range(3) for result in rt.reduced(tensors(dtype, step), compressor)]


@pytest.mark.parametrize("transport", ["horovod", "mpi"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cpu_s_results(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, transport: str) -> None:
    for options in [*ON_GPU, *(WITH_WAITING if dtype is torch.float32 else [])]:
        expected = results(dtype, transport=transport, **options)
        with monkeypatch.context() as patch:
            gpu = pretend(patch)
            found = results(dtype, transport=transport, **options)
        assert len(gpu.lent) == (15 if options.get("min_size") == 0 else 6)
        assert gpu.arrivals == (len(gpu.lent) if transport == "horovod" else 0)
        assert [t.dtype for t in found] == [dtype] * 15
        assert [t.shape for t in found] == [t.shape for t in expected]
        assert rt.digest(found) == rt.digest(expected), options


@pytest.mark.parametrize("options", BY_WAY_OF_CPU)
def test_what_goes_by_way_of_the_cpu(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    expected = results(**options)
    gpu = pretend(monkeypatch)
    assert rt.digest(results(**options)) == rt.digest(expected)
    assert not gpu.lent


def test_gpu_and_cpu_ranks_together(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = results(bits=3)
    if rt.RANK % 2:
        pretend(monkeypatch)
    assert rt.assert_replicas_equal(results(bits=3)) == rt.digest(expected)


def train(**options: Any) -> torch.nn.Module:
    model = rt.mlp()
    compressor = QSGD(named_parameters=model.named_parameters(), **options.pop("quantization", {}))
    optimizer = rt.wrap(model, compressor, **options)
    for step in range(4):
        for _ in range(options.get("backward_passes_per_step", 1)):
            rt.loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert compressor.stats().tensors_compressed > 0
    return model


@pytest.mark.parametrize(
    "options",
    [{}, {"backward_passes_per_step": 2}, {"groups": 2, "quantization": {"grouped": True}}, {"op": hvd.Sum}],
)
def test_training(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    expected = rt.digest(train(**options).parameters())
    gpu = pretend(monkeypatch)
    assert rt.assert_replicas_equal(train(**options).parameters()) == expected
    assert gpu.lent


def test_two_compressors_and_a_saved_state(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    one, two = QSGD(bits=3), QSGD(bits=5)
    for step in range(2):
        rt.reduced(tensors(seed=step), one)
        rt.reduced(tensors(seed=step), two)
    again = QSGD()
    again.load_state_dict(one.state_dict())
    assert rt.digest(rt.reduced(tensors(), again)) == rt.digest(rt.reduced(tensors(), one))


def test_memory_for_frames_is_used_again_once_nobody_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    sent: list[torch.Tensor] = []
    start = hvd.allgather_async
    monkeypatch.setattr(hvd, "allgather_async", lambda words, **how: (sent.append(words), start(words, **how))[1])
    compressor, gradient = QSGD(), rt.randn(60, 60)
    for _ in range(3):
        rt.reduced(gradient, compressor)
    assert len({frame.data_ptr() for frame in sent}) == 1
    _token, _context = compressor.compress(gradient)  # given up: Horovod may still read its frame
    given_up = sent[-1].clone()
    rt.reduced(gradient, compressor)
    assert torch.equal(sent[-2], given_up)
    assert sent[-1].data_ptr() != sent[-2].data_ptr()


def test_only_sums_of_earlier_steps_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    monkeypatch.setattr(Event, "waits", 0)
    compressor = QSGD()
    waits = []
    for step in range(3):
        rt.reduced(tensors(seed=step), compressor)
        waits.append(Event.waits)
    assert waits == [0, 2, 4]  # a step's two sums, in the next one
    compressor.stats()
    assert Event.waits == 6


def damage(patch: pytest.MonkeyPatch) -> None:
    """From now on rank 1 sends damaged frames."""
    send = hvd.allgather_async

    def damaged(words: torch.Tensor, **how: Any) -> Any:
        words = words.clone()
        words[40] ^= 1 << 17
        return send(words, **how)

    if rt.RANK == 1:
        patch.setattr(hvd, "allgather_async", damaged)


@pytest.mark.parametrize("how", ["compress", "stats", "state_dict"])
def test_a_damaged_frame_is_told_a_step_late(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    pretend(monkeypatch)
    compressor, gradient = QSGD(), rt.randn(60, 60)
    rt.reduced(gradient, compressor)
    with monkeypatch.context() as patch:
        damage(patch)
        assert rt.reduced(gradient, compressor).isnan().all()
    raising = {
        "compress": lambda: rt.reduced(gradient, compressor),
        "stats": compressor.stats,
        "state_dict": compressor.state_dict,
    }[how]
    messages = rt.assert_all_raise(raising, "step 1", "rank 1 is damaged", "go back to a checkpoint")
    assert len(set(messages)) == 1
    rt.assert_within_grid(rt.reduced(gradient, compressor), gradient)  # and all go on together


def test_a_state_that_is_loaded_ends_what_was_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    compressor, gradient = QSGD(), rt.randn(60, 60)
    state = compressor.state_dict()
    with monkeypatch.context() as patch:
        damage(patch)
        rt.reduced(gradient, compressor)
    compressor.load_state_dict(state)
    rt.assert_within_grid(rt.reduced(gradient, compressor), gradient)
    compressor.stats()


def test_a_damaged_rans_frame_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    compressor, gradient = QSGD(codec="rans"), rt.randn(60, 60)
    rt.reduced(gradient, compressor)
    with monkeypatch.context() as patch:
        damage(patch)
        messages = rt.assert_all_raise(lambda: rt.reduced(gradient, compressor), "rank 1", "checksum does not match")
    assert len(set(messages)) == 1
    rt.assert_within_grid(rt.reduced(gradient, compressor), gradient)


@pytest.mark.parametrize(
    ("codec", "broken"),
    [
        *(("packed", name) for name in ("encode", "encode_scratch", "decode_scratch")),
        *(("rans", name) for name in ("encode_begin", "encode_end", "encode_scratch", "decode_scratch")),
    ],
)
def test_a_rank_that_cannot_encode(monkeypatch: pytest.MonkeyPatch, codec: str, broken: str) -> None:
    """An error frame is told by its length or, where lengths vary, by what the GPU finds: at once."""
    pretend(monkeypatch)
    compressor, gradient = QSGD(codec=codec), rt.randn(60, 60)

    def fails(*arguments: Any) -> Any:
        raise QSGDError("the dog ate it")

    with monkeypatch.context() as patch:
        if rt.RANK == 1:
            patch.setattr(native_cuda, broken, fails)
        rt.assert_all_raise(lambda: rt.reduced(gradient, compressor), "rank 1 could not encode", "the dog ate it")
    rt.assert_within_grid(rt.reduced(gradient, compressor), gradient)


@pytest.mark.parametrize(
    ("before", "after", "on_gpu"), [("packed", "rans", 3), ("rans", "elias-dense", 3), ("rans", "auto", 1)]
)
def test_codecs_that_differ_for_a_while(monkeypatch: pytest.MonkeyPatch, before: str, after: str, on_gpu: int) -> None:
    """Frames that a rank's GPU does not know are decoded on its CPU."""
    gpu = pretend(monkeypatch)
    compressor, gradient = QSGD(codec=before, bits=8), rt.randn(60, 60)
    rt.reduced(gradient, compressor)
    if rt.RANK == 1:
        compressor.change(codec=after, bits=8)
    for _ in range(2):
        result = rt.reduced(gradient, compressor)
        rt.assert_within_grid(result, gradient, bits=8)
        rt.assert_replicas_equal([result])
    assert len(gpu.lent) == (on_gpu if rt.RANK == 1 else 3)


@pytest.mark.parametrize("codec", ["packed", "rans"])
def test_the_same_bytes_are_sent_and_counted(monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    """Also where frames become longer and shorter from step to step."""

    def sizes() -> list[Any]:
        compressor, found = QSGD(codec=codec, levels=20), []
        for scale in (0.0, 1.0, 0.1, 3.0, 0.0):
            gradient = rt.randn(60, 60)
            gradient[:30] *= scale
            gradient[30:, :30] *= scale * 0.01
            rt.reduced(gradient, compressor)
            stats = compressor.stats()
            found.append((stats.bytes_sent, stats.bytes_received, stats.frames_resized, stats.coordinates))
        return found

    expected = sizes()
    assert len({sent for sent, *_ in expected}) == 5
    assert (expected[-1][2] > 0) == (codec == "rans")
    pretend(monkeypatch)
    assert sizes() == expected


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = pretend(monkeypatch)
    gradient = rt.randn(60, 60)
    rt.assert_all_raise(lambda: QSGD(grouped=1), "grouped=1", "True")  # type: ignore[arg-type]
    compressor = QSGD()
    rt.assert_all_raise(lambda: rt.reduced(gradient.clone().requires_grad_(), compressor), "detach()")
    gpu.is_capturing = True
    rt.assert_all_raise(lambda: rt.reduced(gradient, compressor), "CUDA graph", "after the replay")
    gpu.is_capturing = False
    rt.assert_all_raise(lambda: rt.reduced(gradient, compressor, op=hvd.Max), "op=hvd.Average")
    rt.assert_within_grid(rt.reduced(gradient, compressor), gradient)


def test_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = results()
    gpu = pretend(monkeypatch, "/nowhere.so")
    with pytest.warns(UserWarning, match="make cuda") as warned:
        found = results()
    assert len(warned) == 1
    assert rt.digest(found) == rt.digest(expected)
    assert not gpu.lent


def test_a_cuda_call_that_fails_is_told_in_cuda_s_words(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)

    class Failing:
        qsgd_cuda_encode_scratch = staticmethod(lambda *arguments: native_cuda.CUDA_ERROR)
        qsgd_cuda_error = staticmethod(lambda: b"no kernel image is available")

    compressor, gradient = QSGD(), rt.randn(60, 60)
    rt.reduced(gradient, compressor)
    with monkeypatch.context() as patch:
        patch.setattr(native_cuda, "library", Failing)
        rt.assert_all_raise(lambda: rt.reduced(gradient, compressor), "failed: no kernel image is available; build")
        patch.setattr(Failing, "qsgd_cuda_encode_scratch", lambda *arguments: native.FIRST_FRAME_STATUS)
        rt.assert_all_raise(lambda: rt.reduced(gradient, compressor), "the CUDA kernel refused: is cut short")
