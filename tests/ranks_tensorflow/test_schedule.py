"""Schedules in TensorFlow: levels are those that PyTorch's frontend would decide, and the same on all ranks."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import tftools as tt
from rankcommon import RANK, SIZE, assert_all_raise, from_all_ranks, on_two_ranks

from hvd_qsgd.compressor import Compressor, Options, Ranks
from hvd_qsgd.config import Quantization
from hvd_qsgd.schedule import DQSGD, Budget, Constant, Piecewise
from hvd_qsgd.tensorflow import QSGD

STEPS = 24
SHAPES = (40, 50), (30, 7), (5, 400)
SETTINGS: list[dict[str, Any]] = [
    {"schedule": Budget(4.6, STEPS)},
    {"schedule": Budget(4.2, STEPS, 0.95), "codec": "rans", "norm": "l2", "bucket_size": None},
    {"schedule": Budget(4.4, STEPS, 0.97, allocation="tensor"), "codec": "auto"},
    {"schedule": DQSGD(60.0, 0.9, STEPS), "codec": "elias-dense"},
    {"schedule": Piecewise({0: 2, 5: 5}), "dither": "subtractive"},
    {"schedule": Constant(levels=9)},
]  # fmt: skip


class WithoutFramework:
    """The compressors of all ranks as PyTorch's frontend has them, in this process."""

    def __init__(self, **how: Any) -> None:
        self.ranks = [Compressor(Quantization.create(**how), Options(min_size=0)) for _ in range(SIZE)]

    def means(self, everyone: Sequence[Sequence[tt.Array]]) -> list[tt.Array]:
        """One step: of all ranks' gradients, tensor by tensor."""
        steps = [self._frames(rank, gradients) for rank, gradients in enumerate(everyone)]
        results = []
        for k in range(len(everyone[0])):
            words = np.concatenate([frames[k][1] for frames in steps])
            for core, frames in zip(self.ranks, steps):
                result, ticket = np.empty_like(everyone[0][k]), frames[k][0]
                core.decode(ticket, words.ctypes.data, words.size, 1 / SIZE, result.ctypes.data)
                ticket.close()
            results.append(result)
        return results

    def _frames(self, rank: int, gradients: Sequence[tt.Array]) -> list[tuple[Any, tt.Array]]:
        core, frames = self.ranks[rank], []
        for gradient in gradients:
            ticket = core.open(None, gradient.shape, "float32", lambda: Ranks(rank, SIZE, ("simulated", rank)))
            frames.append((ticket, core.encode(ticket, gradient.ctypes.data, buffer)))
        return frames


def buffer(size: int) -> tuple[tt.Array, int]:
    array = np.empty(size, np.uint8)
    return array, array.ctypes.data


def gradients_of_all_ranks(step: int, shapes: Any = SHAPES) -> list[list[tt.Array]]:
    """That differ a hundredfold between ranks; one has a NaN in step 5."""

    def of(rank: int) -> list[tt.Array]:
        size = 100.0 if step % SIZE == rank else 1.0
        arrays = [
            np.float32(size / (k + 1)) * tt.randn(*shape, seed=10 * step + k, rank=rank)
            for k, shape in enumerate(shapes)
        ]
        if step == 5 and rank == 1:
            arrays[1][1, 2] = np.nan
        return arrays

    return [of(rank) for rank in range(SIZE)]


def after_a_while(array: tt.Array) -> tt.Array:
    time.sleep(0.05)
    return array


def constants(arrays: Sequence[tt.Array]) -> list[Any]:
    return [tf.constant(array) for array in arrays]


@pytest.mark.parametrize(
    ("how", "graph"), [*((how, True) for how in SETTINGS), (SETTINGS[1], False), (SETTINGS[4], False)], ids=str
)
def test_the_same_levels_as_without_tensorflow(how: dict[str, Any], graph: bool) -> None:
    """Sums are equal bit for bit, and so is what the schedules know in the end."""
    compression, expected, traces = QSGD(min_size=0, **how), WithoutFramework(**how), 0

    def reduce(tensors: list[Any]) -> list[Any]:
        nonlocal traces
        traces += 1
        if graph:
            return [hvd.allreduce(tensor, compression=compression) for tensor in tensors]
        sent = [compression.compress(tensor) for tensor in tensors]  # all of a step are on their way
        tokens = [hvd.allreduce(token, op=hvd.Average, name=f"token {k}") for k, (token, _) in enumerate(sent)]
        return [compression.decompress(token, ctx) for token, (_, ctx) in zip(tokens, sent)]

    run, levels = tf.function(reduce) if graph else reduce, set()
    for step in range(10):
        everyone = gradients_of_all_ranks(step)
        means = expected.means(everyone)
        for result, mean in zip(run(constants(everyone[RANK])), means):
            assert tt.same_bits(result, mean), step
        assert compression.levels == expected.ranks[RANK].levels
        levels.add(compression.levels)
    state = compression.state_dict()["schedule"]
    assert state == expected.ranks[RANK].state()["schedule"]
    assert len(set(from_all_ranks(json.dumps(state)))) == 1
    assert not graph or traces == 1
    assert len(levels) > 1 or how["schedule"] == Constant(levels=9) or levels == {None}


@on_two_ranks
@pytest.mark.parametrize("how", [SETTINGS[2], {"schedule": Budget(5.0, STEPS), "error_feedback": True}], ids=str)
def test_training(how: dict[str, Any]) -> None:
    """With the tape, though one rank traces again; what is on its way is counted."""
    compression = QSGD(min_size=0, **how)
    model = tt.Model(compression)
    for step in range(8):
        model.train(range(step, step + 1), size=16 + (step // 3 if RANK == 0 else 0))
    assert model.traces == (3 if RANK == 0 else 1)
    tt.assert_replicas_equal(model.weights)
    state = compression.state_dict()["schedule"]
    assert state["progress"]["step"] == 8
    assert len(set(from_all_ranks(json.dumps(state)))) == 1
    assert state["progress"]["bits"] == 8 * sum(from_all_ranks(compression.stats().bytes_sent))


@on_two_ranks
def test_a_budget_is_kept() -> None:
    model = tt.Model(QSGD(min_size=0, schedule=Budget(4.6, 60)))
    model.train(range(60))
    spent = from_all_ranks(model.compression.stats().bits_per_coordinate)
    assert sum(spent) / SIZE == pytest.approx(4.6, rel=0.01)


@on_two_ranks
@pytest.mark.parametrize("passes", [1, 3])
def test_a_step_is_a_reduction(passes: int) -> None:
    """Of a Keras 2 optimizer: with backward_passes_per_step, not of every batch."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.layers.Dense(40, input_shape=(48,)), keras.layers.Dense(30)])
    compression = QSGD(schedule=Piecewise({0: 2, 2: 5}))
    optimizer = hvd_keras.DistributedOptimizer(
        keras.optimizers.SGD(0.1), compression=compression, backward_passes_per_step=passes
    )
    model.compile(optimizer, "mse")
    levels = []
    for step in range(3 * passes):
        model.train_on_batch(tt.randn(16, 48, seed=step), tt.randn(16, 30, seed=step))
        levels.append(compression.levels)
    assert levels == [1] * 2 * passes + [1] * (passes - 1) + [15]
    assert compression.state_dict()["schedule"]["progress"]["step"] == 3
    tt.assert_replicas_equal(model.get_weights())


@on_two_ranks
@pytest.mark.parametrize("way", ["state", "checkpoint"])
@pytest.mark.parametrize("how", SETTINGS[2:4], ids=str)
def test_resumed_at_any_step(how: dict[str, Any], way: str, tmp_path: Any) -> None:
    """By a compressor that was made without the schedule, and whose function may be traced already."""
    model, saved = tt.Model(QSGD(**how)), []
    for step in range(5):
        file = tf.train.Checkpoint(compression=model.compression).write(str(tmp_path / f"{step} of rank {RANK}"))
        saved.append(([weight.numpy() for weight in model.weights], model.compression.state_dict(), file))
        model.train(range(step, step + 1))
    end = tt.assert_replicas_equal(model.weights)
    for step in (0, 1, 4):
        again = tt.Model(QSGD(bits=3, seed=9))
        if step == 4:
            again.train(range(2))
        again.go_on(way, *saved[step])
        again.train(range(step, 5))
        assert tt.assert_replicas_equal(again.weights) == end, step
        assert again.traces == 1
        if how["schedule"].counts_bits:  # else lengths, which then do not matter, depend on those before
            assert again.compression.state_dict()["schedule"] == model.compression.state_dict()["schedule"]
        assert repr(again.compression) == repr(model.compression)
    plain = QSGD(bits=4)
    tf.train.Checkpoint(compression=again.compression).restore(tf.train.Checkpoint(compression=plain).write(file))
    assert repr(again.compression) == repr(plain)
    assert "schedule" not in again.compression.state_dict()


@on_two_ranks
def test_changes() -> None:
    """A schedule begins anew where it is given, goes on when others change, and ends with bits=."""
    compression, traces = QSGD(bits=4, min_size=0), 0
    gradient = tf.constant(tt.randn(50, 50))

    @tf.function
    def run() -> Any:
        nonlocal traces
        traces += 1
        return hvd.allreduce(gradient, compression=compression)

    def go() -> Any:
        tt.assert_replicas_equal([run()])
        return compression.levels

    assert go() == 7
    compression.change(schedule=Piecewise({0: 2, 2: 3}))
    assert [go(), go(), go()] == [1, 1, 3]
    compression.change(norm="l2", schedule=Budget(3.5, 20))
    assert len({go() for _ in range(5)}) > 1
    compression.change(codec="rans")
    assert compression.state_dict()["schedule"]["progress"]["step"] == 5
    go()
    compression.change(bits=3)
    assert go() == 3
    assert "schedule" not in compression.state_dict()
    assert traces == 1
    assert repr(QSGD(schedule=Constant(4))).startswith("QSGD(schedule=Constant(bits=4, levels=None), bucket_size=512")


def test_steps_in_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn is one, though nothing that it reduces comes of the turn before, and a sum is late."""
    gather, how = hvd.allgather, SETTINGS[0]

    def later(words: tf.Tensor, **options: Any) -> Any:
        frames = gather(words, **options)
        if not options["name"].endswith(".2"):
            return frames
        return tf.ensure_shape(tf.numpy_function(after_a_while, [frames], tf.int64, stateful=False), [None])

    monkeypatch.setattr(hvd, "allgather", later)
    compression, expected = QSGD(min_size=0, **how), WithoutFramework(**how)
    everyone = [gradients_of_all_ranks(step) for step in range(5)]
    inputs = [tf.constant(np.stack([every[RANK][k] for every in everyone])) for k in range(len(SHAPES))]

    @tf.function
    def run() -> Any:
        results = [tf.TensorArray(tf.float32, 5) for _ in SHAPES]
        for step in tf.range(5):
            reduced = [hvd.allreduce(each[step], compression=compression) for each in inputs]
            results = [array.write(step, each) for array, each in zip(results, reduced)]
        return [array.stack() for array in results]

    results = run()
    for step in range(5):
        for result, mean in zip(results, expected.means(everyone[step])):
            assert tt.same_bits(result[step], mean), step
    assert compression.state_dict()["schedule"] == expected.ranks[RANK].state()["schedule"]


def test_a_step_that_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts nothing, on no rank, and ranks agree again after it."""
    compression = QSGD(schedule=Budget(3.5, 20), min_size=0, name="given up")
    run = tf.function(lambda tensor: hvd.allreduce(tensor, compression=compression))
    gradient = tf.constant(tt.randn(40, 40))
    for _ in range(3):
        run(gradient)
    before = compression.state_dict()["schedule"]["progress"]
    with monkeypatch.context() as patch:
        decide = compression._scheduled.decide
        if RANK == SIZE - 1:
            patch.setattr(compression._scheduled, "decide", lambda *what: 0 * decide(*what))
        words = f"rank {SIZE - 1} could not encode tensor '#0' (1600 x float32, step 3): gradients of two steps"
        assert_all_raise(lambda: run(gradient), words, kind="InvalidArgumentError")
    after = compression.state_dict()["schedule"]["progress"]
    assert after == {**before, "step": before["step"] + 1}
    tt.assert_replicas_equal([run(gradient)])
    assert len(set(from_all_ranks(json.dumps(compression.state_dict()["schedule"])))) == 1


def test_steps_that_cannot_be_told_apart() -> None:
    """The next begins while a gradient is on its way: an error, not ranks that disagree."""
    compression = QSGD(schedule=Budget(3.5, 20), min_size=0)
    gradient = tf.constant(tt.randn(40, 40))
    run = tf.function(lambda tensor: hvd.allreduce(tensor, compression=compression))
    token, ctx = compression.compress(gradient)
    token = hvd.allreduce(token, op=hvd.Average, name="token of two steps")
    run(tf.constant(tt.randn(30, 40)))
    assert_all_raise(
        lambda: compression.decompress(token, ctx), "tensor '#0'", "gradients of two steps", kind="InvalidArgumentError"
    )


@on_two_ranks
def test_other_gradients_in_other_steps() -> None:
    """Of another function, or of the branch that is taken: what counts is what was reduced."""
    how: dict[str, Any] = {"schedule": Budget(4.4, STEPS, allocation="tensor")}
    compression, expected = QSGD(min_size=0, **how), WithoutFramework(**how)

    @tf.function
    def reduce(tensors: list[Any], last: Any) -> list[Any]:
        first = [hvd.allreduce(tensor, compression=compression) for tensor in tensors[:-1]]
        return [*first, tf.cond(last, lambda: hvd.allreduce(tensors[-1], compression=compression), lambda: tensors[-1])]

    for step in range(9):
        shapes, last = (SHAPES[:2], True) if step % 3 == 2 else (SHAPES, step % 3 == 0)
        everyone = gradients_of_all_ranks(step, shapes)
        reduce(constants(everyone[RANK]), tf.constant(last))
        expected.means([each if last else each[:-1] for each in everyone])
    assert compression.state_dict()["schedule"] == expected.ranks[RANK].state()["schedule"]


@pytest.mark.parametrize("graph", [False, True])
def test_schedules_differ(graph: bool) -> None:
    """From the beginning, or from a change on; when they are the same again, all is well."""
    compression = QSGD(schedule=Budget(4.0, STEPS) if RANK == 1 else None, name=f"differ {graph}")

    def reduce(tensor: Any) -> Any:
        return hvd.allreduce(tensor, compression=compression)

    run, gradient = tf.function(reduce) if graph else reduce, tf.constant(tt.randn(40, 50))
    words, refused = "schedule differs between ranks", "InvalidArgumentError"
    assert_all_raise(lambda: run(gradient), words, kind=refused)
    compression.change(schedule=Budget(4.0, STEPS))
    tt.assert_replicas_equal([run(gradient)])
    compression.change(schedule=Constant(4) if RANK == 0 else Budget(4, STEPS))
    assert_all_raise(lambda: run(gradient), words, kind=refused)
