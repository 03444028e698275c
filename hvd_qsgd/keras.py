"""Horovod for Keras 3, which Horovod itself does not know: the optimizer and the callbacks, with or without QSGD.

For Keras 2 (``tf_keras``), pass ``hvd_qsgd.tensorflow.QSGD`` to ``horovod.tensorflow.keras``.
"""

from __future__ import annotations

import functools
import itertools
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

if int(keras.__version__.split(".")[0]) < 3:
    raise ImportError(f"hvd_qsgd.keras is for Keras 3, and this is {keras.__version__}: use horovod.tensorflow.keras")
if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"hvd_qsgd.keras needs Keras's TensorFlow backend, and this is {keras.backend.backend()!r}: "
        "set KERAS_BACKEND=tensorflow before Keras is imported"
    )

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from hvd_qsgd.errors import QSGDError
from hvd_qsgd.residuals import KEY
from hvd_qsgd.tensorflow import QSGD  # says what is missing, if Horovod is
from hvd_qsgd.tensorflow_names import NumbersOfGraphs

# isort: split
import horovod.tensorflow as hvd

__all__ = ["QSGD", "BroadcastGlobalVariablesCallback", "DistributedOptimizer", "MetricAverageCallback"]

_numbers = itertools.count()


def DistributedOptimizer(  # noqa: N802
    optimizer: Any,
    *,
    compression: Any = None,
    op: int = hvd.Average,
    gradient_predivide_factor: float = 1.0,
    process_set: Any = hvd.global_process_set,
) -> Any:
    """Let ``optimizer`` reduce gradients over all ranks before it applies them; call it in the same order on all ranks.

    It is ``optimizer`` itself that is returned: class and configuration stay, so that saved models load without
    ``hvd_qsgd``. Call this again for the optimizer of a loaded model, or a copy, and compile the model with it.
    ``optimizer.compression`` is the compressor: ``tf.train.Checkpoint(model=model, optimizer=optimizer)`` saves both.

    With ``gradient_accumulation_steps``, gradients are reduced in each of the steps. For mixed precision, hand over
    a ``keras.optimizers.LossScaleOptimizer``: an Inf on one rank then skips the step on all.

    Args:
        optimizer: of Keras 3. Not compiled by XLA: on machines with a GPU, ``model.compile(..., jit_compile=False)``.
        compression: a ``QSGD``, that class, or one of Horovod's ``Compression``; None: none.
        op: ``Average`` or ``Sum``; without QSGD also what else ``hvd.allreduce`` knows.
        gradient_predivide_factor: gradients are divided by it before they are added up, and the rest of N afterwards.
        process_set: the ranks that take part, the same as the compressor's; others train by themselves.

    Raises:
        QSGDError: an argument is wrong; or, in the first step and before anything is sent, the optimizer was put
            into a ``LossScaleOptimizer`` instead of around it, or XLA compiles the step.
    """
    _check(op, gradient_predivide_factor, process_set)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise QSGDError(f"{optimizer!r} is not an optimizer of Keras 3; for tf_keras, use horovod.tensorflow.keras")
    if any(hasattr(each, "compression") for each in (optimizer, getattr(optimizer, "inner_optimizer", None))):
        raise QSGDError(f"{optimizer.name} is a DistributedOptimizer already: wrap an optimizer once")
    if gradient_predivide_factor != 1 and op != hvd.Average:
        raise QSGDError(f"gradient_predivide_factor={gradient_predivide_factor} goes with op=Average only")
    if compression is None:
        compression = hvd.Compression.none
    elif compression is QSGD:
        compression = QSGD(process_set=process_set)
    elif not hasattr(compression, "compress"):
        raise QSGDError(f"compression={compression!r} is neither a QSGD nor one of horovod.tensorflow.Compression")
    allreduce = {
        "compression": compression,
        "op": op,
        "prescale_factor": 1 / gradient_predivide_factor,
        "postscale_factor": gradient_predivide_factor,
        "process_set": process_set,
    }
    optimizer.compression = compression
    optimizer.apply = functools.partial(_apply, optimizer, _Reduction(allreduce))
    return optimizer


class BroadcastGlobalVariablesCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Start training with the weights, the optimizer's variables and the compressor's state of one rank on all ranks.

    Args:
        root_rank: the rank that has them.

    Raises:
        QSGDError: the model has no weights yet.
    """

    def __init__(self, root_rank: int = 0) -> None:
        super().__init__()
        self.root_rank = root_rank

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Keras calls this before the first step."""
        model = self.model
        if not hasattr(model.optimizer, "compression"):
            raise QSGDError(
                "the model's optimizer is no DistributedOptimizer, and ranks would train apart: compile the model with "
                "hvd_qsgd.keras.DistributedOptimizer(optimizer), a loaded model too"
            )
        if not model.built:
            raise QSGDError(
                "the model has no weights to broadcast yet: begin it with keras.Input, or call model.build() first"
            )
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        # Not model.variables: states of random generators may differ, and with them the ranks' dropout.
        _broadcast([variable.value for variable in model.weights + model.optimizer.variables], self.root_rank)
        compression = getattr(model.optimizer, "compression", None)
        if isinstance(compression, QSGD):
            compression.expect(len(model.trainable_variables))  # else a checkpoint would restore them after this
            own = compression.state_dict()
            residuals = {KEY: own.pop(KEY)} if KEY in own else {}  # every rank keeps its own
            compression.load_state_dict({**hvd.broadcast_object(own, self.root_rank), **residuals})


class MetricAverageCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Average an epoch's losses and metrics over the ranks, for the callbacks after it and ``fit``'s history.

    Every rank counts alike. All ranks must have the same metrics.
    """

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keras calls this after the epoch's validation."""
        if logs:
            # Ranks may have added them in any order; those that are no numbers stay.
            names = sorted(name for name, value in logs.items() if np.ndim(value) == 0)
            which = float(zlib.crc32(repr(names).encode()))
            values = tf.constant([which, *(float(logs[name]) for name in names)], tf.float64)
            values = hvd.allreduce(values, op=hvd.Average, name="hvd_qsgd.keras.metrics").numpy().tolist()
            if abs(values[0] - which) > 0.25 / hvd.size():
                raise QSGDError(f"the ranks have different metrics; this one has {', '.join(names)}")
            logs.update(zip(names, values[1:]))


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
def _apply(optimizer: Any, reduce: Any, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
    """Stands for ``optimizer.apply``."""
    if _called_by_loss_scaling(optimizer):
        # It calls its optimizer only on ranks whose own gradients are finite, and these would wait for the others.
        raise QSGDError(
            "mixed_float16 scales the loss around this DistributedOptimizer, which must be around it instead: "
            "DistributedOptimizer(keras.optimizers.LossScaleOptimizer(optimizer), ...)"
        )
    if control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
        raise QSGDError("XLA cannot compile Horovod's operations: pass jit_compile=False to model.compile()")
    type(optimizer).apply(optimizer, reduce(list(grads)), trainable_variables)


def _called_by_loss_scaling(optimizer: Any) -> bool:
    """Whether a LossScaleOptimizer has this optimizer inside, of which nothing but its call tells."""
    frame = sys._getframe(1)
    while frame.f_back:
        frame = frame.f_back
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.optimizers.LossScaleOptimizer) and caller.inner_optimizer is optimizer:
            return True
    return False


class _Reduction:
    """Reduces an optimizer's gradients, under names that no other optimizer and no other call in a function has."""

    def __init__(self, allreduce: dict[str, Any]) -> None:
        self._allreduce = allreduce
        self._prefix: str | None = None
        self._calls = NumbersOfGraphs()
        self._functions: list[Any] = []  # of the first, second, ... call in a graph

    def __call__(self, gradients: list[Any]) -> list[Any]:
        """What the ranks' gradients add up to; None stays None."""
        number = 0 if tf.executing_eagerly() else self._calls.take(tf.compat.v1.get_default_graph())
        if number == len(self._functions):
            self._functions.append(self._function(number))
        reduced: list[Any] = self._functions[number](gradients)
        return reduced

    def _function(self, number: int) -> Any:
        """A function in eager mode too, so that all gradients are on their way at once.

        It is traced once, however often Keras traces what calls it, so that gradients keep their numbers.
        """
        if self._prefix is None:  # at first use: ranks may make optimizers that they do not use
            self._prefix = f"hvd_qsgd.keras.{next(_numbers)}"
        reduce = functools.partial(_reduce, f"{self._prefix}.{number}", self._allreduce)
        return tf.function(reduce, reduce_retracing=True, autograph=False)


def _reduce(name: str, allreduce: dict[str, Any], gradients: list[Any]) -> list[Any]:
    process_set = allreduce["process_set"]
    alone = not process_set.included() or process_set.size() == 1
    if alone or all(gradient is None for gradient in gradients):  # of which Keras complains
        return gradients
    reduced = [_allreduce(f"{name}.{k}", allreduce, gradient) for k, gradient in enumerate(gradients)]
    return tf.tuple(reduced)  # type: ignore[no-any-return]  # if one cannot be reduced, none is applied


def _check(op: Any, gradient_predivide_factor: Any, process_set: Any) -> None:
    ops = {name: getattr(hvd, name) for name in ("Average", "Sum", "Adasum", "Min", "Max", "Product")}
    if op not in ops.values():
        raise QSGDError(f"op={op!r} is none of Horovod's: use hvd.Average or hvd.Sum")
    factor = gradient_predivide_factor
    if not isinstance(factor, (int, float)) or not 0 < factor < float("inf"):
        raise QSGDError(f"gradient_predivide_factor={factor!r} is not a positive number")
    if not isinstance(process_set, hvd.ProcessSet):
        raise QSGDError(f"process_set={process_set!r} is not a horovod ProcessSet")


def _allreduce(name: str, how: dict[str, Any], gradient: Any) -> Any:
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):  # Horovod names its operations itself
        return hvd.allreduce(gradient, **how)
    # Named by what all ranks have in common, whatever else is in their graphs.
    return hvd.allreduce(gradient, name=name, ignore_name_scope=True, **how)


@tf.function(autograph=False)  # type: ignore[untyped-decorator]
def _broadcast(variables: list[Any], root_rank: int) -> None:
    for k, variable in enumerate(variables):
        # Horovod has no bfloat16; float32 holds all its values.
        dtype = tf.float32 if variable.dtype == tf.bfloat16 else variable.dtype
        name = f"hvd_qsgd.keras.broadcast.{k}"
        value = hvd.broadcast(tf.cast(variable, dtype), root_rank, name=name, ignore_name_scope=True)
        variable.assign(tf.cast(value, variable.dtype))
