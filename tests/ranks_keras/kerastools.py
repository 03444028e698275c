"""What the tests of Keras 3 inside ranks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rankcommon import RANK, SIZE
from ranks_tensorflow import tftools as tt

from hvd_qsgd.keras import DistributedOptimizer


class Counted(keras.Sequential):
    """Counts how often its training step is traced."""

    traces = 0

    def train_step(self, data: Any) -> Any:
        self.traces += 1
        return super().train_step(data)


class Custom(keras.Sequential):
    """A training step of one's own, as Keras's guides write it."""

    def train_step(self, data: Any) -> Any:
        inputs, labels = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=labels, y_pred=self(inputs, training=True))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


def layers() -> list[Any]:
    return [keras.Input((48,)), keras.layers.Dense(40, activation="relu"), keras.layers.Dense(30, dtype="float32")]


def compiled(
    optimizer: Any, compression: Any = None, *, kind: Any = Counted, seed: int = 3, wrap: bool = True, **options: Any
) -> Any:
    """A small classifier; the same weights for the same seed. Options: of compile() or of DistributedOptimizer()."""
    keras.utils.set_random_seed(seed)
    model = kind(layers())
    own = {name: options.pop(name) for name in ("op", "gradient_predivide_factor", "process_set") if name in options}
    optimizer = DistributedOptimizer(optimizer, compression=compression, **own) if wrap else optimizer
    model.compile(optimizer, loss(), **options)
    return model


def loss() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data(step: int, size: int = 16, rank: int = RANK) -> tuple[Any, Any]:
    inputs, labels = tt.batch(step, size, rank)
    return inputs.numpy(), labels.numpy()


def train(model: Any, steps: range) -> Any:
    """So many steps of fit(), each with a batch of its own; returns the history."""
    batches = [data(step) for step in steps]
    inputs, labels = (np.concatenate(arrays) for arrays in zip(*batches))
    return model.fit(inputs, labels, batch_size=16, shuffle=False, verbose=0).history


def mean_gradients(loss_of: Callable[[int], Any], weights: list[Any]) -> list[Any]:
    """By hand: the mean of all ranks' gradients, dense. ``loss_of``: a rank's."""
    total = [np.zeros(weight.shape, "f8") for weight in weights]
    for rank in range(SIZE):
        with tf.GradientTape() as tape:
            value = loss_of(rank)
        for k, gradient in enumerate(tape.gradient(value, [weight.value for weight in weights])):
            total[k] += 0 if gradient is None else tf.convert_to_tensor(gradient).numpy() / SIZE
    return total


def state(model: Any) -> list[Any]:
    return [variable.numpy() for variable in model.weights + model.optimizer.variables]
