"""`codec="auto"` and frames of a variable length: which codec, when another one, and how long frames are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import Array, Kernels, all_kernels, arrive, leave, same_bits

import hvd_qsgd
from hvd_qsgd import QSGDError, frames, native, wire
from hvd_qsgd.compressor import Compressor, Options
from hvd_qsgd.config import Quantization
from hvd_qsgd.steps import Ticket

N = 1 << 14
CHOICE = [name for name in wire.CODECS if name != "onebit"]  # of auto: those that are unbiased


def dense(power: float = 1.0) -> Array:
    """Whose codes at 127 levels are all alike probable, if power is 1: a fixed width is best."""
    uniform = np.random.default_rng(1).uniform(-127.5, 127.5, N) / 127.5
    return (np.sign(uniform) * np.abs(uniform) ** power).astype(np.float32)


def sparse(density: float = 0.02, seed: int = 2) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(N) * (rng.random(N) < density)).astype(np.float32)


class Sender:
    """A tensor's frames, one after the other, straight from the kernels."""

    def __init__(self, **how: Any) -> None:
        self.quantization = Quantization.create(**how)
        self.history = native.History()

    def send(self, values: Array, variance: float | None = None, **changes: Any) -> wire.Header:
        self.quantization = self.quantization.changed(**changes) if changes else self.quantization
        spec = frames.make_spec(
            self.quantization, count=values.size, dtype="float32", seed=0, rank=0, tensor=0, step=0
        )  # fmt: skip
        room = native.frame_bytes(spec)
        self.frame = np.full(room + 64, 0xA5, np.uint8)
        variance = self.quantization.variance if variance is None else variance
        size = native.encode_next(spec, variance, self.history, values.ctypes.data, self.frame.ctypes.data, room)
        assert (self.frame[room:] == 0xA5).all()
        header = hvd_qsgd.inspect(self.frame[:size].tobytes())
        assert header.frame_bytes == size == self.history.frame_bytes
        return header


def shortest(values: Array, levels: int, **how: Any) -> str:
    sizes = {
        name: len(hvd_qsgd.encode(values, levels=levels, codec=name, **how))
        for name in CHOICE if levels <= wire.CODECS[name].max_levels
    }  # fmt: skip
    return min(sizes, key=lambda name: sizes[name])


@pytest.mark.parametrize("levels", [1, 2, 7, 127, 128, 5000, 32767])
@pytest.mark.parametrize("values", [dense(), sparse(), sparse(0.5), np.zeros(N, np.float32)], ids="dsmz")
def test_the_shortest_frame(values: Array, levels: int) -> None:
    for how in ({}, {"norm": "l2", "bucket_size": None}):
        best = shortest(values, levels, **how)
        frame = hvd_qsgd.encode(values, levels=levels, codec="auto", **how)
        assert frame == hvd_qsgd.encode(values, levels=levels, codec=best, **how)
    assert levels != 127 or shortest(dense(), levels) == "packed" != shortest(sparse(), levels)


def test_small_and_empty_tensors() -> None:
    for n in (0, 1, 15, 100):
        for how in ({"levels": 7}, {"variance": 0.1}):
            values = sparse(1)[:n]
            frame = hvd_qsgd.encode(values, codec="auto", **how)
            assert hvd_qsgd.decode(frame).size == n
            assert len(frame) == min(
                len(hvd_qsgd.encode(values, codec=name, levels=hvd_qsgd.inspect(frame).levels,
                                    **({} if "levels" in how else {"norm": "l2", "bucket_size": None})))
                for name in CHOICE if wire.CODECS[name].max_levels >= hvd_qsgd.inspect(frame).levels
            )  # fmt: skip


def test_when_codecs_are_compared() -> None:
    """At frames 0, 1, 2, 4, 8, ... 1024, 2048, 3072, ...: seldom enough to cost nothing."""
    sender, values, compared = Sender(levels=7, codec="auto"), sparse()[:512], []
    for number in range(4100):
        sender.history.codec = wire.CODECS["packed"].id  # which is not the best
        if sender.send(values).codec != "packed":
            compared.append(number)
    assert compared == [0, *(2**k for k in range(11)), 2048, 3072, 4096]


def test_a_gradient_that_changes() -> None:
    sender = Sender(levels=127, codec="auto")
    seen = [sender.send(sparse() if number >= 5 else dense()).codec for number in range(20)]
    assert seen == ["packed"] * 8 + [shortest(sparse(), 127)] * 12


def test_another_codec_must_save_a_sixteenth() -> None:
    values = next(dense(power) for power in np.linspace(1, 2, 100) if 0.945 < gain(dense(power)) < 0.98)
    best = shortest(values, 127)
    assert best != "packed"
    fresh, settled = Sender(levels=127, codec="auto"), Sender(levels=127, codec="auto")
    assert fresh.send(values).codec == best
    assert settled.send(dense()).codec == "packed"
    assert [settled.send(values).codec for _ in range(40)] == ["packed"] * 40
    better = next(dense(power) for power in np.linspace(1, 6, 100) if gain(dense(power)) < 0.92)
    assert [settled.send(better).codec for _ in range(40)][-1] == shortest(better, 127) != "packed"


def gain(values: Array) -> float:
    """What the best code of a variable length needs, as a part of packed's bytes."""
    sizes = {name: len(hvd_qsgd.encode(values, levels=127, codec=name)) for name in CHOICE if name != "ternary"}
    return min(sizes[name] for name in sizes if name != "packed") / sizes["packed"]


def test_levels_that_a_codec_does_not_have() -> None:
    sender = Sender(levels=127, codec="auto")
    assert [sender.send(dense()).codec for _ in range(4)] == ["packed"] * 4
    assert sender.send(dense(), levels=128).codec != "packed"
    sender = Sender(levels=1, codec="auto")
    values = np.random.default_rng(4).integers(-1, 2, N).astype(np.float32)
    assert [sender.send(values).codec for _ in range(4)] == ["ternary"] * 4
    assert sender.send(values, levels=2).codec != "ternary"


def test_levels_that_are_no_longer_what_they_were() -> None:
    sender = Sender(levels=40, codec="auto")
    for number, (levels, compared) in enumerate([
        (40, True), (40, True), (40, True), (40, False), (40, True), (81, False), (82, True), (41, False), (40, True),
        (20, False), (19, True),
    ]):  # fmt: skip
        sender.history.codec = wire.CODECS["packed"].id
        assert (sender.send(sparse(), levels=levels).codec != "packed") == compared, (number, levels)


def test_the_choice_begins_anew_after_another_codec() -> None:
    sender = Sender(levels=7, codec="auto")
    for _ in range(10):
        sender.send(sparse())
    assert sender.send(sparse(), codec="packed", levels=7).codec == "packed"
    assert sender.send(sparse(), codec="auto", levels=7).codec == shortest(sparse(), 7)


# ---- lengths ----


@pytest.mark.parametrize("how", [{"levels": 50, "codec": "rans"}, {"variance": 0.1}], ids=str)
def test_lengths_stay_put(how: dict[str, Any]) -> None:
    """Gradients like the last one are as long; padding is a few per cent; a much shorter one is not padded up."""
    sender = Sender(**how)
    headers = [sender.send(sparse(0.2, seed)) for seed in range(30)]
    assert len({header.frame_bytes for header in headers}) == 1
    assert len({header.coded_bytes for header in headers}) > 10
    assert all(header.frame_bytes < 1.25 * header.coded_bytes for header in headers)
    much, little = sender.send(sparse(1.0)), sender.send(sparse(0.1))
    assert little.frame_bytes < headers[0].frame_bytes < much.frame_bytes


def test_a_frame_that_fills_its_buffer() -> None:
    """Padding never needs more room than the longest frame."""
    values = np.random.default_rng(3).uniform(-1, 1, 2048).astype(np.float32)
    sender = Sender(levels=32767, codec="rans", bucket_size=1)
    assert sender.send(values).frame_bytes <= native.frame_bytes(
        frames.make_spec(sender.quantization, count=2048, dtype="float32", seed=0, rank=0, tensor=0, step=0)
    )


def send(core: Any, ticket: Ticket, values: Array) -> Array:
    def allocate(size: int) -> tuple[Array, int]:
        frame = np.empty(size, np.uint8)
        return frame, frame.ctypes.data

    return core.encode(ticket, values.ctypes.data, allocate)


def test_the_compressor_counts_what_is_resized() -> None:
    core = Compressor(Quantization.create(variance=0.1), Options())
    sizes = []
    for density in (0.2, 0.2, 1.0, 1.0, 1.0, 0.1, 0.1):
        ticket, values = leave(core, "w", N), sparse(density)
        frame = send(core, ticket, values)
        sizes.append(frame.size)
        alone = hvd_qsgd.encode(values, variance=0.1, tensor=ticket.slot.spec.tensor, step=ticket.slot.spec.step)
        assert same_bits(hvd_qsgd.decode(frame.tobytes()), hvd_qsgd.decode(alone))
        arrive(core, ticket)
    assert sizes[0] == sizes[1] != sizes[2] == sizes[4] != sizes[5] == sizes[6]
    assert core.stats.frames_resized == 2
    core.change(bits=4, codec="packed")
    for _ in range(3):
        ticket = leave(core, "w", N)
        send(core, ticket, sparse())
        arrive(core, ticket)
    assert core.stats.frames_resized == 3  # from the last of the others to the first of these


# ---- what does not work ----


def test_wrong_calls() -> None:
    for kernels in all_kernels():
        assert_refused(kernels)
    with pytest.raises(QSGDError, match="out of range"):
        Sender(variance=0.1).send(dense(), variance=-1.0)


def assert_refused(kernels: Kernels) -> None:
    """Null pointers, no room, and `auto` where no codec is chosen; nothing is written, in the history least of all."""
    values, how = dense(), Quantization.create(variance=0.1)
    spec = frames.make_spec(how, count=N, dtype="float32", seed=0, rank=0, tensor=0, step=0)
    frame, size, history = np.zeros(native.frame_bytes(spec), np.uint8), native.c_uint64(), native.History()
    good: list[Any] = [spec, 0.1, history, values.ctypes.data, frame.ctypes.data, frame.size, 1, size]
    for k in (0, 2, 3, 4, 7):
        assert kernels.c.qsgd_encode_next(*good[:k], None, *good[k + 1 :]) == 1
    assert kernels.c.qsgd_encode_next(*good[:5], 1000, *good[6:]) == 2
    assert kernels.c.qsgd_encode(spec, values.ctypes.data, frame.ctypes.data, frame.size, 1, size) == 1
    assert (frame == 0).all()
    assert (history.frame_bytes, history.frames) == (0, 0)
    assert kernels.c.qsgd_encode_next(*good) == native.OK
