"""Training with Keras 3: replicas stay equal bit for bit, in every way that Keras runs a step."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import keras
import kerastools as kt
import numpy as np
import pytest
import tensorflow as tf
from rankcommon import RANK, SIZE, from_all_ranks, on_two_ranks
from ranks_tensorflow import tftools as tt

from hvd_qsgd.keras import QSGD, BroadcastGlobalVariablesCallback, DistributedOptimizer

STEPS = 200


def test_replicas_after_200_steps() -> None:
    """They start from other weights on each rank, all but the first of which the callback replaces."""
    compression = QSGD()
    model = kt.compiled(keras.optimizers.SGD(0.1, momentum=0.5), compression, seed=RANK)
    assert len(set(from_all_ranks(tt.digest(model.get_weights())))) == SIZE
    inputs, labels = kt.data(0, 16 * STEPS // 8)
    callbacks = [BroadcastGlobalVariablesCallback(0)]
    losses = model.fit(inputs, labels, batch_size=16, epochs=8, verbose=0, callbacks=callbacks).history["loss"]
    tt.assert_replicas_equal(kt.state(model))
    assert losses[-1] < 0.8 * losses[0]
    assert int(model.optimizer.iterations) == STEPS
    assert model.traces == 1
    stats = compression.stats()
    assert (stats.steps, stats.coordinates) == (STEPS, STEPS * (1920 + 1200))
    assert 4 < stats.bits_per_coordinate < 5


@on_two_ranks
def test_every_way_to_run_a_step_is_the_same() -> None:
    ways: list[dict[str, Any]] = [
        {},
        {"run_eagerly": True},
        {"steps_per_execution": 5},
        {"kind": kt.Custom},
        {"kind": kt.Custom, "run_eagerly": True},
    ]
    digests = set()
    for way in ways:
        compression = QSGD()
        model = kt.compiled(keras.optimizers.SGD(0.1), compression, **way)
        kt.train(model, range(12))
        digests.add(tt.assert_replicas_equal(model.get_weights()))
        assert set(compression.state_dict()["steps"].values()) == {12}
    assert len(digests) == 1


def test_one_rank_traces_again() -> None:
    model = kt.compiled(keras.optimizers.SGD(0.1), QSGD())
    for step in range(6):
        model.train_on_batch(*kt.data(step, 16 + (step // 2 if RANK == 0 else 0)))
    tt.assert_replicas_equal(model.get_weights())
    assert model.traces == (2 if RANK == 0 else 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"run_eagerly": True},
        {"compression": hvd.Compression.fp16},
        {"op": hvd.Sum},
        {"gradient_predivide_factor": 2.0},
    ],
    ids=str,
)
def test_without_qsgd(options: dict[str, Any]) -> None:
    """Two steps, which are the means' (sums') computed by hand."""
    model = kt.compiled(keras.optimizers.SGD(0.1), **options)
    factor = SIZE if "op" in options else 1
    by_hand = kt.compiled(keras.optimizers.SGD(0.1 * factor), wrap=False)
    for step in range(2):
        model.train_on_batch(*kt.data(step))
        means = kt.mean_gradients(lambda rank, step=step: loss_of(by_hand, step, rank), by_hand.trainable_weights)
        by_hand.optimizer.apply([tf.constant(mean, tf.float32) for mean in means], by_hand.trainable_weights)
    tt.assert_replicas_equal(model.get_weights())
    tolerance = 1e-4 if "compression" in options else 1e-6
    for weight, expected in zip(model.get_weights(), by_hand.get_weights()):
        np.testing.assert_allclose(weight, expected, rtol=0, atol=tolerance)


def loss_of(model: Any, step: int, rank: int) -> Any:
    inputs, labels = kt.data(step, rank=rank)
    return kt.loss()(labels, model(inputs))


@pytest.mark.parametrize("qsgd", [False, True])
@on_two_ranks
def test_gradient_accumulation(qsgd: bool) -> None:
    """Every second step applies the mean of two steps' means."""
    model = kt.compiled(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), QSGD(bits=8) if qsgd else None)
    start = model.get_weights()
    model.train_on_batch(*kt.data(0))
    assert tt.digest(model.get_weights()) == tt.digest(start)
    gradients = [
        kt.mean_gradients(lambda rank, step=step: loss_of(model, step, rank), model.trainable_weights)
        for step in range(2)
    ]
    model.train_on_batch(*kt.data(1))
    tt.assert_replicas_equal(kt.state(model))
    for k, (weight, before) in enumerate(zip(model.get_weights(), start)):
        mean = (gradients[0][k] + gradients[1][k]) / 2
        error = np.linalg.norm(weight - before + 0.1 * mean) / np.linalg.norm(0.1 * mean)
        assert error < (0.03 if qsgd and weight.ndim == 2 else 1e-5)  # biases are not compressed


@on_two_ranks
@pytest.mark.parametrize("eager", [False, True])
def test_sparse_missing_and_frozen(eager: bool) -> None:
    """An embedding's tf.IndexedSlices, a layer that the loss does not reach, and one that is not trained."""
    keras.utils.set_random_seed(3)
    words = keras.Input((5,), dtype="int32")
    embedding = keras.layers.Embedding(60, 24)
    frozen = keras.layers.Dense(50, trainable=False)
    hidden = frozen(keras.layers.Flatten()(embedding(words)))
    outputs = [keras.layers.Dense(30, name=name)(hidden) for name in ("used", "unused")]
    model = keras.Model(words, outputs)
    losses = {"used": kt.loss(), "unused": None}
    optimizer = DistributedOptimizer(keras.optimizers.SGD(0.1), compression=QSGD(skip=lambda name, gradient: True))
    model.compile(optimizer, losses, run_eagerly=eager)

    def numbers(rank: int) -> tuple[Any, Any]:
        rng = np.random.default_rng(rank)
        return rng.integers(0, 60, (8 + rank, 5)), rng.integers(0, 30, 8 + rank)

    def one(rank: int) -> Any:
        inputs, labels = numbers(rank)
        return kt.loss()(labels, model(inputs)[0])

    start = model.get_weights()
    means = dict(zip((id(w) for w in model.trainable_weights), kt.mean_gradients(one, model.trainable_weights)))
    inputs, labels = numbers(RANK)
    model.train_on_batch(inputs, {"used": labels, "unused": labels})
    tt.assert_replicas_equal(model.get_weights())
    for weight, before in zip(model.weights, start):
        expected = before - 0.1 * means.get(id(weight), 0)
        np.testing.assert_allclose(weight.numpy(), expected, rtol=0, atol=1e-6)


@on_two_ranks
@pytest.mark.parametrize("dependent", [True, False])
def test_one_optimizer_several_times_in_one_step(dependent: bool) -> None:
    """One call after the other, as for a GAN's critic, or both at once: their operations do not meet."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((48,)), keras.layers.Dense(90), keras.layers.Dense(40)])
    optimizer = DistributedOptimizer(keras.optimizers.SGD(0.01), compression=QSGD())
    optimizer.build(model.trainable_weights)

    def gradients(inputs: Any) -> Any:
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(model(inputs) ** 2)
        return tape.gradient(value, model.trainable_weights)

    @tf.function
    def step(inputs: Any) -> None:
        both = None if dependent else [gradients(inputs), gradients(inputs + 1)]
        for k in range(2):
            optimizer.apply(gradients(inputs + k) if both is None else both[k])

    for number in range(20):
        step(tf.constant(np.random.default_rng([number, RANK]).standard_normal((8, 48)), tf.float32))
    tt.assert_replicas_equal(model.get_weights())
    assert optimizer.compression.stats().tensors_compressed == 20 * 2 * 2


@on_two_ranks
def test_two_optimizers_in_one_step() -> None:
    """Their operations have names of their own, dense and sparse."""
    keras.utils.set_random_seed(3)
    models = [keras.Sequential([keras.Input((5,)), keras.layers.Embedding(60, 24), keras.layers.Dense(90)])] * 2
    models[1] = keras.models.clone_model(models[0])
    models[1].set_weights(models[0].get_weights())
    optimizers = [DistributedOptimizer(keras.optimizers.SGD(0.1), compression=QSGD()) for _ in models]
    for model, optimizer in zip(models, optimizers):
        optimizer.build(model.trainable_weights)

    @tf.function
    def step(inputs: Any) -> None:
        for model, optimizer in zip(models, optimizers):
            with tf.GradientTape() as tape:
                value = tf.reduce_mean(model(inputs) ** 2)
            optimizer.apply(tape.gradient(value, model.trainable_weights))

    for number in range(5):
        step(tf.constant(np.random.default_rng([number, RANK]).integers(0, 60, (8, 5))))
    digests = {tt.assert_replicas_equal(model.get_weights()) for model in models}
    assert len(digests) == 1
    assert optimizers[0].compression.stats().tensors_compressed == 5


def test_process_set() -> None:
    """Its ranks stay equal; others train by themselves."""
    optimizer = keras.optimizers.SGD(0.1)
    model = kt.compiled(optimizer, QSGD(process_set=tt.EVEN), process_set=tt.EVEN)
    kt.train(model, range(3))
    digests = from_all_ranks(tt.digest(model.get_weights()))
    assert len(set(digests)) == SIZE - len(tt.EVEN.ranks) + 1
    assert len({digests[rank] for rank in tt.EVEN.ranks}) == 1


@on_two_ranks
@pytest.mark.parametrize("eager", [False, True])
def test_loss_scaling_skips_a_step_on_every_rank(eager: bool) -> None:
    """One rank's infinity: no rank's weights change, and every rank halves its scale."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=1024.0)
        model = kt.compiled(optimizer, QSGD(), run_eagerly=eager)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.optimizer is optimizer
    for step in range(3):
        inputs, labels = kt.data(step)
        if step == 1 and RANK == SIZE - 1:
            inputs = inputs * np.inf
        before, scale = tt.digest(model.get_weights()), float(optimizer.dynamic_scale) if step else 1024.0
        model.train_on_batch(inputs, labels)
        skipped = tt.digest(model.get_weights()) == before
        assert from_all_ranks(skipped) == [step == 1] * SIZE
        assert float(optimizer.dynamic_scale) == (scale / 2 if step == 1 else scale)
        tt.assert_replicas_equal(kt.state(model))
