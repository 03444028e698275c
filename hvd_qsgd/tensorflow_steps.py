"""Steps in TensorFlow: variables outside of all functions, which each run of a graph advances."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from hvd_qsgd.checks import whole_number
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.steps import STEPS
from hvd_qsgd.tensorflow_ops import variable


class StepsOfTensors(tf.Module):  # type: ignore[misc]
    """The step that each tensor of a compressor belongs to next."""

    def __init__(self) -> None:
        super().__init__()
        self._next: dict[str, Any] = {}

    def take(self, tensor_name: str) -> Any:
        """The step of this run of the graph, after which comes the next."""
        with tf.init_scope():  # a second trace must not make variables
            counter = self.counter(tensor_name)
        return tf.bitwise.bitwise_and(counter.assign_add(1) - 1, STEPS - 1)

    def end(self, tensor_name: str, after: Any) -> None:
        """In a graph: no run of it begins the tensor's next step before the op that made ``after`` has run."""
        if not tf.executing_eagerly():
            with tf.control_dependencies([after]):
                self.counter(tensor_name).assign_add(0)  # TensorFlow keeps what changes a variable in order

    def counter(self, tensor_name: str) -> Any:
        """The tensor's variable."""
        if tensor_name not in self._next:
            self._next[tensor_name] = variable(0, tf.int64)  # which a checkpoint may have waited to restore
        return self._next[tensor_name]

    def state(self) -> dict[str, int]:
        """Steps by the tensors' names."""
        with tf.init_scope():
            return {name: int(step) % STEPS for name, step in self._next.items()}

    def load(self, steps: dict[str, int]) -> None:
        """Go on with these; others begin at 0."""
        with tf.init_scope():
            for name in {*self._next, *steps}:
                self.counter(name).assign(steps.get(name, 0))


def read_state(steps: Any) -> dict[str, int]:
    """``StepsOfTensors.state`` in a saved state, checked."""
    if not isinstance(steps, dict):
        raise QSGDError(f"steps={steps!r} is not a step for each tensor; pass what state_dict() returned")
    return {str(name): whole_number(f"step of {name}", step, 0, STEPS - 1) for name, step in steps.items()}
