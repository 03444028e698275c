"""The perceptron's training step with TensorFlow's gradient tape in a function, for benchmarks.step."""

from __future__ import annotations

from typing import Any, Callable

import horovod.tensorflow as hvd
import tensorflow as tf

from hvd_qsgd.tensorflow import QSGD

__all__ = ["QSGD", "hvd", "make_step", "prepare"]


def prepare() -> None:
    """Once a process, after hvd.init()."""
    tf.config.threading.set_intra_op_parallelism_threads(1)


def make_step(compression: Any, batch: int) -> Callable[[], None]:
    """A function that trains one step with ``compression``."""
    shapes = [(784, 4096), (4096,), (4096, 10), (10,)]
    weights = [tf.Variable(tf.random.normal(shape, stddev=0.03)) for shape in shapes]
    images = tf.random.normal((batch, 784))
    labels = tf.random.uniform((batch,), maxval=10, dtype=tf.int32)

    @tf.function
    def graph() -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = tf.nn.relu(images @ weights[0] + weights[1]) @ weights[2] + weights[3]
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        gradients = hvd.DistributedGradientTape(tape, compression=compression).gradient(loss, weights)
        for weight, gradient in zip(weights, gradients):
            weight.assign_sub(0.1 * gradient)
        return loss

    def step() -> None:
        graph().numpy()  # waits

    return step
