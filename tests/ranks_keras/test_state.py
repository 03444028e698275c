"""Saving, resuming and starting alike; the callbacks; mistakes that every rank is told."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import keras
import kerastools as kt
import numpy as np
import pytest
import tensorflow as tf
from rankcommon import RANK, SIZE, assert_all_raise, from_all_ranks, on_two_ranks
from ranks_tensorflow import tftools as tt

from hvd_qsgd import QSGDError
from hvd_qsgd.keras import QSGD, BroadcastGlobalVariablesCallback, DistributedOptimizer, MetricAverageCallback


@on_two_ranks
@pytest.mark.parametrize("before", [0, 3])
def test_a_checkpoint_continues_bit_for_bit(tmp_path: Path, before: int) -> None:
    """The optimizer's brings the compressor along; restored before the first step, or after some others."""
    one = kt.compiled(keras.optimizers.Adam(0.01), QSGD(bits=3, seed=5))
    kt.train(one, range(4))
    path = tf.train.Checkpoint(model=one, optimizer=one.optimizer).write(str(tmp_path / "checkpoint"))
    kt.train(one, range(4, 8))
    other = kt.compiled(keras.optimizers.Adam(0.01), QSGD(), seed=9)
    other.optimizer.build(other.trainable_variables)
    if before:
        kt.train(other, range(before))
    tf.train.Checkpoint(model=other, optimizer=other.optimizer).read(path)
    kt.train(other, range(4, 8))
    assert tt.assert_replicas_equal(kt.state(other)) == tt.assert_replicas_equal(kt.state(one))
    assert other.optimizer.compression.state_dict() == one.optimizer.compression.state_dict()
    assert other.optimizer.compression.state_dict()["steps"]["#0"] == 8


@on_two_ranks
@pytest.mark.parametrize("way", ["checkpoint", "state"])
def test_residuals_continue_bit_for_bit(tmp_path: Path, way: str) -> None:
    """Every rank restores its own, which the callback leaves alone; also those that belong to no step yet."""
    one = kt.compiled(keras.optimizers.Adam(0.01), QSGD(codec="onebit", error_feedback=True))
    kt.train(one, range(4))
    state = one.optimizer.compression.state_dict()
    path = tf.train.Checkpoint(model=one, optimizer=one.optimizer).write(str(tmp_path / f"checkpoint of {RANK}"))
    kt.train(one, range(4, 8))
    other = kt.compiled(keras.optimizers.Adam(0.01), QSGD(codec="onebit", error_feedback=True), seed=9)
    other.optimizer.build(other.trainable_variables)
    tf.train.Checkpoint(model=other, optimizer=other.optimizer).read(path)
    if way == "state":
        other.optimizer.compression.load_state_dict(state)
    callback = BroadcastGlobalVariablesCallback(root_rank=0)
    callback.set_model(other)
    callback.on_train_begin()
    kt.train(other, range(4, 8))
    assert tt.assert_replicas_equal(kt.state(other)) == tt.assert_replicas_equal(kt.state(one))
    assert len(set(from_all_ranks(tt.digest(state["residuals"]["tensors"].values())))) == SIZE


@on_two_ranks
def test_a_saved_model_continues_bit_for_bit(tmp_path: Path) -> None:
    """With what the compressor's state_dict() says."""
    one = kt.compiled(keras.optimizers.Adam(0.01), QSGD(seed=5))
    kt.train(one, range(4))
    state = one.optimizer.compression.state_dict()
    one.save(tmp_path / "model.keras")
    kt.train(one, range(4, 8))
    other = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"Counted": kt.Counted})
    assert type(other.optimizer) is keras.optimizers.Adam
    compression = QSGD()
    compression.load_state_dict(state)
    other.compile(DistributedOptimizer(other.optimizer, compression=compression), kt.loss())
    kt.train(other, range(4, 8))
    assert tt.assert_replicas_equal(kt.state(other)) == tt.assert_replicas_equal(kt.state(one))


WITHOUT = """
import sys
sys.modules["hvd_qsgd"] = sys.modules["horovod"] = None
import keras, numpy
model = keras.saving.load_model(sys.argv[1])
assert type(model.optimizer) is keras.optimizers.Adam and model.optimizer.iterations == 4
assert "apply" not in vars(model.optimizer)
model.fit(numpy.ones((16, 48)), numpy.zeros(16), verbose=0)
"""


@on_two_ranks
def test_a_saved_model_needs_no_hvd_qsgd(tmp_path: Path) -> None:
    model = kt.compiled(keras.optimizers.Adam(0.01), QSGD(), kind=keras.Sequential)
    kt.train(model, range(4))
    if RANK == 0:
        model.save(tmp_path / "model.keras")
        command = [sys.executable, "-c", WITHOUT, str(tmp_path / "model.keras")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_broadcast(dtype: str) -> None:
    """The last rank's weights, optimizer and compressor; random generators stay the ranks' own."""
    keras.config.set_dtype_policy(dtype)
    try:
        model = kt.compiled(keras.optimizers.Adam(0.01 * (RANK + 1)), QSGD(seed=RANK), seed=RANK)
        model.add(keras.layers.Dropout(0.5, seed=RANK))
    finally:
        keras.config.set_dtype_policy("float32")
    if RANK == SIZE - 1:
        settings = model.optimizer.compression.state_dict()
        model.optimizer.compression.load_state_dict({**settings, "steps": {"#0": 5, "#1": 5}, "levels": 3})
    mine = tt.digest(model.get_weights())
    callback = BroadcastGlobalVariablesCallback(root_rank=SIZE - 1)
    callback.set_model(model)
    callback.on_train_begin()
    assert tt.assert_replicas_equal(variable.value for variable in model.weights) is not None
    assert (tt.digest(model.get_weights()) == mine) == (RANK == SIZE - 1)
    tt.assert_replicas_equal(model.optimizer.variables)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01 * SIZE)
    state = model.optimizer.compression.state_dict()
    assert (state["levels"], state["seed"]) == (3, SIZE - 1)
    assert {name: step for name, step in state["steps"].items() if step} == {"#0": 5, "#1": 5}
    (generator,) = (variable for variable in model.variables if "seed_generator" in variable.path)
    assert len(set(from_all_ranks(generator.numpy().tobytes()))) == SIZE
    kt.train(model, range(2))
    tt.assert_replicas_equal(variable.value for variable in model.weights)
    assert model.optimizer.compression.state_dict()["steps"]["#0"] == 7


def test_a_checkpoint_that_only_one_rank_has_is_broadcast(tmp_path: Path) -> None:
    """Before the first step, when the compressor has not met its gradients yet."""
    one = kt.compiled(keras.optimizers.SGD(0.1), QSGD(seed=5))
    kt.train(one, range(4))
    path = tf.train.Checkpoint(model=one, optimizer=one.optimizer).write(str(tmp_path / "checkpoint"))
    kt.train(one, range(4, 8))
    other = kt.compiled(keras.optimizers.SGD(0.1), QSGD(), seed=9 + RANK)
    if RANK == 0:
        tf.train.Checkpoint(model=other, optimizer=other.optimizer).read(path)
    callback = BroadcastGlobalVariablesCallback()
    callback.set_model(other)
    callback.on_train_begin()
    kt.train(other, range(4, 8))
    assert tt.assert_replicas_equal(other.get_weights()) == tt.assert_replicas_equal(one.get_weights())


def test_different_metrics_are_told() -> None:
    callback = MetricAverageCallback()
    logs = {"loss": 1.0, "mae" if RANK else "mape": 2.0, "f1": np.zeros(3)}
    assert_all_raise(lambda: callback.on_epoch_end(0, logs), "different metrics")
    callback.on_epoch_end(0, same := {"loss": float(RANK), "f1": np.arange(3)})
    assert same["loss"] == pytest.approx((SIZE - 1) / 2)
    assert same["f1"].tolist() == [0, 1, 2]


def test_metric_average() -> None:
    """Later callbacks and the history have the means, validation included."""
    own: dict[str, float] = {}
    later: dict[str, float] = {}
    model = kt.compiled(keras.optimizers.SGD(0.1), metrics=["accuracy"])
    history = model.fit(
        *kt.data(0, 64),
        validation_data=kt.data(1, 64),
        verbose=0,
        callbacks=[
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: own.update(logs)),
            MetricAverageCallback(),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: later.update(logs)),
        ],
    ).history
    everyone = from_all_ranks(own)
    assert len({ranks["loss"] for ranks in everyone}) == SIZE
    assert set(later) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    for name, mean in later.items():
        assert mean == pytest.approx(np.mean([ranks[name] for ranks in everyone]), rel=1e-6)
        assert history[name] == [mean]
    assert all(theirs == later for theirs in from_all_ranks(later))


@on_two_ranks
def test_copies_are_optimizers_of_keras() -> None:
    """As what load_model() gives: they can be made distributed themselves."""
    optimizer = DistributedOptimizer(keras.optimizers.SGD(0.1), compression=QSGD())
    for other in (copy.deepcopy(optimizer), type(optimizer).from_config(optimizer.get_config())):
        assert "apply" not in vars(other)
        assert DistributedOptimizer(other) is other


# ---- mistakes ----


@on_two_ranks
@pytest.mark.parametrize("eager", [False, True])
def test_a_loss_scale_around_the_optimizer_is_told(eager: bool) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = kt.compiled(keras.optimizers.SGD(0.1), QSGD(), run_eagerly=eager)
    finally:
        keras.config.set_dtype_policy("float32")
    before = model.get_weights()
    assert_all_raise(lambda: model.train_on_batch(*kt.data(0)), "DistributedOptimizer(keras.optimizers.LossScale")
    assert tt.digest(model.get_weights()) == tt.digest(before)


@on_two_ranks
def test_a_loss_scale_around_the_optimizer_is_told_in_one_s_own_function() -> None:
    optimizer = keras.optimizers.LossScaleOptimizer(DistributedOptimizer(keras.optimizers.SGD(0.1)))
    weight = keras.Variable(np.ones(4))

    @tf.function
    def step(gradient: Any) -> None:
        if tf.reduce_sum(gradient) > -1:  # for AutoGraph
            optimizer.apply([gradient], [weight])

    optimizer.build([weight])
    words = "DistributedOptimizer(keras.optimizers.LossScale"
    assert_all_raise(lambda: step(tf.ones(4)), words, kind="StagingError")  # AutoGraph's, which adds where it was


@on_two_ranks
def test_xla_is_told() -> None:
    model = kt.compiled(keras.optimizers.SGD(0.1), QSGD(), jit_compile=True)
    assert_all_raise(lambda: model.train_on_batch(*kt.data(0)), "jit_compile=False")


@on_two_ranks
def test_wrong_reductions_are_told() -> None:
    model = kt.compiled(keras.optimizers.SGD(0.1), QSGD(), op=hvd.Max)
    before = model.get_weights()
    words = "is not a sum or an average"
    assert_all_raise(lambda: model.train_on_batch(*kt.data(0)), words, kind="InvalidArgumentError")
    assert tt.digest(model.get_weights()) == tt.digest(before)


@on_two_ranks
def test_mistakes() -> None:
    optimizer = DistributedOptimizer(keras.optimizers.SGD(0.1))
    for twice in (optimizer, keras.optimizers.LossScaleOptimizer(optimizer)):
        with pytest.raises(QSGDError, match="is a DistributedOptimizer already"):
            DistributedOptimizer(twice)
    with pytest.raises(QSGDError, match="is not an optimizer of Keras 3"):
        DistributedOptimizer("sgd")
    with pytest.raises(QSGDError, match="compression='fp16' is neither"):
        DistributedOptimizer(keras.optimizers.SGD(0.1), compression="fp16")
    with pytest.raises(QSGDError, match="gradient_predivide_factor"):
        DistributedOptimizer(keras.optimizers.SGD(0.1), op=hvd.Sum, gradient_predivide_factor=2.0)
    for wrong, words in (
        ({"op": "Average"}, "op='Average'"),
        ({"op": 99}, "op=99"),
        ({"process_set": None}, "process_set=None"),
        ({"gradient_predivide_factor": 0}, "gradient_predivide_factor=0"),
        ({"gradient_predivide_factor": "2"}, "gradient_predivide_factor='2'"),
    ):
        with pytest.raises(QSGDError, match=words):
            DistributedOptimizer(keras.optimizers.SGD(0.1), **wrong)
    callback = BroadcastGlobalVariablesCallback()
    forgotten = kt.compiled(keras.optimizers.SGD(0.1), wrap=False)
    with pytest.raises(QSGDError, match="no DistributedOptimizer"):
        forgotten.fit(*kt.data(0), verbose=0, callbacks=[callback])
    unbuilt = keras.Sequential([keras.layers.Dense(3)])
    unbuilt.compile(DistributedOptimizer(keras.optimizers.SGD(0.1)), "mse")
    with pytest.raises(QSGDError, match=r"keras\.Input"):
        unbuilt.fit(np.ones((4, 2)), np.ones((4, 3)), verbose=0, callbacks=[callback])
