"""PyTorch gradients on a real GPU: streams, overlap, memory, capture. Two ranks in this process; no Horovod.

Run where there is a GPU: `make cuda`, then HVD_QSGD_TEST_GPU=1 pytest tests/test_gpu_torch.py. What is the same without
one is tested by `tests/ranks/test_gpu.py`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
from cuda_support import ON_GPU

torch = pytest.importorskip("torch")

from hvd_qsgd import frames, native, native_cuda, torch_streams  # noqa: E402
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
        torch_streams.GPU.arrived(words)
        return words


class Job:
    """Two ranks, whose frames meet in a list."""

    def __init__(self, path: str, dtype: Any = torch.float32) -> None:
        self.dtype, self.words, self.damage = dtype, [], lambda words: words
        quantization = Quantization.create(4, None, None, 512, None, None, "nonsubtractive")
        self.cores = [Compressor(quantization, Options(min_size=0)) for _ in range(RANKS)]
        by_cpu = [CpuPath(core, self, None) for core in self.cores]
        on_gpu = [CudaPath(core, self, cpu) for core, cpu in zip(self.cores, by_cpu)]
        self.paths: list[Any] = on_gpu if path == "gpu" else by_cpu

    def allgather(self, words: Any, name: str, bound: int, device: Any) -> Gathering:
        return Gathering(self.words, self.damage(words.to(device)))

    def wait_for(self, gatherings: list[Gathering]) -> list[Any]:
        return [gathering.wait() for gathering in gatherings]

    def start(self, gradients: list[Any]) -> list[Any]:
        self.words = []
        started = []
        for rank, (core, path, gradient) in enumerate(zip(self.cores, self.paths, gradients)):
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
def test_the_cpu_s_results(dtype: Any, own_stream: bool) -> None:
    cpu, gpu = Job("cpu", dtype), Job("gpu", dtype)
    stream = torch.cuda.Stream(DEVICE) if own_stream else torch.cuda.default_stream(DEVICE)
    with torch.cuda.stream(stream):
        for step in range(4):
            results = [*cpu.step(gradients(step, dtype)), *gpu.step(gradients(step, dtype))]
            assert all(torch.equal(results[0], result) for result in results[1:])
    for path in gpu.paths:
        path.check()


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


def test_calls_for_many_in_a_graph() -> None:
    """Replayed from a graph, of different sizes."""
    values = [torch.randn(size, device=DEVICE) for size in (1, 700, 100_000, 511)]
    specs = [spec_of(value.numel(), k) for k, value in enumerate(values)]
    sizes = [native.frame_bytes(spec) for spec in specs]
    frames_of = [torch.zeros(size, dtype=torch.uint8, device=DEVICE) for size in sizes]
    outs = [torch.zeros_like(value) for value in values]
    verdicts = torch.zeros(len(values), dtype=torch.int64, device=DEVICE)
    expectations = [frames.expect(spec) for spec in specs]
    encodings = (native_cuda.Encoding * len(values))()
    summations = (native_cuda.Summation * len(values))()
    for k, (spec, value, frame, size, out) in enumerate(zip(specs, values, frames_of, sizes, outs)):
        encodings[k] = native_cuda.Encoding(ctypes.addressof(spec), value.data_ptr(), frame.data_ptr(), size)
        expected, verdict = ctypes.addressof(expectations[k]), verdicts.data_ptr() + 8 * k
        summations[k] = native_cuda.Summation(frame.data_ptr(), size, expected, 1, 1.0, out.data_ptr(), verdict)
    rooms = native_cuda.encode_many_scratch(encodings), native_cuda.decode_sum_many_scratch(summations)
    work = [torch.zeros(size, dtype=torch.uint8, device=DEVICE) for size in rooms]

    def both(stream: int) -> None:
        native_cuda.encode_many(encodings, (work[0].data_ptr(), rooms[0]), stream)
        native_cuda.decode_sum_many(summations, (work[1].data_ptr(), rooms[1]), stream)

    graph = captured(both)
    ctypes.memset(encodings, 0, ctypes.sizeof(encodings))  # nothing of the host is read again
    ctypes.memset(summations, 0, ctypes.sizeof(summations))
    for memory in (*frames_of, *outs, *work):
        memory.fill_(1)
    graph.replay()
    assert not verdicts.any()
    for spec, value, frame, size, out, expected in zip(specs, values, frames_of, sizes, outs, expectations):
        on_cpu, decoded = value.cpu(), torch.empty_like(value, device="cpu")
        buffer = ctypes.create_string_buffer(size)
        native.encode(spec, on_cpu.data_ptr(), ctypes.addressof(buffer), size)
        assert bytes(frame.cpu().numpy()) == buffer.raw
        native.decode_sum(ctypes.addressof(buffer), size, 1, expected, 1.0, decoded.data_ptr())
        assert torch.equal(out.cpu(), decoded)


def spec_of(count: int, tensor: int) -> native.Spec:
    quantization = Quantization.create(4, None, None, 512, None, None, "nonsubtractive")
    return frames.make_spec(quantization, count=count, dtype="float32", seed=1, rank=0, tensor=tensor, step=0)


def captured(work: Callable[[int], None]) -> Any:
    """A graph of what ``work`` puts on a stream; done once before, since kernels are loaded when they first run."""
    work(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(DEVICE)
    with torch.cuda.graph(graph, stream=stream):
        work(stream.cuda_stream)
    return graph


def test_a_replayed_graph_draws_fresh_random_numbers() -> None:
    """Seed and step are read from the GPU's memory when the work is done."""
    gradient = gradients()[0]
    spec = spec_of(gradient.numel(), 5)
    size, room = native.frame_bytes(spec), native_cuda.encode_scratch(spec)
    frame = torch.zeros(size, dtype=torch.uint8, device=DEVICE)
    scratch = torch.zeros(room, dtype=torch.uint8, device=DEVICE)
    draw = torch.zeros(2, dtype=torch.int64, device=DEVICE)  # a Draw: seed, step
    pointers = gradient.data_ptr(), frame.data_ptr(), size, draw.data_ptr(), scratch.data_ptr(), room

    def work(stream: int) -> None:
        assert native_cuda.library().qsgd_cuda_encode(spec, *pointers, stream) == native.OK

    graph = captured(work)
    seen = set()
    for step in (3, 4):
        draw.copy_(torch.tensor([1, step]))
        graph.replay()
        found = bytes(frame.cpu().numpy())
        spec.step = step
        expected, values = ctypes.create_string_buffer(size), gradient.cpu()
        assert native.encode(spec, values.data_ptr(), ctypes.addressof(expected), size) == size
        assert found == expected.raw
        seen.add(found)
    assert len(seen) == 2
