"""`variance=` and `codec="auto"` in TensorFlow: what `hvd_qsgd.encode` makes of them, bit for bit."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import pytest
import tensorflow as tf
import tftools as tt
from rankcommon import RANK, SIZE, from_all_ranks, on_two_ranks

import hvd_qsgd
from hvd_qsgd.tensorflow import QSGD

SETTINGS: list[dict[str, Any]] = [
    {"variance": 0.1},
    {"variance": 0.02, "norm": "max", "bucket_size": 64, "codec": "packed"},
    {"bits": 8, "codec": "auto"},
    {"variance": 1.5, "codec": "rans", "bucket_size": None, "norm": "l2"},
]


def of_all_ranks(seed: int) -> list[Any]:
    """Odd ranks have mostly zeros."""
    everyone = tt.of_all_ranks(60, 70, seed=seed)
    return [each * (np.abs(each) > 2) if rank % 2 else each for rank, each in enumerate(everyone)]


@pytest.mark.parametrize("how", SETTINGS, ids=str)
def test_eager(how: dict[str, Any]) -> None:
    compression = QSGD(**how)
    for step in range(3):
        everyone = of_all_ranks(step)
        token, ctx = compression.compress(tf.constant(everyone[RANK]))
        result = compression.decompress(hvd.allreduce(token, op=hvd.Average, name="token"), ctx)
        assert tt.same_bits(result, tt.decoded(everyone, step=step, **how))
        mine = hvd_qsgd.inspect(ctx.frame.numpy().tobytes())
        assert mine.levels == hvd_qsgd.inspect(tt.frames_of(everyone, step=step, **how)[RANK]).levels
    if how == SETTINGS[0]:
        assert len({(header.levels, header.codec) for header in from_all_ranks(mine)}) > 1


@on_two_ranks
def test_graph() -> None:
    """Settings change, and nothing is traced again."""
    compression, traces = QSGD(name="qualities"), 0

    @tf.function
    def run(tensor: Any) -> Any:
        nonlocal traces
        traces += 1
        return hvd.allreduce(tensor, compression=compression)

    for step, how in enumerate([*SETTINGS, *SETTINGS, {"bits": 3}]):
        defaults = {"norm": "l2", "codec": "auto", "bucket_size": None} if "variance" in how else {}
        compression.change(**{"norm": "max", "codec": "packed", "bucket_size": 512, **defaults, **how})
        everyone = of_all_ranks(step)
        assert tt.same_bits(run(tf.constant(everyone[RANK])), tt.decoded(everyone, step=step, name="qualities", **how))
    assert traces == 1


@on_two_ranks
def test_lengths_stay_put() -> None:
    model = tt.Model(QSGD(variance=0.1))
    model.train(range(10))
    tt.assert_replicas_equal(model.weights)
    stats = model.compression.stats()
    assert stats.tensors_compressed == 20
    assert stats.frames_resized <= 4
    model.compression.change(variance=0.001)
    model.train(range(2))
    assert model.compression.stats().frames_resized >= stats.frames_resized + 2
    model.compression.reset_stats()
    assert model.compression.stats().frames_resized == 0


@on_two_ranks
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Any) -> None:
    model = tt.Model(QSGD(variance=0.2))
    model.train(range(5))
    saved = [[weight.numpy() for weight in model.weights], model.compression.state_dict()]
    assert (saved[1]["variance"], saved[1]["levels"]) == (0.2, None)
    checkpoint = tf.train.Checkpoint(compression=model.compression).write(str(tmp_path / f"rank{RANK}of{SIZE}"))
    model.train(range(5, 10))
    end = tt.assert_replicas_equal(model.weights)
    for how in ("state", "checkpoint"):
        again = tt.Model(QSGD(bits=4))
        for weight, value in zip(again.weights, saved[0]):
            weight.assign(value)
        if how == "state":
            again.compression.load_state_dict(saved[1])
        else:
            tf.train.Checkpoint(compression=again.compression).restore(checkpoint)
        again.train(range(5, 10))
        assert tt.assert_replicas_equal(again.weights) == end, how
        assert again.compression.state_dict() == model.compression.state_dict()
        assert repr(again.compression) == "QSGD(variance=0.2, bucket_size=None, norm='l2', codec='auto')"
