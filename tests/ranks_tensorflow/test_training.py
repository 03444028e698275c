"""Training with the gradient tape and with Keras: replicas stay equal bit for bit, whatever a rank traces again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import tftools as tt
from rankcommon import RANK, SIZE, from_all_ranks, on_two_ranks

from hvd_qsgd.tensorflow import QSGD

STEPS = 200


def test_tape_after_200_steps() -> None:
    compression = QSGD()
    model = tt.Model(compression)
    before = float(model.loss(*tt.batch(0, 1000)))
    model.train(range(STEPS))
    assert model.traces == 1
    tt.assert_replicas_equal(model.weights)
    assert float(model.loss(*tt.batch(0, 1000))) < 0.8 * before
    stats = compression.stats()
    assert (stats.steps, stats.tensors_compressed, stats.coordinates) == (STEPS, 2 * STEPS, STEPS * (1920 + 1200))
    assert stats.bytes_raw == 4 * stats.coordinates
    assert stats.bytes_received == (SIZE - 1) * stats.bytes_sent
    assert 4 < stats.bits_per_coordinate < 5
    assert stats.seconds_encode > 0 < stats.seconds_decode
    compression.reset_stats()
    assert compression.stats().tensors_compressed == 0


def test_one_rank_traces_again() -> None:
    """With batches of other sizes than the others have: no rank waits for ever, and weights stay equal."""
    model = tt.Model(QSGD())
    for step in range(12):
        model.train(range(step, step + 1), size=16 + (step // 3 if RANK == 0 else 0))
    assert model.traces == (4 if RANK == 0 else 1)
    tt.assert_replicas_equal(model.weights)


@on_two_ranks
def test_the_tape_in_eager_mode_is_the_tape_in_a_function() -> None:
    models = [tt.Model(QSGD()) for _ in range(2)]
    models[0].step = models[0]._step
    for model in models:
        model.train(range(5))
    digests = {tt.assert_replicas_equal(model.weights) for model in models}
    assert len(digests) == 1


@on_two_ranks
@pytest.mark.parametrize("seed", [0, 9])
def test_the_class_the_seed_and_the_names(seed: int) -> None:
    """The class stands for an instance with the default arguments; a seed for another run."""
    models = [tt.Model(QSGD(seed=seed)), tt.Model(QSGD)]
    QSGD.load_state_dict({**QSGD.state_dict(), "steps": {}})
    for model in models:
        model.train(range(3))
    assert (tt.digest(models[0].weights) == tt.digest(models[1].weights)) == (seed == 0)


@pytest.mark.parametrize("options", [{"num_groups": 1}, {"gradient_predivide_factor": 2.0}, {"op": hvd.Sum}], ids=str)
def test_options_of_the_tape(options: dict[str, Any]) -> None:
    """One step: what changes is what must be the frames' average or sum, exactly."""
    model = tt.Model(QSGD(), **options)
    start = [weight.numpy() for weight in model.weights]

    def gradient(rank: int) -> Any:
        with tf.GradientTape() as tape:
            loss = model.loss(*tt.batch(0, rank=rank))
        return [g.numpy() for g in tape.gradient(loss, model.weights)]

    everyone = [gradient(rank) for rank in range(SIZE)]
    model.train(range(1))
    factor = 1.0 if "op" in options else 1 / SIZE
    for k, index in enumerate([0, 2]):
        mean = tt.decoded([gradients[index] for gradients in everyone], factor=factor, k=k)
        np.testing.assert_allclose(model.weights[index], start[index] - 0.1 * mean, rtol=0, atol=1e-6)
    tt.assert_replicas_equal(model.weights)


@on_two_ranks
@pytest.mark.parametrize("deferred", [True, False])
def test_a_checkpoint_continues_bit_for_bit(tmp_path: Path, deferred: bool) -> None:
    """Restored before the first trace, or into a model that was trained otherwise."""
    one = tt.Model(QSGD(bits=3, seed=5))
    one.train(range(4))
    path = tf.train.Checkpoint(compression=one.compression, weights=one.weights).write(str(tmp_path / "checkpoint"))
    one.train(range(4, 8))
    other = tt.Model(QSGD())
    if not deferred:
        other.train(range(3))
    tf.train.Checkpoint(compression=other.compression, weights=other.weights).read(path)
    assert other.compression.levels == 3
    other.train(range(4, 8))
    assert tt.assert_replicas_equal(other.weights) == tt.assert_replicas_equal(one.weights)
    assert other.compression.state_dict() == one.compression.state_dict()
    fresh = tt.Model(QSGD())
    fresh.train(range(8))
    assert tt.digest(fresh.weights) != tt.digest(one.weights)


# ---- Keras ----


def keras_model() -> Any:
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Dense(40, activation="relu", input_shape=(48,)), keras.layers.Dense(30)]
    return keras.Sequential(layers)


def fit(optimizer: Any, compression: Any, epochs: int = 1, wrap: Any = None, **options: Any) -> tuple[Any, Any]:
    model = keras_model()
    optimizer = hvd_keras.DistributedOptimizer(optimizer, compression=compression, **options)
    model.compile(wrap(optimizer) if wrap else optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inputs, labels = tt.batch(0, 200)
    history = model.fit(inputs, labels, batch_size=16, epochs=epochs, verbose=0)  # the last batch is half a one
    return model, history.history["loss"]


@on_two_ranks
def test_keras_fit() -> None:
    """208 steps; old and new optimizers are the same."""
    digests = []
    for optimizer in (keras.optimizers.SGD(0.1), keras.optimizers.legacy.SGD(0.1)):
        compression = QSGD()
        model, losses = fit(optimizer, compression, epochs=16)
        assert losses[-1] < 0.8 * losses[0]
        digests.append(tt.assert_replicas_equal(model.get_weights()))
        assert compression.state_dict()["steps"] == {"#0": 16 * 13, "#1": 16 * 13}
    assert digests[0] == digests[1]


@on_two_ranks
@pytest.mark.parametrize(
    "options", [{"num_groups": 1}, {"gradient_predivide_factor": 2.0}, {"backward_passes_per_step": 3}], ids=str
)
def test_options_of_the_optimizer(options: dict[str, Any]) -> None:
    compression = QSGD()
    model, _ = fit(keras.optimizers.SGD(0.1), compression, **options)
    digest = tt.assert_replicas_equal(model.get_weights())
    plain, _ = fit(keras.optimizers.SGD(0.1), QSGD())
    passes = options.get("backward_passes_per_step", 1)
    assert compression.state_dict()["steps"]["#0"] == 13 // passes
    assert (digest == tt.digest(plain.get_weights())) == (passes == 1)


@on_two_ranks
def test_loss_scaling_skips_a_step_on_every_rank() -> None:
    """One rank's infinity: no rank's weights change, and every rank halves its scale."""
    compression = QSGD()
    model = keras_model()
    inner = hvd_keras.DistributedOptimizer(keras.optimizers.SGD(0.1), compression=compression)
    optimizer = keras.mixed_precision.LossScaleOptimizer(inner)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for step in range(3):
        inputs, labels = tt.batch(step)
        if step == 1 and RANK == SIZE - 1:
            inputs = inputs * np.inf
        before, scale = tt.digest(model.get_weights()), float(optimizer.loss_scale)
        model.train_on_batch(inputs, labels)
        skipped = tt.digest(model.get_weights()) == before
        assert from_all_ranks(skipped) == [step == 1] * SIZE
        assert float(optimizer.loss_scale) == (scale / 2 if step == 1 else scale)
        tt.assert_replicas_equal(model.get_weights())
