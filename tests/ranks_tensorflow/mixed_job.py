"""Rank 0 uses PyTorch, rank 1 TensorFlow: both decode the two frames, which are told apart by nothing.

The frames travel by mpi4py, since Horovod's own operations have other names in each framework.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI

COMM = MPI.COMM_WORLD
DTYPES = ("float32", "float16", "bfloat16")
HOW: dict[str, Any] = {"levels": 40, "norm": "l2", "bucket_size": 96, "seed": 3}


def exchange(words: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.concatenate(COMM.allgather(words))


def gradient(dtype: str, step: int) -> np.ndarray[Any, Any]:
    """This rank's, as float32 that the dtype holds exactly."""
    values = np.random.default_rng([COMM.Get_rank(), step]).standard_normal((50, 41)).astype(np.float32)
    return (
        (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
        if dtype == "bfloat16"
        else values.astype(np.float16) + np.float32(0)
    )


def with_torch(dtype: str, steps: int) -> list[bytes]:
    import horovod.torch as hvd
    import torch

    from hvd_qsgd.torch import QSGD

    class Gathered:
        def __init__(self, frames: list[Any], *_: Any) -> None:
            self.words = [torch.from_numpy(exchange(words.numpy())) for words in frames]

        def wait(self) -> list[Any]:
            return self.words

    hvd.init()
    compression = QSGD(**HOW)
    compression._transport.allgather = Gathered
    results = []
    for step in range(steps):
        token, ctx = compression.compress(torch.from_numpy(gradient(dtype, step)).to(getattr(torch, dtype)))
        token[0] = 0.5  # the average of two ranks'
        results.append(compression.decompress(token, ctx).float().numpy().tobytes())
    return results


def with_tensorflow(dtype: str, steps: int) -> list[bytes]:
    import horovod.tensorflow as hvd
    import tensorflow as tf

    from hvd_qsgd.tensorflow import QSGD

    hvd.init()
    hvd.allgather = lambda words, **how: tf.constant(exchange(words.numpy()))
    compression = QSGD(**HOW)
    results = []
    for step in range(steps):
        token, ctx = compression.compress(tf.cast(gradient(dtype, step), dtype))
        average = tf.concat([0.5 * tf.ones_like(token[:1]), token[1:]], 0)
        results.append(tf.cast(compression.decompress(average, ctx), tf.float32).numpy().tobytes())
    return results


def main() -> None:
    for dtype in DTYPES:
        mine = (with_tensorflow if COMM.Get_rank() else with_torch)(dtype, 2)
        theirs = COMM.allgather(mine)
        assert theirs[0] == theirs[1], dtype
        assert len(set(theirs[0])) == 2
        print(f"{dtype}: equal", flush=True)


if __name__ == "__main__":
    main()
