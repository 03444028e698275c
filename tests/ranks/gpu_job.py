"""Two ranks that share a GPU, as `make gpu-check` starts them: the CPU's results, to the last bit.

No MPI but Horovod's. With the argument "pretended" the GPU is pretended: `pretended_gpu.py` says how.
"""

from __future__ import annotations

import sys
from typing import Any
from unittest import mock

import horovod.torch as hvd
import torch
from rank_jobs import say

from hvd_qsgd import native_cuda, torch_streams
from hvd_qsgd.torch import QSGD

SHAPES = [(60, 50), (120, 80), (3, 5), (2049,)]
STEPS = 2  # tokens that come back as they did before are read together
SETTINGS: list[dict[str, Any]] = [
    {"codec": "packed"},
    {"codec": "ternary"},
    {"codec": "rans", "levels": 7},
    {"codec": "elias-dense", "levels": 7},
    {"codec": "elias-sparse", "levels": 7},
]
Tensors = list[torch.Tensor]


def gradients(step: int, device: torch.device) -> Tensors:
    """This rank's."""
    generator = torch.Generator().manual_seed(1000 * hvd.rank() + step)
    return [torch.randn(shape, generator=generator).to(device) for shape in SHAPES]


def reduced(device: torch.device, **options: Any) -> Tensors:
    """The means of all steps' gradients."""
    compressor = QSGD(min_size=0, **options)
    return [
        hvd.allreduce(gradient, name=f"{k}", compression=compressor)
        for step in range(STEPS)
        for k, gradient in enumerate(gradients(step, device))
    ]


def trained(device: torch.device, **options: Any) -> Tensors:
    """Weights after all steps of an optimizer with two groups: exact but for the means, so the same on every device."""
    weights = [torch.nn.Parameter(torch.zeros(shape, device=device)) for shape in SHAPES]
    named = [(f"weight{k}", weight) for k, weight in enumerate(weights)]
    compressor = QSGD(named_parameters=named, min_size=0, **options)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(weights, lr=0.5), named, compressor, groups=2)
    for step in range(STEPS):
        optimizer.zero_grad()
        torch.stack([(weight * g).sum() for weight, g in zip(weights, gradients(step, device))]).sum().backward()
        optimizer.step()
    compressor.stats()  # raises if a frame was wrong
    return [weight.detach() for weight in weights]


def everything(device: torch.device) -> dict[str, Tensors]:
    found = {}
    for options in SETTINGS:
        found[f"{options['codec']}, reduced"] = reduced(device, **options)
        found[f"{options['codec']}, trained"] = trained(device, **options)
    return found


def bits(tensors: Tensors) -> list[bytes]:
    return [tensor.cpu().numpy().tobytes() for tensor in tensors]


def pretended() -> torch.device:
    import pytest
    from pretended_gpu import pretend

    pretend(pytest.MonkeyPatch())
    return torch.device("cpu")


def main() -> None:
    torch.set_num_threads(1)
    hvd.init()
    assert hvd.size() == 2
    expected = everything(torch.device("cpu"))
    device = pretended() if sys.argv[1:] == ["pretended"] else torch.device("cuda", 0)
    native_cuda.library()
    gpu = torch_streams.GPU
    with mock.patch.object(gpu, "lend", wraps=gpu.lend) as encoded:
        found = everything(device)
    assert encoded.call_count == 2 * len(SETTINGS) * STEPS * len(SHAPES), "some were not encoded on the GPU"
    wrong = [what for what, tensors in found.items() if bits(tensors) != bits(expected[what])]
    assert not wrong, f"not the CPU's results: {wrong}"
    say(f"the CPU's results, {len(found)} times")


if __name__ == "__main__":
    main()
