"""Which gradient is this, in which run, and what are its operations called: whatever a rank traces again."""

from __future__ import annotations

import os
import re
import weakref
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf
from tensorflow.python.ops.control_flow_v2_func_graphs import CondBranchFuncGraph

from hvd_qsgd import native
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.steps import Steps, Ticket, operation_prefix, tensor_id
from hvd_qsgd.tensorflow_ops import variable
from hvd_qsgd.transport.horovod import membership


class NumbersOfGraphs:
    """Counts what is traced into each graph."""

    def __init__(self) -> None:
        self._next: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def take(self, graph: Any) -> int:
        """The graph's next number."""
        number = self._next.get(graph, 0)
        self._next[graph] = number + 1
        return number


class Names:
    """The gradients of compressor number ``compressor``, and what tells them apart.

    A gradient is the k-th of the outermost function that is being traced, or of the step in eager mode.
    """

    def __init__(self, name: str | None, process_set: Any, compressor: int) -> None:
        self._name, self._process_set, self._compressor = name, process_set, compressor
        self._traced, self._reduced = NumbersOfGraphs(), NumbersOfGraphs()
        self._eager = Steps()
        self._prefix: str | None = None

    def number(self) -> tuple[int, Ticket | None]:
        """The next gradient's."""
        return self._eager.take() if tf.executing_eagerly() else (self._traced.take(outermost_function()), None)

    def about(self, number: int) -> dict[str, Any]:
        """The attributes that the ops of a gradient have in common."""
        if int(os.environ.get("HOROVOD_ELASTIC") or 0):
            raise QSGDError("QSGD does not support Horovod's elastic mode in TensorFlow: the number of ranks is fixed")
        rank, size, _ = membership(hvd, self._process_set)
        return {
            "tensor": tensor_id(self._name or "", f"#{number}"),
            "operation": self._operation(number),
            "tensor_name": f"#{number}",
            "rank": rank,
            "size": size,
            "threads": native.default_threads(),
            "compressor": self._compressor,
        }

    def reduced(self) -> str | None:
        """Of the tensor that Horovod reduces, after which it names the operation in a graph.

        The same on all ranks whether they compress the tensor or not, so that Horovod tells those that disagree.
        """
        if tf.executing_eagerly():
            return None
        return f"{self._operation(self._reduced.take(outermost_function()))}.reduced"

    def _operation(self, number: int) -> str:
        if self._prefix is None:
            *_, group = membership(hvd, self._process_set)
            self._prefix = operation_prefix(self, self._name, group)
        return re.sub(r"[^A-Za-z0-9_.]", "_", f"{self._prefix}.{number}")  # as TensorFlow takes it


class Runs:
    """Numbers the runs of whatever reduces a step's gradients: a function, the body of a loop, a step in eager mode."""

    def __init__(self) -> None:
        self._count = variable(0, tf.int64)  # in no checkpoint: it only tells runs apart
        self._in_graphs: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()  # a tensor's name
        self._eager: Any = None

    def current(self, number: int) -> Any:
        """The run, which is to reduce gradient ``number`` of the step, as a tensor of int64."""
        if tf.executing_eagerly():
            if number == 0:
                self._eager = self._begin()
            return self._eager
        graph = _repeated_graph()
        if graph not in self._in_graphs:
            with graph.as_default(), tf.control_dependencies(None):
                self._in_graphs[graph] = self._begin().name
        return graph.get_tensor_by_name(self._in_graphs[graph])

    def _begin(self) -> Any:
        with tf.device("cpu"):
            return tf.convert_to_tensor(self._count.assign_add(1))


def _repeated_graph() -> Any:
    """The graph that runs once a step: of the function or the loop's body around the branches that are being traced."""
    graph = tf.compat.v1.get_default_graph()
    while isinstance(graph, CondBranchFuncGraph):
        graph = graph.outer_graph
    return graph


def outermost_function() -> Any:
    """The graph of the outermost function that is being traced."""
    graph = tf.compat.v1.get_default_graph()
    while hasattr(getattr(graph, "outer_graph", None), "outer_graph"):  # branches and functions within a function
        graph = graph.outer_graph
    if not hasattr(graph, "outer_graph"):
        raise QSGDError("QSGD works in eager mode and in tf.function, not in TensorFlow 1's graphs and sessions")
    return graph
