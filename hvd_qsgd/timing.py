"""How fast a gradient is encoded and decoded in several settings, which take turns: slow moments hit all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_qsgd import frames, native
from hvd_qsgd.config import Quantization

FEWEST_TURNS, MOST_TURNS, SECONDS = 5, 100, 1.0


def seconds(values: npt.NDArray[np.float32], settings: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """Median times on the clock of encoding ``values`` into one frame, and of decoding it, for each of the settings.

    A setting is what ``Quantization.create`` takes. Buffers are used again, as in training.
    """
    specs = [_spec(values, setting) for setting in settings]
    frame = np.empty(max(map(native.frame_bytes, specs)), np.uint8)
    result = np.empty(values.size, np.float32)
    times: list[list[tuple[float, float]]] = [[] for _ in specs]
    begin = time.perf_counter()
    while len(times[0]) <= FEWEST_TURNS or (len(times[0]) <= MOST_TURNS and time.perf_counter() - begin < SECONDS):
        for spec, own in zip(specs, times):
            start = time.perf_counter()
            size = native.encode(spec, values.ctypes.data, frame.ctypes.data, frame.size)
            middle = time.perf_counter()
            frames.decode_sum(frame.ctypes.data, size, 1, frames.expect(spec), 1.0, result.ctypes.data)
            own.append((middle - start, time.perf_counter() - middle))
    # Not the first turn, in which the buffers come into being.
    return [(statistics.median(t[0] for t in own[1:]), statistics.median(t[1] for t in own[1:])) for own in times]


def _spec(values: npt.NDArray[np.float32], setting: dict[str, Any]) -> native.Spec:
    quantization = Quantization.create(**setting)
    return frames.make_spec(
        quantization,
        count=values.size,
        dtype="float32",
        seed=0,
        rank=0,
        tensor=0,
        step=0,
        columns=native.columns(values.shape),
    )
