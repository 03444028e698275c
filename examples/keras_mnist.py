"""Train a perceptron on MNIST with Horovod and Keras 3, its gradients compressed by QSGD.

    horovodrun -np 2 python keras_mnist.py --bits 4

This is model.fit() with the optimizer and the callbacks of hvd_qsgd.keras, since Horovod's own are for Keras 2.
The network (784-4096-10), the batch of 256 images and the step size of 0.1 are those of the literature; the batch
is divided among the ranks, so that learning does not depend on their number.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # this version compresses on the CPU

import horovod.tensorflow as hvd
import keras
import tensorflow as tf
from mnist_data import CLASSES, PIXELS, DataError, batches, load_mnist
from options import parse_options, quantization
from record import Record, digest

from hvd_qsgd import QSGDError
from hvd_qsgd.keras import QSGD, BroadcastGlobalVariablesCallback, DistributedOptimizer, MetricAverageCallback


def make_compression(options: argparse.Namespace) -> Any:
    """What Horovod does to gradients before it sends them."""
    if options.compression == "none":
        return None
    if options.compression == "fp16":
        return hvd.Compression.fp16
    return QSGD(**quantization(options), seed=options.seed)


class OwnImages(keras.utils.PyDataset):
    """This rank's batches: others in each epoch."""

    def __init__(self, options: argparse.Namespace, images: Any, labels: Any) -> None:
        super().__init__()
        self.options, self.images, self.labels = options, images, labels
        self.epoch = -1
        self.on_epoch_end()

    def on_epoch_end(self) -> None:
        self.epoch += 1
        seed = self.options.seed, self.epoch
        own_batches = batches(len(self.images), self.options.batch_size, hvd.rank(), hvd.size(), seed)
        self.batches = own_batches[: self.options.steps_per_epoch]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> tuple[Any, Any]:
        return self.images[self.batches[step]], self.labels[self.batches[step]]


class RecordCallback(keras.callbacks.Callback):
    """Tells the record what fit() does."""

    def __init__(self, record: Record, data: OwnImages) -> None:
        super().__init__()
        self.record, self.data = record, data

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.steps = self.record.steps(self.data.batches)
        next(self.steps)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.reset_metrics()  # Keras would give the mean of the epoch so far

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.record.add_loss(float(logs["loss"]))
        next(self.steps, None)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        losses = hvd.allreduce(tf.constant(self.record.epoch_losses, tf.float64), name="losses")
        self.record.end_epoch(losses.numpy().tolist(), logs["val_accuracy"])


def train(options: argparse.Namespace) -> None:
    train_images, train_labels, test_images, test_labels = load_mnist(options.data_dir, options.train_images)
    keras.utils.set_random_seed(options.seed)
    layers = [keras.Input((PIXELS,)), keras.layers.Dense(4096, activation="relu"), keras.layers.Dense(CLASSES)]
    model = keras.Sequential(layers)
    compression = make_compression(options)
    model.compile(
        DistributedOptimizer(keras.optimizers.SGD(options.step_size), compression=compression),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # XLA does not know Horovod's operations
    )

    record = Record("keras", options, hvd.rank(), hvd.size())
    data = OwnImages(options, train_images, train_labels)
    model.fit(
        data,
        epochs=options.epochs,
        # Every rank tests its share of the images.
        validation_data=(test_images[hvd.rank() :: hvd.size()], test_labels[hvd.rank() :: hvd.size()]),
        validation_batch_size=1000,
        callbacks=[BroadcastGlobalVariablesCallback(0), MetricAverageCallback(), RecordCallback(record, data)],
        verbose=0,
    )

    record.compare_replicas(hvd.allgather_object(digest(model.get_weights())))
    record.finish(model.count_params(), compression.stats() if options.compression == "qsgd" else None)


def main() -> None:
    options = parse_options(__doc__)
    hvd.init()
    # Ranks on one machine share its processors.
    threads = max(1, len(os.sched_getaffinity(0)) // hvd.local_size())
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    try:
        train(options)
    except (DataError, QSGDError) as error:
        sys.exit(f"keras_mnist: {error}")


if __name__ == "__main__":
    main()
