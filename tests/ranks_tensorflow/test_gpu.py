"""Where the work is done for gradients on a GPU, which is pretended (tests/tensorflow_device/).

What comes of it is said by the other tests, which run there as well.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, NamedTuple

import horovod.tensorflow as hvd
import pytest
import tensorflow as tf
import tftools as tt
from rankcommon import RANK

from hvd_qsgd.schedule import DQSGD, Budget, Constant
from hvd_qsgd.tensorflow import QSGD

STEPS = 3

ON_GPU: list[dict[str, Any]] = [
    {"bits": 4},
    {"bits": 2, "norm": "l2", "bucket_size": None},
    {"codec": "ternary", "levels": 1},
    {"schedule": Budget(bits_per_coordinate=3.5, steps=STEPS)},
]
ENCODED_ON_CPU: list[dict[str, Any]] = [
    {"codec": "elias-sparse", "levels": 7},
    {"codec": "rans", "levels": 7},
    {"codec": "onebit"},
    {"variance": 0.1},
    {"bits": 4, "dither": "subtractive"},
]
SHAPES = (60, 50), (1, 1), (0, 4), (5000,)


class Calls(NamedTuple):
    """Of the CUDA kernels, since they were last asked for."""

    encode: int
    decode_sum: int
    bytes_to_host: int  # whoever copied them


def calls() -> Calls:
    take = ctypes.CDLL(os.environ["HVD_QSGD_PRETENDED_GPU"]).pretended_gpu_calls
    counts = (ctypes.c_uint64 * 3)()
    take(counts)
    return Calls(*counts)


def reduced(device: str, graph: bool, **options: Any) -> list[Any]:
    """Of some steps with a new compressor, as arrays."""
    compression = QSGD(min_size=0, name="equal", **options)

    def reduce(*tensors: Any) -> list[Any]:
        with tf.device(device):
            return [hvd.allreduce(tf.identity(tensor), compression=compression) for tensor in tensors]

    run = tf.function(reduce) if graph else reduce
    steps = [[tf.constant(tt.randn(*shape, seed=step)) for shape in SHAPES] for step in range(STEPS)]
    return [result.numpy() for tensors in steps for result in run(*tensors)]


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("options", [*ON_GPU, *ENCODED_ON_CPU], ids=str)
def test_the_cpu_s_results(options: dict[str, Any], graph: bool) -> None:
    calls()
    expected = reduced("CPU:0", graph, **options)
    assert calls()[:2] == (0, 0)
    found = reduced("GPU:0", graph, **options)
    tensors = STEPS * len(SHAPES)
    assert calls()[:2] == (tensors if options in ON_GPU else 0, tensors)
    assert [one.tobytes() for one in found] == [other.tobytes() for other in expected]


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(
    ("options", "all_frames"),
    [({}, 0), ({"schedule": Constant(bits=4)}, 0), ({"schedule": DQSGD(k=7.0, alpha=1.0, steps=2)}, hvd.size())],
)
def test_no_gradient_comes_to_the_host_and_frames_only_for_schedules_that_need_them(
    options: dict[str, Any], all_frames: int, graph: bool
) -> None:
    gradient = tt.randn(100, 50)
    (frame,) = tt.frames_of([gradient])
    compression = QSGD(**options)

    def reduce(tensor: Any) -> Any:
        with tf.device("GPU:0"):
            return hvd.allreduce(tf.identity(tensor), compression=compression)

    run = tf.function(reduce, input_signature=[tf.TensorSpec(None)]) if graph else reduce
    with tf.device("GPU:0"):
        tensor = tf.identity(tf.constant(gradient))
    calls()
    run(tensor)
    # Horovod gathers on the CPU here, which takes this rank's frame; tokens and verdicts are short.
    assert calls().bytes_to_host // len(frame) == 1 + all_frames


def test_ranks_with_a_gpu_and_without() -> None:
    device = "GPU:0" if RANK == 0 else "CPU:0"
    calls()
    found = reduced(device, graph=True, bits=4)
    assert bool(calls().encode) == (RANK == 0)
    assert tt.assert_replicas_equal(found)


def test_a_codec_that_is_changed_while_a_graph_is_in_use() -> None:
    compression = QSGD(name="changing")
    everyone = tt.of_all_ranks(40, 50)

    @tf.function
    def reduce(tensor: Any) -> Any:
        with tf.device("GPU:0"):
            return hvd.allreduce(tf.identity(tensor), compression=compression)

    for step, how in enumerate([{"bits": 4}, {"codec": "rans", "levels": 7}, {"codec": "packed", "bits": 8}]):
        compression.change(**how)
        calls()
        result = reduce(tf.constant(everyone[RANK]))
        assert tt.same_bits(result, tt.decoded(everyone, step=step, name="changing", **how))
        assert calls().encode == (step != 1)


def test_without_soft_placement() -> None:
    """Horovod's allgather, which has no kernel for the GPU here, is not forced there."""
    compression, gradient = QSGD(name="strict"), tt.randn(40, 50)
    with tf.device("GPU:0"):
        tensor = tf.identity(tf.constant(gradient))
    tf.config.set_soft_device_placement(False)
    try:
        token, ctx = compression.compress(tensor)
        result = compression.decompress(hvd.allreduce(token, op=hvd.Average, name="strict"), ctx)
    finally:
        tf.config.set_soft_device_placement(True)
    tt.assert_replicas_equal([result])


def test_error_feedback_stays_on_the_cpu() -> None:
    calls()
    reduced("GPU:0", graph=True, bits=4, error_feedback=True)
    assert calls()[:2] == (0, 0)
