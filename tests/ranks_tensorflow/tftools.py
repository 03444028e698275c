"""What TensorFlow's tests inside ranks share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import pytest
import tensorflow as tf
from rankcommon import RANK, SIZE, from_all_ranks

import hvd_qsgd
from hvd_qsgd.steps import tensor_id

Array = np.ndarray[Any, Any]

EVEN = hvd.ProcessSet([0, 2] if SIZE >= 4 else [0])
PROCESS_SETS = [EVEN]


def randn(*shape: int, seed: int = 0, dtype: str = "float32", rank: int = RANK) -> Array:
    """This rank's gradient, or another's."""
    values = np.random.default_rng([seed, rank]).standard_normal(shape)
    return values.astype(tf.dtypes.as_dtype(dtype).as_numpy_dtype)


def frames_of(gradients: Sequence[Array], k: int = 0, name: str = "", **how: Any) -> list[bytes]:
    """What the ranks send for the k-th gradient of a step."""
    tensor = tensor_id(name, f"#{k}")
    return [hvd_qsgd.encode(gradient, rank=rank, tensor=tensor, **how) for rank, gradient in enumerate(gradients)]


def decoded(gradients: Sequence[Array], factor: float | None = None, **how: Any) -> Array:
    """What the allreduce of all ranks' gradients must be, bit for bit."""
    sent = frames_of(gradients, **how)
    values = hvd_qsgd.decode_sum(sent, 1 / len(sent) if factor is None else factor)
    return values.reshape(gradients[0].shape).astype(gradients[0].dtype)


def of_all_ranks(*shape: int, **how: Any) -> list[Array]:
    return [randn(*shape, rank=rank, **how) for rank in range(SIZE)]


def frame_and_result(tensor: Any, compression: Any) -> tuple[Any, Any]:
    """As hvd.allreduce has it, which does not give this rank's frame."""
    token, ctx = compression.compress(tensor)
    return ctx.frame, compression.decompress(hvd.allreduce(token, op=hvd.Average, name="token"), ctx)


def same_bits(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def digest(arrays: Iterable[Any]) -> str:
    return hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in arrays)).hexdigest()


def assert_replicas_equal(arrays: Iterable[Any]) -> str:
    """Bit for bit, on all ranks; returns the digest."""
    digests = from_all_ranks(digest(arrays))
    assert len(set(digests)) == 1, f"ranks differ: {digests}"
    return digests[0]


class Model:
    """A small perceptron and its training step; the same on all ranks at first, fed with different batches."""

    def __init__(self, compression: Any, **tape_options: Any) -> None:
        if "HVD_QSGD_PRETENDED_GPU" in os.environ:
            pytest.skip("TensorFlow has no kernels to train on a GPU that is pretended")
        rng = np.random.default_rng(7)
        shapes = (48, 40), (40,), (40, 30)
        self.weights = [tf.Variable(0.2 * rng.standard_normal(shape), dtype=tf.float32) for shape in shapes]
        self.compression = compression
        self.tape_options = tape_options
        self.traces = 0
        self.step: Callable[..., Any] = tf.function(self._step)

    def loss(self, inputs: Any, labels: Any) -> Any:
        hidden = tf.nn.relu(inputs @ self.weights[0] + self.weights[1])
        logits = hidden @ self.weights[2]
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

    def _step(self, inputs: Any, labels: Any) -> Any:
        self.traces += 1
        with tf.GradientTape() as tape:
            loss = self.loss(inputs, labels)
        tape = hvd.DistributedGradientTape(tape, compression=self.compression, **self.tape_options)
        for weight, gradient in zip(self.weights, tape.gradient(loss, self.weights)):
            weight.assign_sub(0.1 * gradient)
        return loss

    def go_on(self, way: str, weights: list[Array], state: dict[str, Any], file: str) -> None:
        """From these weights, and the compressor's state, or, if the way is "checkpoint", its checkpoint."""
        for weight, value in zip(self.weights, weights):
            weight.assign(value)
        if way == "state":
            self.compression.load_state_dict(state)
        else:
            tf.train.Checkpoint(compression=self.compression).restore(file)

    def train(self, steps: range, size: int = 16) -> float:
        for step in steps:
            loss = self.step(*batch(step, size))
        return float(loss)


def batch(step: int, size: int = 16, rank: int = RANK) -> tuple[Any, Any]:
    """Inputs and labels that can be learnt."""
    inputs = randn(size, 48, seed=1000 + step, rank=rank)
    return tf.constant(inputs), tf.constant(inputs[:, :30].argmax(axis=1))
