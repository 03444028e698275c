"""The library of TensorFlow ops (``kernels/tensorflow``), which is built for one version of TensorFlow."""

from __future__ import annotations

import ctypes
import functools
import pathlib
import warnings
from ctypes import c_int, c_int64, c_uint64
from typing import Any, NoReturn

import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import ResourceVariable

from hvd_qsgd import native_cuda
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.stats import Stats

FOR_GPUS = "2.20"  # kernels/tensorflow/cuda.h
COUNTERS = 9  # of enum Counter in kernels/tensorflow/counters.h


def path() -> pathlib.Path:
    """Where the ops for this TensorFlow are."""
    return pathlib.Path(__file__).with_name(f"libhvd_qsgd_tensorflow-{tf.__version__}.so")


@functools.cache
def library() -> Any:
    """The ops, as a module of functions.

    Raises:
        QSGDError: they were not built, or not for this TensorFlow.
    """
    how = "run `make tensorflow` in a checkout, or `pip install --no-build-isolation` the package again"
    if not path().exists():
        raise QSGDError(f"the ops for TensorFlow {tf.__version__} are not there ({path()}): {how}")
    try:
        return tf.load_op_library(str(path()))
    except (tf.errors.OpError, OSError, RuntimeError) as error:
        raise QSGDError(f"the TensorFlow ops cannot be loaded ({error}): {how}") from error


def device_beside(gradient: Any) -> str | None:
    """Where to encode ``gradient``, as ``tf.device`` takes it: where it lies, if the kernels are there, or on the CPU.

    None in a graph that does not say where it lies: TensorFlow chooses, as it does for what comes before.
    """
    return gradient.device or None if _on_gpus() else "cpu"


@functools.cache
def _on_gpus() -> bool:
    """Whether TensorFlow uses a GPU, and the ops can use the CUDA kernels for it; warns where they cannot."""
    if not tf.config.get_visible_devices("GPU") or not native_cuda.available():
        return False
    load = native_library().qsgd_tensorflow_load_cuda
    load.argtypes, load.restype = (ctypes.c_char_p,), c_int
    if not load(native_cuda.path().encode()):
        warnings.warn(
            f"gradients are copied to the CPU to be compressed, which is slow: for GPUs TensorFlow {tf.__version__} is "
            f"too old, it takes {FOR_GPUS}",
            stacklevel=2,
        )
        return False
    return True


@functools.cache
def native_library() -> ctypes.CDLL:
    """The same library's functions that are no ops."""
    return ctypes.CDLL(str(path()))


def variable(value: Any, dtype: tf.DType) -> Any:
    """A variable that belongs to no function, whichever is being traced.

    tf.Variable() would ask that function, which allows new variables in its first trace only and then traces twice.
    """
    with tf.init_scope(), tf.device("cpu"):
        return ResourceVariable(value, dtype=dtype, trainable=False)


@tf.RegisterGradient("QsgdDecodeSum")  # type: ignore[untyped-decorator]
def _no_gradient(op: Any, gradient: Any) -> NoReturn:
    raise QSGDError("QSGD cannot be differentiated: reduce tf.stop_gradient(tensor), or with another compression")


def read_counters(compressor: int, reset: bool = False) -> Stats:
    """What compressor number ``compressor`` has done since it was made, or reset."""
    read = native_library().qsgd_tensorflow_counters
    read.argtypes, read.restype = (c_int64, ctypes.POINTER(c_uint64), c_int), None
    values = (c_uint64 * COUNTERS)()
    read(compressor, values, reset)
    steps, tensors, resized, coordinates, raw, sent, gathered, encoding, decoding = values
    return Stats(
        steps=steps,
        tensors_compressed=tensors,
        frames_resized=resized,
        coordinates=coordinates,
        bytes_raw=raw,
        bytes_sent=sent,
        bytes_received=max(0, gathered - sent),
        seconds_encode=encoding * 1e-9,
        seconds_decode=decoding * 1e-9,
    )
