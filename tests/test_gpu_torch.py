"""PyTorch gradients on a real GPU: streams, overlap, memory, capture. Two ranks in this process; no Horovod.

Run where there is a GPU: `make cuda`, then HVD_QSGD_TEST_GPU=1 pytest tests/test_gpu_torch.py. What is the same without
one is tested by `tests/ranks/test_gpu.py`.
"""

from __future__ import annotations

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
from hvd_qsgd.torch_groups import Journey, Station, Tokens  # noqa: E402
from hvd_qsgd.torch_tensors import CPU, WIRE_DTYPES  # noqa: E402

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not ON_GPU, reason="needs a GPU: set HVD_QSGD_TEST_GPU=1")]

DEVICE = torch.device("cuda", 0)
RANKS = 2
SHAPE = (600, 500)
CODECS = ["packed", "rans", "elias-dense", "elias-sparse"]
LONG = 200_000_000  # cycles of a kernel that only waits: a tenth of a second


class Gathering:
    """As Horovod: an event is recorded on the stream that is current at the start, and the host waits for it."""

    def __init__(self, meetings: list[list[Any]], frames: list[Any]) -> None:
        self.meetings, self.ready = meetings, torch.cuda.current_stream().record_event()
        for meeting, frame in zip(meetings, frames):
            meeting.append(frame)

    def wait(self) -> list[Any]:
        self.ready.synchronize()
        with torch.cuda.stream(torch.cuda.default_stream(DEVICE)):
            return [torch.cat(meeting) for meeting in self.meetings]


class NoPath:
    """In the place of the GPU's."""

    def takes(self, group: Any) -> bool:
        return False


class Job:
    """Two ranks, whose frames meet in lists."""

    def __init__(self, path: str, dtype: Any = torch.float32, codec: str = "packed") -> None:
        self.dtype, self.damage = dtype, lambda words: words
        quantization = Quantization.create(bits=4, codec=codec)
        self.cores = [Compressor(quantization, Options(min_size=0)) for _ in range(RANKS)]
        by_cpu = [CpuPath(core, self, None) for core in self.cores]
        self.paths = [CudaPath(core, self, cpu) for core, cpu in zip(self.cores, by_cpu)]
        on_gpu: list[Any] = self.paths if path == "gpu" else [NoPath()] * RANKS
        self.stations = [Station(*each, grouped=False) for each in zip(self.cores, by_cpu, on_gpu)]

    def allgather(self, frames: list[Any], names: list[str], bounds: list[int], device: Any) -> Gathering:
        return Gathering(self.meetings, [self.damage(words.to(device)) for words in frames])

    def wait_for(self, gatherings: list[Gathering], device: Any) -> list[list[Any]]:
        arrived = [gathering.wait() for gathering in gatherings]
        torch_streams.GPU.arrived([words for each in arrived for words in each])
        return arrived

    def start(self, gradients: list[Any]) -> list[Journey]:
        """Each rank's gradient, or list of those that set out together."""
        groups = [one if isinstance(one, list) else [one] for one in gradients]
        self.meetings: list[list[Any]] = [[] for _ in groups[0]]  # of all ranks, for each gradient
        started = []
        for rank, (core, station, group) in enumerate(zip(self.cores, self.stations, groups)):
            for gradient in group:
                ticket = core.open(None, SHAPE, str(self.dtype)[6:], lambda rank=rank: Ranks(rank, RANKS, "gpu"))
                started.append(Journey(ticket, gradient, WIRE_DTYPES[self.dtype]))
                station.wait_here(started[-1])
            station.depart()
        return started

    def finish(self, started: list[Journey]) -> list[Any]:
        for journey in started:
            assert journey.ticket.close()
        return [journey.departure.path.finish(journey, 1 / RANKS) for journey in started]

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
            for journey in started:  # what its token would tell: that it came back as it did before
                group, departure = journey.departure.group, journey.departure
                group.accepted = b"".join(map(departure.reduced, range(len(values[0]))))
                journey.slot.accepted = b"", 1 / RANKS
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
        for journey in started:
            journey.departure.gathering.ready.synchronize()
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
    for journey in started:
        journey.gradient = torch.empty(0, device=DEVICE)
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
    each = [[float(k) for k in range(16)], [0.5] * 16]
    tokens = Tokens(each, DEVICE)
    block = tokens.take()
    entries = Tokens(each, CPU).take().entries()
    assert all(token.is_cuda for token in block.rows)
    torch.cuda.synchronize()
    busy = wait_long()
    assert block.entries() == entries
    assert not busy.query(), "reading the tokens waited for the current stream"
    block.all.zero_()
    tokens.free.append(block)
    assert tokens.take() is block
    torch.cuda.synchronize()
    assert block.entries() == entries
