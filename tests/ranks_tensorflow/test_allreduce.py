"""Horovod's TensorFlow functions with QSGD: reductions, groups, process sets, and mistakes that every rank is told."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import pytest
import tensorflow as tf
import tftools as tt
from rankcommon import RANK, SIZE, assert_all_raise, from_all_ranks, on_two_ranks, outcomes

from hvd_qsgd import QSGDError
from hvd_qsgd.tensorflow import QSGD

REFUSED = "InvalidArgumentError"
CODECS = ["packed", *(pytest.param(codec, marks=on_two_ranks) for codec in ("elias-sparse", "rans"))]


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(
    ("how", "factor"),
    [
        ({}, 1 / SIZE),
        ({"op": hvd.Sum}, 1.0),
        ({"prescale_factor": 0.5, "postscale_factor": 8.0}, 4 / SIZE),
        ({"op": hvd.Sum, "prescale_factor": 0.25}, 0.25),
    ],
    ids=["Average", "Sum", "scaled", "Sum, scaled"],
)
def test_reductions(how: dict[str, Any], factor: float, graph: bool) -> None:
    compression = QSGD(8)
    everyone = tt.of_all_ranks(40, 50)

    def reduce(tensor: Any) -> Any:
        return hvd.allreduce(tensor, compression=compression, **how)

    result = (tf.function(reduce) if graph else reduce)(tf.constant(everyone[RANK]))
    assert tt.same_bits(result, tt.decoded(everyone, factor=factor, bits=8))


def test_groups_and_what_stays_uncompressed() -> None:
    def small(k: int) -> list[Any]:
        return [
            tt.randn(40, 50, rank=k),
            tt.randn(30, 30, rank=k, dtype="bfloat16"),  # too small, and Horovod has no bfloat16
            tt.randn(40, 50, rank=k, dtype="float64"),
            tt.randn(5000, rank=k),
        ]

    everyone = [small(k) for k in range(SIZE)]
    for compression in (QSGD(name="eager group"), QSGD(name="graph group")):

        def reduce(tensors: list[Any], compression: QSGD = compression) -> Any:
            return hvd.grouped_allreduce(tensors, compression=compression)

        name = compression._options.name
        run = reduce if name == "eager group" else tf.function(reduce)
        # Horovod groups tensors of one dtype: tokens are float32, and so must the others be.
        results = run([tf.constant(array) for array in everyone[RANK]])
        columns = list(zip(*everyone))
        assert tt.same_bits(results[0], tt.decoded(columns[0], name=name))
        assert tt.same_bits(results[2], tt.decoded(columns[2], k=1, name=name))
        for k in (1, 3):
            mean = np.mean([column.astype("f8") for column in columns[k]], axis=0)
            assert results[k].dtype == columns[k][0].dtype
            assert np.abs(results[k].numpy().astype("f8") - mean).max() < (0.02 if k == 1 else 1e-6)
        assert compression.stats().tensors_compressed == 2


def test_others_are_left_to_horovod() -> None:
    compression = QSGD(min_size=0, name="others")
    numbers = tf.range(2000) + RANK
    assert tt.same_bits(
        hvd.allreduce(numbers, op=hvd.Sum, compression=compression),
        SIZE * np.arange(2000, dtype="i4") + sum(range(SIZE)),
    )
    slices = tf.IndexedSlices(tf.ones([2, 600]), tf.constant([RANK, 5]), tf.constant([10, 600]))
    result = hvd.allreduce(slices, compression=compression)
    assert isinstance(result, tf.IndexedSlices)
    assert result.values.shape[0] == 2 * SIZE
    assert compression.stats().tensors_compressed == 0
    assert hvd.allreduce(tf.ones(3), compression=compression).numpy().tolist() == [1, 1, 1]
    assert compression.stats().tensors_compressed == 1
    chosen = QSGD(skip=lambda name, gradient: gradient.shape[0] == 40, name="chosen")
    for rows in (40, 41):
        hvd.allreduce(tf.ones([rows, 50]), compression=chosen)
    assert chosen.stats().coordinates == 41 * 50


def test_process_set() -> None:
    """In a function, Horovod's tape calls the compressor on every rank; only those of the set run it."""
    everyone = tt.of_all_ranks(40, 50)[:: 2 if SIZE >= 4 else SIZE]
    compression = QSGD(process_set=tt.EVEN, name="even")
    if tt.EVEN.included():
        result = hvd.allreduce(tf.constant(tt.randn(40, 50)), compression=compression, process_set=tt.EVEN)
        assert tt.same_bits(result, tt.decoded(everyone, name="even"))
    else:
        with pytest.raises(QSGDError, match="this rank is not in"):
            hvd.allreduce(tf.ones([40, 50]), compression=compression, process_set=tt.EVEN)
    model = tt.Model(QSGD(process_set=tt.EVEN), process_set=tt.EVEN)
    model.train(range(5))
    members = 2 if SIZE >= 4 else 1
    digests = from_all_ranks(tt.digest(model.weights))
    assert len(set(digests[:: 2 if SIZE >= 4 else SIZE])) == 1
    assert len(set(digests)) == SIZE - members + 1
    assert model.compression.stats().steps == (5 if tt.EVEN.included() and members > 1 else 0)


def test_a_process_set_that_the_compressor_does_not_have() -> None:
    """Its ranks are told, and do not wait for frames of the others."""
    compression = QSGD(name="another set")
    run = tf.function(lambda tensor: hvd.allreduce(tensor, compression=compression, process_set=tt.EVEN))
    found = outcomes(lambda: tt.EVEN.included() and run(tf.ones([40, 50])))
    for rank, (kind, text) in enumerate(found):
        assert kind == (REFUSED if rank in tt.EVEN.ranks else "")
        assert kind == "" or f"over the {SIZE} ranks that exchange its frames" in text


@on_two_ranks
@pytest.mark.parametrize(("op", "graph"), [("Min", True), ("Max", False), ("Product", True), ("Adasum", False)])
def test_wrong_reductions_raise(op: str, graph: bool) -> None:
    compression = QSGD()

    def reduce(tensor: Any) -> Any:
        return hvd.allreduce(tensor, op=getattr(hvd, op), compression=compression)

    run = tf.function(reduce) if graph else reduce
    assert_all_raise(lambda: run(tf.ones([40, 50])), "tensor '#0'", "is not a sum or an average", kind=REFUSED)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("codec", CODECS)
def test_a_rank_that_cannot_encode_is_told_to_all(codec: str, graph: bool) -> None:
    compression = QSGD(name="failing", codec=codec)
    run = tf.function(lambda tensor: hvd.allreduce(tensor, compression=compression))
    if not graph:
        run = run.python_function
    good = compression._settings.numpy()
    if RANK == SIZE - 1:
        compression._settings.assign([40000, *good[1:]])  # levels
    words = f"rank {SIZE - 1} could not encode tensor '#0' (2000 x float32, step 0): an argument is out of range"
    assert_all_raise(lambda: run(tf.ones([40, 50])), words, kind=REFUSED)
    compression._settings.assign(good)
    everyone = tt.of_all_ranks(40, 50)
    assert tt.same_bits(run(tf.constant(everyone[RANK])), tt.decoded(everyone, step=1, name="failing", codec=codec))


@pytest.mark.parametrize("codec", CODECS)
def test_damaged_frames_raise(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one rank, on their way to all."""
    gather = hvd.allgather

    def damaging(words: Any, **how: Any) -> Any:
        return gather(tf.tensor_scatter_nd_update(words, [[40]], [words[40] ^ 4]) if RANK == 1 else words, **how)

    monkeypatch.setattr(hvd, "allgather", damaging)
    compression = QSGD(codec=codec)
    run = tf.function(lambda tensor: hvd.allreduce(tensor, compression=compression))
    words = "tensor '#0' (2000 x float32, step 0) from rank 1 is damaged: its checksum does not match"
    assert_all_raise(lambda: run(tf.constant(tt.randn(40, 50))), words, kind=REFUSED)


def test_ranks_at_different_steps_are_told_what_to_do() -> None:
    compression = QSGD(name="steps")
    state = compression.state_dict()
    compression.load_state_dict({**state, "steps": {"#0": 3 if RANK == 0 else 5}})
    words = "from rank 1 belongs to another step (5 there, 3 here); let all ranks load the same state_dict()"
    found = outcomes(lambda: hvd.allreduce(tf.ones([40, 50]), compression=compression))
    assert words in found[0][1]
    assert {kind for kind, _ in found} == {REFUSED}
    compression.load_state_dict(hvd.broadcast_object(compression.state_dict(), 0))
    hvd.allreduce(tf.ones([40, 50]), compression=compression)
    with pytest.raises(QSGDError, match="state_dict"):
        compression.load_state_dict({**state, "steps": 4})
    compression.load_state_dict(state)
    assert compression.state_dict() == {**state, "steps": {"#0": 0}}


def test_reducescatter_is_refused() -> None:
    words = f"returned {16 // SIZE} token entries instead of 16"
    assert_all_raise(lambda: hvd.reducescatter(tf.ones([40, 50]), compression=QSGD()), words, kind=REFUSED)


def test_ranks_with_different_tensors_are_told() -> None:
    words = "the ranks do not mean the same by tensor '#0'"
    assert_all_raise(
        lambda: hvd.allreduce(tf.ones([40 + RANK // (SIZE - 1), 50]), compression=QSGD(name="sizes")),
        words,
        kind=REFUSED,
    )


def test_a_loop_in_a_function() -> None:
    """A reduction waits for the one whose result it reduces."""
    compression = QSGD(bits=8)

    @tf.function
    def loop(x: Any) -> Any:
        for _ in tf.range(5):
            x = hvd.allreduce(x, compression=compression)
        return x

    for _ in range(5):
        np.testing.assert_array_equal(loop(tf.fill([40, 50], float(RANK))), np.full((40, 50), (SIZE - 1) / 2))


def test_only_one_rank_compresses() -> None:
    """Horovod tells all of them, in a function as well."""
    compression = QSGD(min_size=1 if RANK else 10**6, name="one rank")
    function = tf.function(lambda x: hvd.allreduce(x, compression=compression))
    assert all(kind for kind, _ in outcomes(lambda: function(tf.ones([40, 50]))))


@on_two_ranks
def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    for how, words in (
        ({"bits": 9}, "bits=9"),
        ({"skip": "*.norm"}, "skip="),
        ({"process_set": 0}, "process_set=0"),
        ({"min_size": -1}, "min_size=-1"),
    ):
        with pytest.raises(QSGDError, match=words):
            QSGD(**how)
    x = tf.Variable(tf.ones([40, 50]))
    with tf.GradientTape() as tape:
        y = 2 * x + hvd.allreduce(x, compression=QSGD())
    with pytest.raises(QSGDError, match="cannot be differentiated"):  # and nothing that looks like a gradient
        tape.gradient(y, x)
    with tf.Graph().as_default(), pytest.raises(QSGDError, match="TensorFlow 1"):
        hvd.allreduce(tf.ones([40, 50]), compression=QSGD())
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")
    with pytest.raises(QSGDError, match="elastic"):
        QSGD(name="elastic").compress(tf.ones([40, 50]))


def test_frames_meet_whatever_scope_they_are_in() -> None:
    """use_generic_names= of the tape asks Horovod for that; the frames do it always."""
    compression = QSGD(name="scopes")

    @tf.function
    def run(tensor: Any) -> Any:
        with tf.name_scope(f"scope_of_rank_{RANK}"):
            return hvd.allreduce(tensor, compression=compression, name="scoped", ignore_name_scope=True)

    everyone = tt.of_all_ranks(40, 50)
    assert tt.same_bits(run(tf.constant(everyone[RANK])), tt.decoded(everyone, name="scopes"))


@on_two_ranks
def test_xla_is_refused_at_once() -> None:
    run = tf.function(lambda tensor: hvd.allreduce(tensor, compression=QSGD), jit_compile=True)
    with tf.device("cpu"):
        assert_all_raise(lambda: run(tf.ones([40, 50])), "Detected unsupported operations", "QsgdEncode", kind=REFUSED)
