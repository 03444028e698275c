"""Frames and results are those of `hvd_qsgd.encode` and `decode_sum`, byte for byte, in both modes of TensorFlow."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import pytest
import tensorflow as tf
import tftools as tt
from rankcommon import RANK, SIZE
from tftools import frame_and_result

from hvd_qsgd.tensorflow import QSGD

SETTINGS: list[dict[str, Any]] = [
    {"bits": 4},
    {"levels": 100, "norm": "l2", "bucket_size": 64},
    {"bits": 2, "bucket_size": None},
    {"codec": "ternary", "bucket_size": 128},
    {"bits": 3, "dither": "subtractive"},
]
DTYPES = ["float32", "float16", "bfloat16"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", SETTINGS, ids=str)
def test_eager(how: dict[str, Any], dtype: str) -> None:
    compression = QSGD(**how, seed=2**64 - 1)
    for step in range(2):
        everyone = tt.of_all_ranks(33, 51, seed=step, dtype=dtype)
        frame, result = frame_and_result(tf.constant(everyone[RANK]), compression)
        expected = {"step": step, "seed": 2**64 - 1, **how}
        assert frame.numpy().tobytes() == tt.frames_of(everyone, **expected)[RANK]
        assert tt.same_bits(result, tt.decoded(everyone, **expected))


def test_graph() -> None:
    """Every dtype in one function; settings change, and nothing is traced again."""
    compression = QSGD(name="graph")
    traces = 0

    @tf.function
    def run(tensors: list[Any]) -> list[tuple[Any, Any]]:
        nonlocal traces
        traces += 1
        return [frame_and_result(tensor, compression) for tensor in tensors]

    defaults = {"norm": "max", "codec": "packed", "bucket_size": 512, "dither": "nonsubtractive"}
    for step, how in enumerate([*SETTINGS, SETTINGS[0]]):
        compression.change(**{**defaults, **how})
        everyone = [tt.of_all_ranks(33, 51, seed=step, dtype=dtype) for dtype in DTYPES]
        results = run([tf.constant(each[RANK]) for each in everyone])
        for k, ((frame, result), each) in enumerate(zip(results, everyone)):
            expected = {"k": k, "step": step, "name": "graph", **how}
            assert frame.numpy().tobytes() == tt.frames_of(each, **expected)[RANK]
            assert tt.same_bits(result, tt.decoded(each, **expected))
    assert traces == 1


def test_the_first_dimension_may_be_unknown() -> None:
    compression = QSGD(name="dynamic")

    @tf.function(input_signature=[tf.TensorSpec([None, 40])])
    def run(tensor: Any) -> Any:
        result = hvd.allreduce(tensor, compression=compression)
        assert result.shape.as_list() == [None, 40]
        return result

    for step, rows in enumerate([50, 3, 0, 700]):
        everyone = tt.of_all_ranks(rows, 40, seed=step)
        assert tt.same_bits(run(tf.constant(everyone[RANK])), tt.decoded(everyone, step=step, name="dynamic"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_reach_every_rank(value: float) -> None:
    mine = tt.randn(40, 64)
    if RANK == SIZE - 1:
        mine[8, 0] = value
    result = hvd.allreduce(tf.constant(mine), compression=QSGD(name=f"not finite {value}")).numpy()
    assert np.isnan(result[8:16]).all()  # the bucket
    assert np.isfinite(result[:8]).all()
    assert np.isfinite(result[16:]).all()
