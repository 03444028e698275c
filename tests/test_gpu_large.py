"""A tensor of more than 2^31 elements on a real GPU; `tests/test_gpu_torch.py` says how to run it."""

from __future__ import annotations

import pytest
from cuda_support import ON_GPU

torch = pytest.importorskip("torch")

from benchmarks.gpu_device import Device, Exchange  # noqa: E402
from hvd_qsgd import frames, native  # noqa: E402

COUNT, NEEDED = 2**31 + 12_345, 75 * 10**9  # elements; bytes, mostly for comparing in float64

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not ON_GPU, reason="needs a GPU: set HVD_QSGD_TEST_GPU=1")]


def compare(device: Device, count: int, codec: str) -> None:
    """Frame and sum with the CPU's."""
    gradient = device.gaussian(count, "bfloat16")
    ours = Exchange(device, gradient, {"codec": codec, "levels": 7}, ranks=1)
    most = native.frame_bytes(ours.spec)
    frame, mean = torch.zeros(most, dtype=torch.uint8), torch.empty(count, dtype=torch.bfloat16)
    size = native.encode(ours.spec, gradient.cpu().data_ptr(), frame.data_ptr(), most)
    if size < ours.frame_bytes:
        native.pad(frame.data_ptr(), most, ours.frame_bytes)
    assert torch.equal(ours.frames.cpu(), frame[: ours.frame_bytes])
    native.decode_sum(frame.data_ptr(), ours.frame_bytes, 1, frames.expect(ours.spec), 1.0, mean.data_ptr())
    assert torch.equal(ours.mean.cpu(), mean)


@pytest.mark.parametrize("codec", ["packed", "rans"])
def test_more_than_2_to_the_31_elements(codec: str) -> None:
    device = Device(emulated=False)
    device.release()
    if device.free_bytes() < NEEDED:
        pytest.skip(f"needs {NEEDED / 1e9:.0f} GB of the GPU's memory")
    compare(device, COUNT, codec)
