"""CUDA graphs of the kernels' work, on a real GPU; `tests/test_gpu_torch.py` says how to run it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
from cuda_support import ON_GPU

torch = pytest.importorskip("torch")

from hvd_qsgd import frames, native, native_cuda  # noqa: E402
from hvd_qsgd.config import Quantization  # noqa: E402
from hvd_qsgd.torch_cuda_encode import VARIABLE_LENGTH  # noqa: E402

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not ON_GPU, reason="needs a GPU: set HVD_QSGD_TEST_GPU=1")]

DEVICE = torch.device("cuda", 0)


def memory(size: int) -> Any:
    return torch.zeros(size, dtype=torch.uint8, device=DEVICE)


def room(bytes_there: Any) -> tuple[int, int]:
    return bytes_there.data_ptr(), bytes_there.numel()


def spec_of(count: int, tensor: int, codec: str = "packed") -> native.Spec:
    quantization = Quantization.create(bits=4, codec=codec)
    return frames.make_spec(quantization, count=count, dtype="float32", seed=1, rank=0, tensor=tensor, step=0)


def captured(work: Callable[[int], None]) -> Any:
    """A graph of what ``work`` puts on a stream; done once before, since kernels are loaded when they first run."""
    work(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(DEVICE)
    with torch.cuda.graph(graph, stream=stream):
        work(stream.cuda_stream)
    return graph


def frame_of(spec: native.Spec, gradient: Any, size: int) -> Any:
    """The CPU's, of this size."""
    values, most = gradient.cpu(), native.frame_bytes(spec)
    frame = torch.zeros(most, dtype=torch.uint8)
    if native.encode(spec, values.data_ptr(), frame.data_ptr(), most) != size:
        native.pad(frame.data_ptr(), most, size)
    return frame[:size]


def assert_as_on_the_cpu(spec: native.Spec, gradient: Any, frame: Any, out: Any) -> None:
    """The frame, and what it decodes to."""
    expected, values = frame_of(spec, gradient, frame.numel()), torch.empty_like(gradient, device="cpu")
    assert torch.equal(frame.cpu(), expected)
    native.decode_sum(expected.data_ptr(), expected.numel(), 1, frames.expect(spec), 1.0, values.data_ptr())
    assert torch.equal(out.cpu(), values)


def test_calls_for_many() -> None:
    """Of different sizes."""
    gradients = [torch.randn(size, device=DEVICE) for size in (1, 700, 100_000, 511)]
    specs = [spec_of(gradient.numel(), k) for k, gradient in enumerate(gradients)]
    frames_of = [memory(native.frame_bytes(spec)) for spec in specs]
    outs = [torch.zeros_like(gradient) for gradient in gradients]
    verdicts = torch.zeros(len(specs), dtype=torch.int64, device=DEVICE)
    expectations = [frames.expect(spec) for spec in specs]
    encodings = (native_cuda.Encoding * len(specs))()
    summations = (native_cuda.Summation * len(specs))()
    for k, (spec, gradient, frame, out) in enumerate(zip(specs, gradients, frames_of, outs)):
        encodings[k] = native_cuda.Encoding(ctypes.addressof(spec), gradient.data_ptr(), *room(frame))
        expected, verdict = ctypes.addressof(expectations[k]), verdicts.data_ptr() + 8 * k
        summations[k] = native_cuda.Summation(*room(frame), expected, 1, 1.0, out.data_ptr(), verdict)
    work = [
        memory(native_cuda.encode_many_scratch(encodings)),
        memory(native_cuda.decode_sum_many_scratch(summations)),
    ]

    def both(stream: int) -> None:
        native_cuda.encode_many(encodings, room(work[0]), stream)
        native_cuda.decode_sum_many(summations, room(work[1]), stream)

    graph = captured(both)
    ctypes.memset(encodings, 0, ctypes.sizeof(encodings))  # nothing of the host is read again
    ctypes.memset(summations, 0, ctypes.sizeof(summations))
    for used in (*frames_of, *outs, *work, verdicts):
        used.fill_(1)
    graph.replay()
    assert not verdicts.any()
    for one in zip(specs, gradients, frames_of, outs):
        assert_as_on_the_cpu(*one)


@pytest.mark.parametrize("codec", VARIABLE_LENGTH)
def test_variable_lengths(codec: str) -> None:
    """Nobody looks at the length in between: the frame gets as many bytes as one may need."""
    gradient = torch.randn(300_000, device=DEVICE)
    spec = spec_of(gradient.numel(), 3, codec)
    expected, frame = frames.expect(spec), memory(native.frame_bytes(spec) // 16 * 16)
    length, verdict = (torch.zeros(1, dtype=torch.int64, device=DEVICE) for _ in range(2))
    out = torch.zeros_like(gradient)
    work = [
        memory(native_cuda.encode_scratch(spec)),
        memory(native_cuda.decode_scratch_variable(gradient.numel(), 1)),
    ]

    def both(stream: int) -> None:
        native_cuda.encode_begin(spec, gradient.data_ptr(), length.data_ptr(), room(work[0]), stream)
        native_cuda.encode_end(spec, *room(frame), room(work[0]), stream)
        native_cuda.decode_sum(room(frame), 1, expected, 1.0, out.data_ptr(), verdict.data_ptr(), room(work[1]), stream)

    graph = captured(both)
    gradient.neg_()
    for used in (frame, out, length, verdict, *work):
        used.fill_(1)
    graph.replay()
    assert not verdict.any()
    assert 16 < int(length) <= frame.numel()
    assert_as_on_the_cpu(spec, gradient, frame, out)


def test_fresh_random_numbers() -> None:
    """Seed and step are read from the GPU's memory when the work is done."""
    gradient = torch.randn(300_000, device=DEVICE)
    spec = spec_of(gradient.numel(), 5)
    frame, scratch = memory(native.frame_bytes(spec)), memory(native_cuda.encode_scratch(spec))
    draw = torch.zeros(2, dtype=torch.int64, device=DEVICE)  # a Draw: seed, step
    pointers = gradient.data_ptr(), *room(frame), draw.data_ptr(), *room(scratch)

    def work(stream: int) -> None:
        assert native_cuda.library().qsgd_cuda_encode(spec, *pointers, stream) == native.OK

    graph = captured(work)
    seen = set()
    for step in (3, 4):
        draw.copy_(torch.tensor([1, step]))
        graph.replay()
        spec.step = step
        assert torch.equal(frame.cpu(), frame_of(spec, gradient, frame.numel()))
        seen.add(bytes(frame.cpu().numpy()))
    assert len(seen) == 2
