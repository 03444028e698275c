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
from tftools import frame_and_result

import hvd_qsgd
from hvd_qsgd.schedule import DQSGD, Budget, Constant
from hvd_qsgd.tensorflow import QSGD

STEPS = 3

VARIABLE_LENGTH: list[dict[str, Any]] = [
    {"codec": "elias-dense", "bits": 4},
    {"codec": "elias-sparse", "levels": 300, "norm": "l2", "bucket_size": None},
    {"codec": "rans", "levels": "sqrt", "norm": "l2"},
]
ON_GPU: list[dict[str, Any]] = [
    {"bits": 4},
    {"bits": 2, "norm": "l2", "bucket_size": None},
    {"codec": "ternary", "levels": 1},
    *VARIABLE_LENGTH,
    {"schedule": Budget(bits_per_coordinate=3.5, steps=STEPS)},
    {"schedule": Budget(bits_per_coordinate=3.5, steps=STEPS), "codec": "rans"},
]
ENCODED_ON_CPU: list[dict[str, Any]] = [
    {"codec": "auto", "levels": 7},
    {"codec": "onebit"},
    {"variance": 0.1},
    {"bits": 4, "dither": "subtractive"},
]
TENSORS = ((60, 50), "float32"), ((1, 1), "float16"), ((0, 4), "float32"), ((5000,), "bfloat16"), ((50, 70), "float16")


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


def gradient(step: int, shape: tuple[int, ...], dtype: str) -> Any:
    """With ever more zeros, whose frames are ever shorter, and padded as the first one needs it."""
    values = tt.randn(*shape, seed=step, dtype=dtype)
    values.reshape(-1)[: values.size * step // 10] = 0
    return values


def reduced(device: str, graph: bool, **options: Any) -> list[Any]:
    """Frames and results of some steps with a new compressor, as arrays."""
    compression = QSGD(min_size=0, name="equal", **options)

    def reduce(*tensors: Any) -> list[Any]:
        with tf.device(device):
            return [each for tensor in tensors for each in frame_and_result(tf.identity(tensor), compression)]

    run = tf.function(reduce) if graph else reduce
    steps = [[tf.constant(gradient(step, *tensor)) for tensor in TENSORS] for step in range(STEPS)]
    return [each.numpy() for tensors in steps for each in run(*tensors)]


@pytest.mark.parametrize(
    ("options", "graph"),
    [
        *[(options, True) for options in [*ON_GPU, *ENCODED_ON_CPU]],
        *[(options, False) for options in [ON_GPU[0], *VARIABLE_LENGTH, ENCODED_ON_CPU[0]]],
    ],
    ids=str,
)
def test_the_cpu_s_frames_and_results(options: dict[str, Any], graph: bool) -> None:
    calls()
    expected = reduced("CPU:0", graph, **options)
    assert calls()[:2] == (0, 0)
    found = reduced("GPU:0", graph, **options)
    tensors = STEPS * len(TENSORS)
    assert calls()[:2] == (tensors if options in ON_GPU else 0, tensors)
    assert [one.tobytes() for one in found] == [other.tobytes() for other in expected]


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(
    ("options", "all_frames"),
    [
        ({}, 0),
        *[(options, 0) for options in VARIABLE_LENGTH],
        ({"schedule": Constant(bits=4)}, 0),
        ({"schedule": DQSGD(k=7.0, alpha=1.0, steps=2)}, hvd.size()),
    ],
    ids=str,
)
def test_no_gradient_comes_to_the_host_and_frames_only_for_schedules_that_need_them(
    options: dict[str, Any], all_frames: int, graph: bool
) -> None:
    gradient = tt.randn(100, 50)
    compression = QSGD(**options)

    def reduce(tensor: Any) -> Any:
        with tf.device("GPU:0"):
            return hvd.allreduce(tf.identity(tensor), compression=compression)

    run = tf.function(reduce, input_signature=[tf.TensorSpec(None)]) if graph else reduce
    with tf.device("GPU:0"):
        tensor = tf.identity(tf.constant(gradient))
    calls()
    run(tensor)
    # Horovod gathers on the CPU here, which takes this rank's frame; tokens, verdicts and lengths are short.
    assert calls().bytes_to_host // compression.stats().bytes_sent == 1 + all_frames


@pytest.mark.parametrize("options", [{"bits": 4}, *VARIABLE_LENGTH], ids=str)
def test_ranks_with_a_gpu_and_without(options: dict[str, Any]) -> None:
    device = "GPU:0" if RANK == 0 else "CPU:0"
    calls()
    found = reduced(device, graph=True, **options)
    assert bool(calls().encode) == (RANK == 0)
    assert tt.assert_replicas_equal(found[1::2])


def test_a_codec_that_is_changed_while_a_graph_is_in_use() -> None:
    """To the one that is chosen on the CPU, too: of two that are as short it is the last, wherever that was used."""
    changes = ["packed", "auto", "rans", "auto", "elias-sparse", "packed"]
    found = {}
    for device in ("CPU:0", "GPU:0"):
        compression = QSGD(name="changing", levels=7, bucket_size=16)

        @tf.function
        def reduce(tensor: Any, compression: QSGD = compression, device: str = device) -> Any:
            with tf.device(device):
                return frame_and_result(tf.identity(tensor), compression)

        found[device] = []
        for step, codec in enumerate(changes):
            compression.change(codec=codec)
            calls()
            found[device] += [each.numpy().tobytes() for each in reduce(tf.constant(tt.randn(40, 50, seed=step)))]
            assert calls().encode == (device == "GPU:0" and codec != "auto")
    assert found["GPU:0"] == found["CPU:0"]


def test_ranks_of_different_codecs() -> None:
    """What one of them sums on the GPU, the CPU has to sum for the other, which lacks the memory there."""
    compression = QSGD(name="different")
    hows: list[dict[str, Any]] = [{"bits": 4}, {"codec": "rans", "bits": 6}]
    compression.change(**hows[RANK])
    everyone = tt.of_all_ranks(40, 50)
    frames = [tt.frames_of(everyone, name="different", **how)[rank] for rank, how in enumerate(hows)]
    calls()
    with tf.device("GPU:0"):
        result = hvd.allreduce(tf.identity(tf.constant(everyone[RANK])), compression=compression)
    assert result.numpy().tobytes() == hvd_qsgd.decode_sum(frames, 1 / 2).tobytes()
    all_frames, result_there = sum(len(frame) for frame in frames), everyone[0].nbytes
    assert calls().bytes_to_host - result_there >= (all_frames if RANK == 0 else 0)


@pytest.mark.parametrize("options", VARIABLE_LENGTH, ids=str)
def test_a_rank_that_traces_again(options: dict[str, Any]) -> None:
    compression = QSGD(name="again", **options)
    traces = 0

    @tf.function
    def reduce(tensor: Any, _: int) -> Any:
        nonlocal traces
        traces += 1
        with tf.device("GPU:0"):
            return hvd.allreduce(tf.identity(tensor), compression=compression)

    results = [reduce(tf.constant(tt.randn(40, 50, seed=step)), step if RANK else 0) for step in range(STEPS)]
    assert traces == (STEPS if RANK else 1)
    for step, result in enumerate(results):
        everyone = tt.of_all_ranks(40, 50, seed=step)
        assert tt.same_bits(result, tt.decoded(everyone, step=step, name="again", **options))


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
