"""Which gradient is this, and what are its operations called: the same on all ranks, whatever they trace again."""

from __future__ import annotations

import os
import re
import weakref
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from hvd_qsgd import native
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.steps import Steps, Ticket, operation_prefix, tensor_id
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
            "counters": self._compressor,
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


def outermost_function() -> Any:
    """The graph of the outermost function that is being traced."""
    graph = tf.compat.v1.get_default_graph()
    while hasattr(getattr(graph, "outer_graph", None), "outer_graph"):  # branches and functions within a function
        graph = graph.outer_graph
    if not hasattr(graph, "outer_graph"):
        raise QSGDError("QSGD works in eager mode and in tf.function, not in TensorFlow 1's graphs and sessions")
    return graph
