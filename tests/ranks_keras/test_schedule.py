"""Schedules in Keras 3: steps are those of the optimizer, also where a graph runs several, and runs go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import kerastools as kt
import pytest
import tensorflow as tf
from rankcommon import RANK, from_all_ranks, on_two_ranks
from ranks_tensorflow import tftools as tt

from hvd_qsgd.keras import QSGD, BroadcastGlobalVariablesCallback
from hvd_qsgd.schedule import Budget, Piecewise


def sgd() -> Any:
    return keras.optimizers.SGD(0.1, momentum=0.9)


def progress(model: Any) -> dict[str, Any]:
    of_schedule: dict[str, Any] = model.optimizer.compression.state_dict()["schedule"]["progress"]
    assert len(set(from_all_ranks(json.dumps(of_schedule)))) == 1
    return of_schedule


@on_two_ranks
def test_fit() -> None:
    """In all modes the same steps, and the same weights bit for bit."""
    ends = []
    for how in ({}, {"steps_per_execution": 3}, {"run_eagerly": True}):
        model = kt.compiled(sgd(), QSGD(schedule=Budget(3.4, 12, 0.97)), **how)
        kt.train(model, range(6))
        ends.append((tt.assert_replicas_equal(kt.state(model)), progress(model)))
    assert ends[1:] == ends[:-1]
    assert ends[0][1]["step"] == 6


@on_two_ranks
def test_accumulated_gradients() -> None:
    """Keras's own accumulation is of reduced gradients: each pass is a step."""
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    model = kt.compiled(optimizer, QSGD(schedule=Piecewise({0: 2, 3: 5})))
    kt.train(model, range(3))
    assert optimizer.compression.levels == 1
    kt.train(model, range(3, 4))
    assert optimizer.compression.levels == 15
    assert progress(model)["step"] == 4


@on_two_ranks
@pytest.mark.parametrize(("stop", "way"), [(0, "checkpoint"), (1, "state"), (4, "checkpoint")])
def test_resumed_bit_for_bit(tmp_path: Path, stop: int, way: str) -> None:
    """By a model that was compiled without a schedule, and with the callback, which hands on one rank's."""
    one = kt.compiled(sgd(), QSGD(schedule=Budget(3.4, 12, allocation="tensor"), codec="rans"))
    one.optimizer.build(one.trainable_variables)
    if stop:
        kt.train(one, range(stop))
    state = one.optimizer.compression.state_dict()
    path = tf.train.Checkpoint(model=one, optimizer=one.optimizer).write(str(tmp_path / "checkpoint"))
    kt.train(one, range(stop, 6))
    other = kt.compiled(sgd(), QSGD(), seed=9)
    other.optimizer.build(other.trainable_variables)
    tf.train.Checkpoint(model=other, optimizer=other.optimizer).read(path)
    if way == "state":
        other.optimizer.compression.change(bits=4)
        other.optimizer.compression.load_state_dict(state)
    if RANK:
        other.optimizer.compression.change(bits=4)  # the callback hands on what rank 0 has
    callback = BroadcastGlobalVariablesCallback(root_rank=0)
    callback.set_model(other)
    callback.on_train_begin()
    kt.train(other, range(stop, 6))
    assert tt.assert_replicas_equal(kt.state(other)) == tt.assert_replicas_equal(kt.state(one))
    assert progress(other) == progress(one)
