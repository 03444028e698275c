"""PyTorch gradients on a real GPU: streams, overlap, memory, capture. Two ranks in this process; no Horovod.

Run where there is a GPU: `make cuda`, then HVD_QSGD_TEST_GPU=1 pytest tests/test_gpu_torch.py. What is the same without
one is tested by `tests/ranks/test_gpu.py`.
"""

from __future__ import annotations

import itertools
from typing import Any
from unittest import mock

import pytest
from cuda_support import ON_GPU

torch = pytest.importorskip("torch")

from hvd_qsgd import native_cuda, torch_streams  # noqa: E402
from hvd_qsgd.compressor import Compressor, Options, Ranks  # noqa: E402
from hvd_qsgd.config import Quantization  # noqa: E402
from hvd_qsgd.errors import QSGDError  # noqa: E402
from hvd_qsgd.torch_cpu import CpuPath  # noqa: E402
from hvd_qsgd.torch_cuda import CudaPath  # noqa: E402
from hvd_qsgd.torch_tensors import CPU, Form, Tokens, bytes_of  # noqa: E402

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not ON_GPU, reason="needs a GPU: set HVD_QSGD_TEST_GPU=1")]

DEVICE = torch.device("cuda", 0)
RANKS = 2
SHAPE = (600, 500)
CODECS = ["packed", "rans", "elias-dense", "elias-sparse"]
LONG = 200_000_000  # cycles of a kernel that only waits: a tenth of a second


class Gathering:
    """As Horovod: an event is recorded on the stream that is current at the start, and the host waits for it."""

    def __init__(self, all_words: list[Any], words: Any) -> None:
        self.all_words, self.ready = all_words, torch.cuda.current_stream().record_event()
        all_words.append(words)

    def wait(self) -> Any:
        self.ready.synchronize()
        with torch.cuda.stream(torch.cuda.default_stream(DEVICE)):
            words = torch.cat(self.all_words)
        torch_streams.GPU.arrived([words])
        return words


class Job:
    """Two ranks, whose frames meet in lists."""

    def __init__(self, path: str, dtype: Any = torch.float32, codec: str = "packed") -> None:
        self.dtype, self.damage = dtype, lambda words: words
        quantization = Quantization.create(bits=4, codec=codec)
        self.cores = [Compressor(quantization, Options(min_size=0)) for _ in range(RANKS)]
        by_cpu = [CpuPath(core, self, None) for core in self.cores]
        on_gpu = [CudaPath(core, self, cpu) for core, cpu in zip(self.cores, by_cpu)]
        self.paths: list[Any] = on_gpu if path == "gpu" else by_cpu

    def allgather(self, words: Any, name: str, bound: int, device: Any) -> Gathering:
        return Gathering(next(self.words), self.damage(words.to(device)))

    def wait_for(self, gatherings: list[Gathering]) -> list[Any]:
        return [gathering.wait() for gathering in gatherings]

    def start(self, gradients: list[Any]) -> list[Any]:
        """Each rank's gradient, or list of those that set out together."""
        groups = [one if isinstance(one, list) else [one] for one in gradients]
        self.words = itertools.cycle([[] for _ in groups[0]])  # of each gradient, for all ranks
        started = []
        for rank, (core, path, group) in enumerate(zip(self.cores, self.paths, groups)):
            for gradient in group:
                ticket = core.open(None, SHAPE, str(self.dtype)[6:], lambda rank=rank: Ranks(rank, RANKS, "gpu"))
                form = Form(gradient, torch.Size(SHAPE), self.dtype)
                started.append((ticket, path, path.start(ticket, torch.zeros(16), form)))
            if isinstance(path, CudaPath):
                path.depart()
        return started

    def finish(self, started: list[Any]) -> list[Any]:
        arrived = [(ticket, path, gathering.wait()) for ticket, path, gathering in started]
        for ticket, _, _ in arrived:
            assert ticket.close()
        form = Form(torch.empty(SHAPE, dtype=self.dtype, device=DEVICE), torch.Size(SHAPE), self.dtype)
        return [path.finish(ticket, words, 1 / RANKS, form) for ticket, path, words in arrived]

    def step(self, gradients: list[Any]) -> list[Any]:
        return self.finish(self.start(gradients))


def gradients(seed: int = 0, dtype: Any = torch.float32) -> list[Any]:
    """One of each rank."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator).to(dtype).to(DEVICE) for _ in range(RANKS)]


def wait_long() -> Any:
    """The GPU is busy on the current stream; the event tells until when."""
    torch.cuda._sleep(LONG)
    return torch.cuda.current_stream().record_event()


@pytest.mark.parametrize("own_stream", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("codec", CODECS)
def test_the_cpu_s_results(codec: str, dtype: Any, own_stream: bool) -> None:
    cpu, gpu = Job("cpu", dtype, codec), Job("gpu", dtype, codec)
    stream = torch.cuda.Stream(DEVICE) if own_stream else torch.cuda.default_stream(DEVICE)
    with torch.cuda.stream(stream):
        for step in range(4):
            results = [*cpu.step(gradients(step, dtype)), *gpu.step(gradients(step, dtype))]
            assert all(torch.equal(results[0], result) for result in results[1:])
    for path in gpu.paths:
        path.check()


@pytest.mark.parametrize("codec", CODECS)
def test_a_group_together(codec: str) -> None:
    cpu, gpu = Job("cpu", codec=codec), Job("gpu", codec=codec)
    spies = [
        mock.patch.object(native_cuda, name, wraps=getattr(native_cuda, name))
        for name in ("encode_many", "decode_sum_many")
    ]
    with spies[0] as encode, spies[1] as decode:
        for step in range(3):
            values = [list(group) for group in zip(*(gradients(10 * step + k) for k in range(3)))]
            started = gpu.start(values)
            for _, _, journey in started:
                journey.reduced, journey.factor = b"as before", 1 / RANKS  # what its token would tell
            assert all(torch.equal(a, b) for a, b in zip(gpu.finish(started), cpu.step(values)))
    for path in gpu.paths:
        path.check()
    assert encode.call_count == decode.call_count == (3 * RANKS if codec == "packed" else 0)


def test_nothing_waits_for_the_gpu() -> None:
    job, values = Job("gpu"), gradients()
    job.step(values)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        busy = wait_long()
        started = job.start(values)
        assert not busy.query(), "compressing waited for the current stream"
        torch.cuda.synchronize()
        busy = wait_long()  # before the sums
        job.finish(started)
        assert not busy.query(), "decompressing waited for the current stream"
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_encoding_does_not_wait_for_what_comes_after_it() -> None:
    """The rest of backward."""
    job, values = Job("gpu"), gradients()
    job.step(values)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream(DEVICE)):
        started = job.start(values)
        busy = wait_long()
        for _, _, journey in started:
            journey.gathering.ready.synchronize()
        assert not busy.query()
        job.finish(started)


def test_encoding_waits_for_what_came_before_it() -> None:
    """The gradient itself."""
    expected, job = Job("gpu").step(gradients()), Job("gpu")
    values = [torch.zeros(SHAPE, device=DEVICE) for _ in range(RANKS)]
    late = gradients()
    torch.cuda.synchronize()
    wait_long()
    for value, right in zip(values, late):
        value.copy_(right)
    assert all(torch.equal(a, b) for a, b in zip(job.step(values), expected))


def test_a_gradient_that_is_freed_is_not_overwritten_before_it_is_encoded() -> None:
    expected, job = Job("gpu").step(gradients()), Job("gpu")
    values = gradients()
    torch.cuda.synchronize()
    with torch_streams.GPU.encoding(DEVICE):
        wait_long()
    started = job.start(values)
    other = Form(torch.empty(SHAPE, device=DEVICE), torch.Size(SHAPE), torch.float32)
    for _, _, journey in started:
        journey.form = other  # which holds the gradient
    del values, journey
    others = [torch.full(SHAPE, 9.0, device=DEVICE) for _ in range(4 * RANKS)]
    assert all(torch.equal(a, b) for a, b in zip(job.finish(started), expected))
    assert len(others) == 4 * RANKS


def test_no_memory_is_asked_for_after_a_few_steps() -> None:
    job, values = Job("gpu"), gradients()
    for _ in range(3):
        job.step(values)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["segment.all.allocated"]
    for _ in range(5):
        job.step(values)
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()["segment.all.allocated"] == before


def test_a_damaged_frame_makes_nan_and_is_told_later() -> None:
    job, values = Job("gpu"), gradients()
    job.damage = lambda words: words.index_fill(0, torch.tensor([40], device=DEVICE), 12345)
    assert all(result.isnan().all() for result in job.step(values))
    job.damage = lambda words: words
    for path in job.paths:
        with pytest.raises(QSGDError, match="damaged"):
            path.check()
    assert not job.step(values)[0].isnan().any()


def test_tokens_on_the_gpu() -> None:
    tokens = Tokens([float(k) for k in range(16)], DEVICE)
    token = tokens.take()
    entries = bytes_of(Tokens([float(k) for k in range(16)], CPU).take())
    assert token.is_cuda
    torch.cuda.synchronize()
    busy = wait_long()
    assert bytes_of(token) == entries
    assert not busy.query(), "reading the token waited for the current stream"
    token.zero_()
    tokens.give_back(token)
    assert tokens.take() is token
    torch.cuda.synchronize()
    assert bytes_of(token) == entries
