"""Error feedback in TensorFlow: the frames are those that PyTorch's frontend would send."""

from __future__ import annotations

import functools
from typing import Any

import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import tftools as tt
from rankcommon import RANK, SIZE, from_all_ranks, on_two_ranks

import hvd_qsgd
from hvd_qsgd import QSGDError
from hvd_qsgd.steps import tensor_id
from hvd_qsgd.tensorflow import QSGD

CODECS: list[dict[str, Any]] = [
    {"codec": "onebit"}, {"bits": 2}, {"variance": 0.5}, {"levels": "sqrt", "bucket_size": 100}
]  # fmt: skip


@pytest.mark.parametrize(("how", "dtype"), [*zip(CODECS, ["float32", "float16", "bfloat16", "float64"])], ids=str)
def test_every_step_is_what_it_must_be(how: dict[str, Any], dtype: str) -> None:
    """In a function that is traced once, and in eager mode; with a NaN, whose bucket's residual is zero again."""
    name = f"feedback {how} {dtype}"
    compression, residual = QSGD(name=name, error_feedback=True, **how), np.zeros((60, 70), np.float32)
    run = tf.function(lambda tensor: hvd.allreduce(tensor, compression=compression, op=hvd.Average))
    for step in range(5):
        values = tt.randn(60, 70, seed=step, dtype=dtype)
        if step == 2 and RANK == 1:
            values[1, 2] = np.nan
        total = values.astype(np.float32) + residual
        frame = hvd_qsgd.encode(total, rank=RANK, tensor=tensor_id(name, "#0"), step=step, **how)
        rest = total - hvd_qsgd.decode(frame).reshape(total.shape)
        residual = np.where(np.isfinite(rest), rest, np.float32(0))
        expected = hvd_qsgd.decode_sum(from_all_ranks(frame), 1 / SIZE).reshape(total.shape)
        result = run(tf.constant(values))
        assert tt.same_bits(result, expected.astype(values.dtype)), step
        state = compression.state_dict()["residuals"]
        assert state["rank"] == RANK
        assert tt.same_bits(state["tensors"]["#0 (60, 70)"], residual)
    (variable,) = [each for each in compression.variables if each.dtype == tf.float32]
    read = variable.read_value()  # what somebody has read does not change
    run(tf.constant(values))
    assert tt.same_bits(read, residual)


@on_two_ranks
def test_eager_is_the_same() -> None:
    models = [tt.Model(QSGD(codec="onebit", error_feedback=True)) for _ in range(2)]
    models[0].step = models[0]._step
    for model in models:
        model.train(range(5))
    assert len({tt.assert_replicas_equal(model.weights) for model in models}) == 1
    assert models[1].traces == 1


@on_two_ranks
def test_accumulated_gradients() -> None:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.layers.Dense(40, input_shape=(48,)), keras.layers.Dense(30)])
    compression = QSGD(codec="onebit", error_feedback=True)
    optimizer = hvd_keras.DistributedOptimizer(
        keras.optimizers.SGD(0.1), compression=compression, backward_passes_per_step=3
    )
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = model.fit(*tt.batch(0, 192), batch_size=16, epochs=6, verbose=0).history["loss"]
    tt.assert_replicas_equal(model.get_weights())
    assert losses[-1] < 0.9 * losses[0]
    assert compression.state_dict()["steps"] == {"#0": 24, "#1": 24}
    assert all(array.any() for array in compression.state_dict()["residuals"]["tensors"].values())


@on_two_ranks
@pytest.mark.parametrize("way", ["state", "checkpoint"])
def test_resumed_at_any_step(way: str, tmp_path: Any) -> None:
    """Every rank saves and loads its own."""
    model, saved = tt.Model(QSGD(codec="onebit", error_feedback=True)), []
    for step in range(4):
        file = tf.train.Checkpoint(compression=model.compression).write(str(tmp_path / f"{step} of rank {RANK}"))
        saved.append(([weight.numpy() for weight in model.weights], model.compression.state_dict(), file))
        model.train(range(step, step + 1))
    end = tt.assert_replicas_equal(model.weights)
    for step, each in enumerate(saved):
        again = tt.Model(QSGD(codec="onebit", error_feedback=True, seed=9))
        again.go_on(way, *each)
        again.train(range(step, 4))
        assert tt.assert_replicas_equal(again.weights) == end, step


@on_two_ranks
def test_states() -> None:
    """Another rank's residuals become zero; what is none is refused, and nothing changes."""
    model = tt.Model(QSGD(codec="onebit", error_feedback=True))
    model.train(range(2))
    own = model.compression.state_dict()
    assert sorted(own["residuals"]["tensors"]) == ["#0 (48, 40)", "#1 (40, 30)"]
    for wrong in (5, {"rank": 0, "tensors": {"#0 (48, 40)": np.zeros((40, 48), np.float32)}}):
        with pytest.raises(QSGDError, match="residual"):
            model.compression.load_state_dict({**own, "residuals": wrong})
    model.compression.load_state_dict(hvd.broadcast_object(own, 1))
    after = model.compression.state_dict()["residuals"]["tensors"]
    for key, array in own["residuals"]["tensors"].items():
        assert tt.same_bits(after[key], array if RANK == 1 else np.zeros_like(array))
    with pytest.raises(QSGDError, match=r"delete state\['residuals'\]"):
        QSGD(codec="onebit").load_state_dict(own)
    model.train(range(2, 4))
    tt.assert_replicas_equal(model.weights)


@on_two_ranks
def test_a_shape_that_is_not_static() -> None:
    compression = QSGD(codec="onebit", error_feedback=True, min_size=0)
    signature = [tf.TensorSpec([None, 40])]
    reduce = functools.partial(hvd.allreduce, compression=compression)
    run = tf.function(reduce, input_signature=signature, autograph=False)
    with pytest.raises(QSGDError, match="needs gradients of a static shape"):
        run(tf.zeros([40, 40]))


@on_two_ranks
def test_clipping() -> None:
    compression = QSGD.preset("terngrad")
    for step, everyone in enumerate([tt.of_all_ranks(60, 70), [np.full((60, 70), 3, np.float32)] * SIZE]):
        limits = [2.5 * np.std(each, dtype=np.float64) or np.inf for each in everyone]
        clipped = [np.clip(each, np.float32(-limit), np.float32(limit)) for each, limit in zip(everyone, limits)]
        result = hvd.allreduce(tf.constant(everyone[RANK]), compression=compression, name="clipped")
        assert tt.same_bits(result, tt.decoded(clipped, step=step, codec="ternary", bucket_size=None))


@on_two_ranks
def test_presets() -> None:
    compression = QSGD.preset("qsgd-theory")
    everyone = tt.of_all_ranks(60, 70)
    how = {"levels": 64, "norm": "l2", "codec": "elias-dense", "bucket_size": None}
    token, ctx = compression.compress(tf.constant(everyone[RANK]))
    result = compression.decompress(hvd.allreduce(token, op=hvd.Average, name="token of a preset"), ctx)
    assert tt.same_bits(result, tt.decoded(everyone, **how))
    assert compression.levels == "sqrt"
    assert repr(compression) == "QSGD(levels=sqrt, bucket_size=None, norm='l2', codec='elias-dense')"
    compression.load_state_dict(compression.state_dict())
    assert compression.levels == "sqrt"
