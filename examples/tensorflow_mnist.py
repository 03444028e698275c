"""Train a perceptron on MNIST with Horovod and TensorFlow, its gradients compressed by QSGD.

    horovodrun -np 2 python tensorflow_mnist.py --bits 4

This is an ordinary Horovod script with a training loop of its own: QSGD is the one argument compression= of
DistributedGradientTape. The network (784-4096-10), the batch of 256 images and the step size of 0.1 are those of the
literature; the batch is divided among the ranks, so that learning does not depend on their number.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # this version compresses on the CPU

import horovod.tensorflow as hvd
import tensorflow as tf
from mnist_data import CLASSES, PIXELS, DataError, batches, load_mnist
from options import parse_options, quantization
from record import Record, digest

from hvd_qsgd import QSGDError
from hvd_qsgd.tensorflow import QSGD

HIDDEN = 4096


def make_compression(options: argparse.Namespace) -> Any:
    """What Horovod does to gradients before it sends them."""
    if options.compression == "none":
        return hvd.Compression.none
    if options.compression == "fp16":
        return hvd.Compression.fp16
    return QSGD(**quantization(options), seed=options.seed)


class Perceptron:
    """Two dense layers, initialized as PyTorch's are: uniformly, within 1 / sqrt(inputs)."""

    def __init__(self, seed: int) -> None:
        generator = tf.random.Generator.from_seed(seed)
        self.weights = []
        for inputs, outputs in ((PIXELS, HIDDEN), (HIDDEN, CLASSES)):
            limit = inputs**-0.5
            self.weights += [
                tf.Variable(generator.uniform((inputs, outputs), -limit, limit)),
                tf.Variable(generator.uniform((outputs,), -limit, limit)),
            ]

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        first, first_bias, second, second_bias = self.weights
        return tf.nn.relu(images @ first + first_bias) @ second + second_bias


def mean_over_ranks(values: list[float]) -> list[float]:
    means: list[float] = hvd.allreduce(tf.constant(values, tf.float64), name="losses").numpy().tolist()
    return means


def accuracy(model: Perceptron, images: Any, labels: Any) -> float:
    """Every rank tests its share of the images."""
    own_images, own_labels = images[hvd.rank() :: hvd.size()], labels[hvd.rank() :: hvd.size()]
    correct = tf.reduce_sum(tf.cast(tf.argmax(model(own_images), axis=1) == own_labels, tf.int64))
    return int(hvd.allreduce(correct, op=hvd.Sum, name="correct")) / len(labels)


def train(options: argparse.Namespace) -> None:
    train_images, train_labels, test_images, test_labels = load_mnist(options.data_dir, options.train_images)
    model = Perceptron(options.seed)
    hvd.broadcast_variables(model.weights, root_rank=0)
    compression = make_compression(options)

    @tf.function
    def train_step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images))
            loss = tf.reduce_mean(losses)
        tape = hvd.DistributedGradientTape(tape, compression=compression)
        for weight, gradient in zip(model.weights, tape.gradient(loss, model.weights)):
            weight.assign_sub(options.step_size * gradient)
        return loss

    record = Record("tensorflow", options, hvd.rank(), hvd.size())
    for epoch in range(options.epochs):
        own_batches = batches(len(train_images), options.batch_size, hvd.rank(), hvd.size(), (options.seed, epoch))
        for batch in record.steps(own_batches[: options.steps_per_epoch]):
            record.add_loss(float(train_step(train_images[batch], train_labels[batch])))
        record.end_epoch(mean_over_ranks(record.epoch_losses), accuracy(model, test_images, test_labels))

    record.compare_replicas(hvd.allgather_object(digest(weight.numpy() for weight in model.weights)))
    parameters = sum(int(tf.size(weight)) for weight in model.weights)
    record.finish(parameters, compression.stats() if options.compression == "qsgd" else None)


def main() -> None:
    options = parse_options(__doc__)
    hvd.init()
    # Ranks on one machine share its processors.
    threads = max(1, len(os.sched_getaffinity(0)) // hvd.local_size())
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    try:
        train(options)
    except (DataError, QSGDError) as error:
        sys.exit(f"tensorflow_mnist: {error}")


if __name__ == "__main__":
    main()
