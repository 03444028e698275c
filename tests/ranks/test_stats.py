"""The statistics say what travelled."""

from __future__ import annotations

from typing import Any

import horovod.torch as hvd
import pytest
import ranktools as rt
import reference as ref
import torch

from hvd_qsgd.torch import QSGD


class Wire:
    """Counts what Horovod's allgather takes and gives, and keeps the frames that this rank sent."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.sent: list[bytes] = []
        self.results: dict[int, int] = {}
        start, start_group, finish = hvd.allgather_async, hvd.grouped_allgather_async, hvd.synchronize
        gathers = set()

        def counted(handle: int, everything: list[torch.Tensor]) -> int:
            gathers.add(handle)
            self.sent += [words.numpy().tobytes() for words in everything]
            return handle

        def synchronize(handle: int) -> Any:
            result = finish(handle)
            if handle in gathers:
                everything = result if isinstance(result, tuple) else [result]
                self.results[handle] = sum(words.numel() * words.element_size() for words in everything)
            return result

        patch.setattr(hvd, "allgather_async", lambda words, **how: counted(start(words, **how), [words]))
        patch.setattr(hvd, "grouped_allgather_async", lambda all_, **how: counted(start_group(all_, **how), all_))
        patch.setattr(hvd, "synchronize", synchronize)

    @property
    def bytes_sent(self) -> int:
        return sum(map(len, self.sent))

    @property
    def bytes_received(self) -> int:
        return sum(self.results.values()) - self.bytes_sent


def test_counts_are_what_horovod_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    compressor = QSGD([2, 8, 4, 3][rt.RANK], bucket_size=100)
    wire = Wire(monkeypatch)
    tensors = [rt.randn(40, 50), rt.randn(3000), rt.randn(70, 30, dtype=torch.float16), rt.randn(4, 4)]
    for _ in range(3):
        rt.reduced(tensors, compressor)
    rt.reduced(rt.randn(40, 30, dtype=torch.float64), compressor)
    stats = compressor.stats()
    assert stats.bytes_sent == wire.bytes_sent
    assert stats.bytes_received == wire.bytes_received
    assert stats.steps == 4
    assert (stats.tensors_compressed, stats.tensors_skipped) == (7, 6)
    assert stats.coordinates == 3 * (2000 + 2100) + 1200
    assert stats.bytes_raw == 3 * (8000 + 4200) + 4800  # float64 travels as float32
    assert stats.bytes_uncompressed == 3 * (12000 + 64)
    assert stats.bits_per_coordinate == pytest.approx(8 * stats.bytes_sent / stats.coordinates)
    assert stats.compression_ratio == pytest.approx(stats.bytes_raw / stats.bytes_sent)
    assert min(stats.seconds_encode, stats.seconds_wait, stats.seconds_decode) > 0
    assert stats.relative_error == 0
    sent = rt.from_all_ranks(stats.bytes_sent)
    assert stats.bytes_received == sum(sent) - sent[rt.RANK]
    compressor.reset_stats()
    assert compressor.stats().steps == compressor.stats().bytes_sent == 0
    assert stats.steps == 4, "a copy"


def test_bits_received_for_a_large_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(monkeypatch)
    compressor = QSGD()
    count = 3_200_000
    gradient = torch.randn(1600, 2000, generator=rt.rng(1))
    result = rt.reduced(gradient, compressor)
    received = 8 * wire.bytes_received / count / (rt.SIZE - 1)
    assert received <= 4.13
    assert 8 * wire.bytes_sent / count == received
    assert compressor.stats().bits_per_coordinate == received
    assert compressor.stats().compression_ratio > 7.8
    rt.assert_replicas_equal([result])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_measured_error_is_the_real_one(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    wire = Wire(monkeypatch)
    compressor = QSGD(3, measure_error=True)
    silent = QSGD(3)
    error = norm = 0.0
    for step in range(3):
        gradient = rt.randn(60, 70, seed=step, dtype=dtype)
        result = rt.reduced(gradient, compressor)
        own = torch.from_numpy(ref.dequantize(wire.sent[-1]).copy()).to(dtype).double().view(60, 70)
        exact = gradient.double()
        error += float((own - exact).square().sum())
        norm += float(exact.square().sum())
        assert torch.equal(result, rt.reduced(gradient, silent)), "measuring changes nothing"
    stats = compressor.stats()
    assert stats.squared_error == pytest.approx(error, rel=1e-6)
    assert stats.squared_norm == pytest.approx(norm, rel=1e-6)
    assert stats.relative_error == pytest.approx(error / norm, rel=1e-6)
    assert 0.01 < stats.relative_error < 1
