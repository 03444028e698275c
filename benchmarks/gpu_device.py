"""What benchmarks.gpu measures on: the GPU, or (``emulated``) this processor, where times mean nothing."""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hvd_qsgd import frames, native, native_cuda, torch_streams, wire
from hvd_qsgd.config import Quantization
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.torch_cuda_encode import VARIABLE_LENGTH

Run = Callable[[], Any]
AHEAD_CYCLES = 20_000_000  # that the GPU waits while a turn is put on its stream: 10 ms or more


class Device:
    """Memory, streams and time."""

    def __init__(self, emulated: bool) -> None:
        if not emulated and not torch.cuda.is_available():
            raise SystemExit(
                f"benchmarks.gpu: torch {torch.__version__} sees no GPU; --emulated only tries the program"
            )
        self.emulated = emulated
        self.kind = "cpu" if emulated else "cuda"
        self.library = native_cuda.library()
        self.name = "no GPU: emulated, the times mean nothing" if emulated else torch.cuda.get_device_name()

    @property
    def stream(self) -> int:
        return 0 if self.emulated else torch.cuda.current_stream().cuda_stream

    def bytes(self, size: int) -> torch.Tensor:
        return torch.zeros(max(size, 1), dtype=torch.uint8, device=self.kind)

    def gaussian(self, n: int, dtype: str = "float32") -> torch.Tensor:
        return torch.randn(n, device=self.kind).to(getattr(torch, dtype))

    def free_bytes(self) -> int:
        return 0 if self.emulated else torch.cuda.mem_get_info()[0]

    def release(self) -> None:
        if not self.emulated:
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        if not self.emulated:
            torch.cuda.synchronize()

    def captured(self, run: Run) -> Run:
        """``run``, which was called before, as one CUDA graph."""
        if self.emulated:
            return run
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def mark(self) -> Any:
        """An event on the current stream, which takes the time."""
        if self.emulated:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        """Seconds between two marks, which are over."""
        return end - begin if self.emulated else begin.elapsed_time(end) / 1e3

    def wait_for(self, mark: Any) -> None:
        """The current stream waits."""
        if not self.emulated:
            torch.cuda.current_stream().wait_event(mark)

    def encoding(self, tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
        """Work goes to the stream on which the PyTorch frontend encodes."""
        return contextlib.nullcontext() if self.emulated else torch_streams.GPU.encoding(tensor.device)

    def seconds(self, runs: Sequence[Run], turns: int) -> list[float]:
        """The median that each takes on the GPU; all take turns."""
        times: list[list[float]] = [[] for _ in runs]
        for turn in range(turns + 1):
            for of_one, spent in zip(times, self._turn(runs)):
                if turn:  # the first warms up
                    of_one.append(spent)
        return [statistics.median(of_one) for of_one in times]

    def _turn(self, runs: Sequence[Run]) -> list[float]:
        if self.emulated:
            return [self.host_seconds(run) for run in runs]
        self.synchronize()
        torch.cuda._sleep(AHEAD_CYCLES)
        marks = [self.mark()]
        for run in runs:
            run()
            marks.append(self.mark())
        self.synchronize()
        return [self.between(begin, end) for begin, end in zip(marks, marks[1:])]

    def host_seconds(self, run: Run) -> float:
        """What the caller spends, from an idle GPU on."""
        self.synchronize()
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


class Exchange:
    """One tensor: a gradient, the frames that so many ranks made of it, and their mean."""

    def __init__(self, device: Device, gradient: torch.Tensor, setting: dict[str, Any], ranks: int) -> None:
        self.device, self.gradient, self.ranks = device, gradient, ranks
        self.setting = {"bucket_size": 512, **setting}
        self.dtype = str(gradient.dtype).removeprefix("torch.")
        quantization = Quantization.create(**self.setting)
        self.spec = frames.make_spec(
            quantization, count=gradient.numel(), dtype=self.dtype, seed=1, rank=0, tensor=2, step=3
        )
        self.expected = frames.expect(self.spec)
        self.variable = quantization.codec in VARIABLE_LENGTH
        self.gradient_bytes = gradient.numel() * wire.ITEM_BYTES[self.dtype]
        self.encode_scratch = self._scratch(native_cuda.encode_scratch(self.spec))
        self.frame_bytes = self._padded_bytes() if self.variable else native.frame_bytes(self.spec)
        self.frames, self.mean = device.bytes(ranks * self.frame_bytes), torch.empty_like(gradient)
        self.verdict = device.bytes(ctypes.sizeof(native_cuda.Verdict))
        count = gradient.numel()
        needed = (
            native_cuda.decode_scratch_variable(count, ranks) if self.variable else native_cuda.decode_scratch(ranks)
        )
        self.decode_scratch = self._scratch(needed)
        for rank in reversed(range(ranks)):
            self.spec.rank = rank
            self.encode()
        self.decode_sum()
        self.check()

    def _scratch(self, size: int) -> tuple[torch.Tensor, tuple[int, int]]:
        memory = self.device.bytes(size)
        return memory, (memory.data_ptr(), memory.numel())

    def _begin(self) -> None:
        scratch, stream = self.encode_scratch[1], self.device.stream
        native_cuda.encode_begin(self.spec, self.gradient.data_ptr(), self.length.data_ptr(), scratch, stream)

    def _padded_bytes(self) -> int:
        """A length that frames of all ranks have room in."""
        self.length = self.device.bytes(8)
        self._begin()
        return native.padded_bytes(int.from_bytes(bytes(self.length.cpu().numpy()), "little"), 0)

    def encode(self) -> None:
        """Of variable length: without the host's look at it, which waits."""
        frame = self.frames.data_ptr() + self.spec.rank * self.frame_bytes
        room, scratch, stream = self.frame_bytes, self.encode_scratch[1], self.device.stream
        if self.variable:
            self._begin()
            native_cuda.encode_end(self.spec, frame, room, scratch, stream)
        else:
            native_cuda.encode(self.spec, self.gradient.data_ptr(), frame, room, scratch, stream)

    def decode_sum(self) -> None:
        native_cuda.decode_sum(
            (self.frames.data_ptr(), self.frames.numel()),
            self.ranks,
            self.expected,
            1 / self.ranks,
            self.mean.data_ptr(),
            self.verdict.data_ptr(),
            self.decode_scratch[1],
            self.device.stream,
        )

    def check(self) -> None:
        """Whether the last mean is one: frames without mistakes, near the gradient."""
        verdict = native_cuda.Verdict.from_buffer_copy(bytes(self.verdict.cpu().numpy()))
        if verdict.status != native.OK:
            raise QSGDError(f"{self.setting}: the sum's verdict is status {verdict.status}, frame {verdict.bad_frame}")
        off = float((self.mean.double() - self.gradient.double()).norm() / self.gradient.double().norm())
        if not off < 2:  # a ternary frame alone is off by 1.2
            raise QSGDError(f"{self.setting}: the mean is {off} times the gradient away from it")


class Exchanges:
    """Many tensors, in two calls. As a frontend does, it writes the calls' tables anew each time."""

    def __init__(self, device: Device, each: Sequence[Exchange]) -> None:
        self.device, self.each = device, each
        size = native_cuda.encode_many_scratch(self._encodings())
        self.encode_scratch = device.bytes(size)
        self.decode_scratch = device.bytes(native_cuda.decode_sum_many_scratch(self._summations()))

    def encode(self) -> None:
        memory = self.encode_scratch
        native_cuda.encode_many(self._encodings(), (memory.data_ptr(), memory.numel()), self.device.stream)

    def decode_sum(self) -> None:
        memory = self.decode_scratch
        native_cuda.decode_sum_many(self._summations(), (memory.data_ptr(), memory.numel()), self.device.stream)

    def _encodings(self) -> ctypes.Array[native_cuda.Encoding]:
        return native_cuda.encodings(
            (
                ctypes.addressof(one.spec),
                one.gradient.data_ptr(),
                one.frames.data_ptr() + one.spec.rank * one.frame_bytes,
                one.frame_bytes,
            )
            for one in self.each
        )

    def _summations(self) -> ctypes.Array[native_cuda.Summation]:
        return native_cuda.summations(
            (
                one.frames.data_ptr(),
                one.frames.numel(),
                ctypes.addressof(one.expected),
                one.ranks,
                1 / one.ranks,
                one.mean.data_ptr(),
                one.verdict.data_ptr(),
            )
            for one in self.each
        )
