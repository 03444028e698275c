"""Whether encoding hides behind the rest of ``backward``: each layer's gradient is encoded as soon as it is there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu_device import Device, Exchange

LAYERS, WIDTH, BATCH = 16, 4096, 512
LAYERS_EMULATED, WIDTH_EMULATED = 3, 32
TURNS = 9


class Training:
    """A chain of square layers, whose gradients stay where they are."""

    def __init__(self, device: Device) -> None:
        self.device = device
        layers, width = (LAYERS_EMULATED, WIDTH_EMULATED) if device.emulated else (LAYERS, WIDTH)
        self.model = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(layers)))
        self.model.to(device.kind)
        self.inputs = torch.randn(min(BATCH, width), width, device=device.kind)
        self.weights = list(self.model.parameters())
        self.backward()
        self.exchanges = [Exchange(device, gradient, {"bits": 4}, 1) for gradient in self._gradients()]
        self.ready: list[Any] = []  # marks: each frame is there
        self.ended: Any = None  # backward is over

    def _gradients(self) -> list[torch.Tensor]:
        return [weight.grad for weight in self.weights if weight.grad is not None]

    def backward(self) -> None:
        """Forward and backward; gradients add up in their memory."""
        self.model(self.inputs).square().mean().backward()

    def encode_all(self) -> None:
        for exchange in self.exchanges:
            exchange.encode()

    def one_after_the_other(self) -> None:
        self.backward()
        self.encode_all()

    def beside(self) -> None:
        """As the PyTorch frontend does it: by hooks, on a stream of its own, for which the step waits in the end."""
        self.ready = []
        with contextlib.ExitStack() as hooks:
            for weight, exchange in zip(self.weights, self.exchanges):
                hook = weight.register_post_accumulate_grad_hook(self._encoder(exchange))
                hooks.callback(hook.remove)
            self.backward()
        self.ended = self.device.mark()
        self.device.wait_for(self.ready[-1])

    def _encoder(self, exchange: Exchange) -> Callable[[torch.Tensor], None]:
        def encode(weight: torch.Tensor) -> None:
            with self.device.encoding(weight):
                exchange.encode()
                self.ready.append(self.device.mark())

        return encode

    def ready_early(self) -> int:
        """Frames that were there when the last ``beside`` came to the end of backward."""
        self.device.synchronize()
        return sum(self.device.between(ready, self.ended) > 0 for ready in self.ready)


def overlap_table(device: Device) -> Iterator[tuple[str, ...]]:
    """Of the time that encoding takes by itself, what a step is spared."""
    torch.set_float32_matmul_precision("high")  # or backward takes so long that encoding is lost in its noise
    training = Training(device)
    runs = [training.backward, training.encode_all, training.one_after_the_other, training.beside]
    alone, encoding, after, beside = device.seconds(runs, TURNS)
    for exchange in training.exchanges:
        exchange.decode_sum()
        exchange.check()
    size = sum(weight.numel() for weight in training.weights)
    yield f"{len(training.weights)} layers, {size / 1e6:.1f} M weights, 4 bits", "ms", "more than alone", "hidden"
    yield "forward and backward alone", f"{alone * 1e3:.3f}", "", ""
    yield "encoding alone", f"{encoding * 1e3:.3f}", "", ""
    for name, spent in (("encoding after backward", after), ("encoding beside backward", beside)):
        more = spent - alone
        yield name, f"{spent * 1e3:.3f}", f"{more * 1e3:.3f}", f"{1 - more / encoding:.0%}"
    yield "frames there when backward ended", f"{training.ready_early()} of {len(training.weights)}", "", ""
