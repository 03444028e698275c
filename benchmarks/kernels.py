"""Speed of the kernels beside the memory's: python -m benchmarks.kernels [--json] [--quick] [--n LOG2] [--isa all]

GB/s counts 4 bytes for each element of the gradient, once, however many frames are summed and whatever its dtype.
``ratio`` is that over memcpy of a float32 gradient. All take turns in one run; figures are medians. With one thread,
its processor time is what counts, so that other programs disturb less; with several, time on the clock.
HVD_QSGD_NUM_THREADS sets the threads (default here: 1), HVD_QSGD_ISA or --isa the instruction set.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import torch_baselines
from hvd_qsgd import frames, native, wire
from hvd_qsgd.config import Quantization

Bytes = npt.NDArray[np.uint8]
Case = tuple[dict[str, Any], Callable[[], Any]]
ISAS = ("avx512", "avx2", "baseline")
FRAMES = 4
BUCKET_SIZE = 512
SETTINGS: list[dict[str, Any]] = [
    *({"bits": bits} for bits in (4, 2, 3, 5, 6, 7, 8)),
    {"bits": 4, "norm": "l2"},
    {"bits": 4, "bucket_size": 64},
    {"bits": 4, "bucket_size": 100},
    {"bits": 8, "norm": "l2", "bucket_size": None},
    {"codec": "ternary"},
    {"codec": "onebit"},
    {"codec": "onebit", "bucket_size": None},
    *({"codec": codec, "levels": 7} for codec in ("elias-dense", "elias-sparse", "rans")),
    {"codec": "rans", "levels": 127},
    {"codec": "elias-sparse", "levels": 1805, "norm": "l2", "bucket_size": None},
]


def aligned(size: int) -> Bytes:
    """``size`` bytes on a page boundary, written once so that they exist."""
    room = np.zeros(size + 4096, np.uint8)
    start = -room.ctypes.data % 4096
    return room[start : start + size]


def gradient_of(n: int, dtype: str) -> Bytes:
    """Gaussian values of a dtype, as bytes."""
    buffer = aligned(n * wire.ITEM_BYTES[dtype])
    values = np.random.default_rng(0).standard_normal(n, dtype=np.float32)
    bits = values if dtype == "float32" else values.astype(np.float16)
    if dtype == "bfloat16":
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)  # type: ignore[assignment]
    buffer[:] = bits.view(np.uint8)
    return buffer


def codec_cases(n: int, setting: dict[str, Any], dtype: str, shape: Sequence[int] = ()) -> Iterator[Case]:
    """Encode one frame; decode and sum several. ``shape``: what the encoder is told of the tensor, if anything."""
    quantization = Quantization.create(**{"bucket_size": BUCKET_SIZE, **setting})
    gradient, result = gradient_of(n, dtype), aligned(n * wire.ITEM_BYTES[dtype])
    columns = native.columns(shape) if shape else 0
    spec = frames.make_spec(quantization, count=n, dtype=dtype, seed=1, rank=0, tensor=2, step=3, columns=columns)
    size = native.frame_bytes(spec)
    frame, encoded = aligned(size), []
    for rank in range(FRAMES):
        spec.rank = rank
        encoded.append(frame[: native.encode(spec, gradient.ctypes.data, frame.ctypes.data, size)].copy())
    spec.rank = 0
    gathered, expected = aligned(sum(one.size for one in encoded)), frames.expect(spec)
    np.concatenate(encoded, out=gathered)
    about = {
        "bits": setting.get("bits", quantization.levels.bit_length() + (quantization.codec != "onebit")),
        "norm": quantization.norm,
        "codec": quantization.codec,
        "bucket_size": quantization.bucket_size,
        "dtype": dtype,
        "bytes": encoded[0].size,
    }
    yield (
        {"name": "encode", **about, "frames": 1},
        lambda: native.encode(spec, gradient.ctypes.data, frame.ctypes.data, size),
    )
    yield (
        {"name": "decode_sum", **about, "frames": FRAMES},
        lambda: native.decode_sum(
            gathered.ctypes.data, gathered.size, FRAMES, expected, 1 / FRAMES, result.ctypes.data
        ),
    )


def memory_cases(n: int) -> Iterator[Case]:
    """What the memory allows."""
    source, target = gradient_of(n, "float32"), aligned(4 * n)
    yield {"name": "memcpy"}, lambda: ctypes.memmove(target.ctypes.data, source.ctypes.data, 4 * n)
    yield {"name": "read_sum"}, lambda: native.read_sum(source.ctypes.data, n)


def all_cases(n: int, quick: bool) -> list[Case]:
    cases = [*memory_cases(n), *torch_baselines.cases(n, BUCKET_SIZE)]
    for setting in ({"bits": 4}, {"codec": "rans", "levels": 7}) if quick else SETTINGS:
        cases += codec_cases(n, setting, "float32")
    for dtype in () if quick else ("float16", "bfloat16"):
        cases += codec_cases(n, {"bits": 4}, dtype)
    return cases


def measure(cases: list[Case], repeats: int) -> list[float]:
    """Median seconds of each; all take turns."""
    clock = time.thread_time if native.default_threads() == 1 else time.perf_counter
    seconds: list[list[float]] = [[] for _ in cases]
    for turn in range(repeats + 1):
        print(f"\rturn {turn} of {repeats} ", end="", file=sys.stderr, flush=True)
        for (_, run), times in zip(cases, seconds):
            start = clock()
            run()
            times.append(clock() - start)
    print("\r" + " " * 20 + "\r", end="", file=sys.stderr)
    return [statistics.median(times[1:]) for times in seconds]


def report(rows: list[dict[str, Any]], as_json: bool) -> None:
    for row in rows:
        if as_json:
            print(json.dumps(row), flush=True)
        else:
            details = " ".join(
                f"{key}={row[key]}" for key in ("codec", "bits", "norm", "bucket_size", "dtype", "frames") if key in row
            )
            print(f"{row['isa']:8s} {row['name']:18s} {row['gbps']:7.2f} GB/s  ratio {row['ratio']:5.2f}  {details}")


def run_each_isa(arguments: list[str]) -> int:
    """The instruction set is chosen once a process."""
    command = [sys.executable, "-m", "benchmarks.kernels", *arguments]
    return max(subprocess.run(command, env={**os.environ, "HVD_QSGD_ISA": isa}, check=False).returncode for isa in ISAS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--quick", action="store_true", help="the default setting only")
    parser.add_argument("--n", type=int, default=24, metavar="LOG2", help="2^LOG2 elements (default 24)")
    parser.add_argument("--repeats", type=int, default=11, help="turns (default 11)")
    parser.add_argument("--isa", choices=(*ISAS, "all"), help="default: the best there is")
    options = parser.parse_args()
    os.environ.setdefault(native.THREADS_VARIABLE, "1")
    if options.isa == "all":
        flags = ["--json"] * options.json + ["--quick"] * options.quick
        return run_each_isa([*flags, "--n", str(options.n), "--repeats", str(options.repeats)])
    if options.isa:
        os.environ["HVD_QSGD_ISA"] = options.isa
    n = 1 << options.n
    cases = all_cases(n, options.quick)
    speeds = [4 * n / seconds / 1e9 for seconds in measure(cases, options.repeats)]
    common = {"n": n, "threads": native.default_threads(), "isa": native.isa(), "memcpy_gbps": speeds[0]}
    report(
        [{**about, **common, "gbps": gbps, "ratio": gbps / speeds[0]} for (about, _), gbps in zip(cases, speeds)],
        options.json,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
