"""Speed of the CUDA kernels beside the memory's: python -m benchmarks.gpu [--n LOG2] [--output FILE] [--emulated]

``copy`` is a device-to-device copy of the float32 gradient. ``ratio`` is bytes needed a second over the copy's bytes a
second, bytes needed being each byte of gradient, frames and result once. All of a table's rows take turns in one
run; figures are medians. A part that fails is named, and stops no other; then the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import resnet50, torch_baselines
from benchmarks.gpu_device import Device, Exchange, Exchanges
from benchmarks.gpu_overlap import overlap_table
from benchmarks.pretended import EMULATED
from hvd_qsgd import native_cuda

LOG2_N, LOG2_EMULATED = 28, 11
LOG2_HOOKS = 20  # which run a few kernels for every 512 elements
BYTES_AN_ELEMENT = 200  # of memory, for all that the first table needs
RANKS = 8
TURNS = 15
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *((f"{bits} bits", {"bits": bits}) for bits in (4, 2, 3, 5, 6, 7, 8)),
    ("ternary", {"codec": "ternary"}),
    ("4 bits, l2", {"bits": 4, "norm": "l2"}),
    ("4 bits, bucket 100", {"bits": 4, "bucket_size": 100}),
    ("8 bits, one l2 scale", {"bits": 8, "norm": "l2", "bucket_size": None}),
    *((f"{codec}, 7 levels", {"codec": codec, "levels": 7}) for codec in ("rans", "elias-dense", "elias-sparse")),
]
HALVES = [("4 bits", {"bits": 4})]
# The least that is asked for: ratios to the copy, by operation, setting and dtype.
BARS = {
    ("encode", "4 bits", "float32"): 0.85,
    ("encode", "4 bits", "bfloat16"): 0.8,
    ("encode", "4 bits, l2", "float32"): 0.8,
    (f"sum of {RANKS}", "4 bits", "float32"): 0.8,
}
TIMES_BASELINE = 10  # how much faster ours should be
STEP_MS = 2.0  # for a step of ResNet-50

Row = Sequence[str]


class Case(NamedTuple):
    """What is measured: its name, how many bytes it needs, and how to run it."""

    operation: str
    setting: str
    dtype: str
    needed: int
    run: Callable[[], Any]


def judged(value: float, bar: float | None, at_least: bool = True) -> str:
    """The cell beside a value: the bar, and whether it is met."""
    if bar is None:
        return ""
    met = value >= bar if at_least else value <= bar
    return f"{'≥' if at_least else '≤'} {bar:g}: {'yes' if met else 'NO'}"


# ---- kernels ----


def copy_case(device: Device, n: int) -> Case:
    source, target = device.gaussian(n), device.gaussian(n)
    return Case("copy", "", "float32", 8 * n, lambda: target.copy_(source))


def kernel_cases(device: Device, n: int) -> Iterator[Case]:
    for dtype, settings in (("float32", SETTINGS), ("bfloat16", HALVES), ("float16", HALVES)):
        gradient = device.gaussian(n, dtype)
        for name, setting in settings:
            one = Exchange(device, gradient, setting, RANKS)
            yield Case("encode", name, dtype, one.gradient_bytes + one.frame_bytes, one.encode)
            needed = one.gradient_bytes + RANKS * one.frame_bytes
            yield Case(f"sum of {RANKS}", name, dtype, needed, one.decode_sum)


def kernels_table(device: Device, n: int) -> Iterator[Row]:
    cases = [copy_case(device, n), *kernel_cases(device, n)]
    if n * 4 < 2**31 or device.emulated or device.free_bytes() > 40 * n:
        gradient = device.gaussian(n)
        run = lambda: torch_baselines.qsgd_encode(gradient, 512)  # noqa: E731
        cases.append(Case("encode in torch operations", "4 bits", "float32", 0, run))
    seconds = device.seconds([case.run for case in cases], TURNS)
    copied = cases[0].needed / seconds[0]
    yield "", "", "dtype", "ms", "GB/s needed", "ratio to copy", "bar"
    for case, spent in zip(cases, seconds):
        if case.needed:
            ratio = case.needed / spent / copied
            bar = judged(ratio, BARS.get((case.operation, case.setting, case.dtype)))
            numbers = f"{spent * 1e3:.3f}", f"{case.needed / spent / 1e9:.0f}", f"{ratio:.2f}", bar
        else:
            times = spent / seconds[1]
            numbers = f"{spent * 1e3:.3f}", "", f"{times:.1f} times encode", judged(times, TIMES_BASELINE)
        yield case.operation, case.setting, case.dtype, *numbers


# ---- many tensors ----


def step_table(device: Device) -> Iterator[Row]:
    yield "ResNet-50: encode, and sum of 8", "tensors", "ms on the GPU", "ms of the host", "bar, both"
    shapes = resnet50.shapes()
    if device.emulated:
        shapes = [shape for shape in shapes if resnet50.elements(shape) < 10_000][:9]
    for what, chosen in (
        ("all tensors", shapes),
        ("those with 2 dimensions or more, as by default", [shape for shape in shapes if len(shape) > 1]),
    ):
        tensors = [Exchange(device, device.gaussian(resnet50.elements(s)), {"bits": 4}, RANKS) for s in chosen]
        both: list[tuple[str, Sequence[Exchange | Exchanges]]] = [
            ("a call for each", tensors), ("a call for all", [Exchanges(device, tensors)])
        ]  # fmt: skip
        for how, calls in both:
            on_gpu, of_host = step_seconds(device, calls)
            for one in tensors:
                one.check()
            bar = judged(max(on_gpu, of_host) * 1e3, STEP_MS, at_least=False)
            yield f"{what}, {how}", str(len(tensors)), f"{on_gpu * 1e3:.3f}", f"{of_host * 1e3:.3f}", bar


def step_seconds(device: Device, calls: Sequence[Exchange | Exchanges]) -> tuple[float, float]:
    """On the GPU, all work being one graph; of the host, when it is not."""

    def step() -> None:
        for one in calls:
            one.encode()
        for one in calls:
            one.decode_sum()

    step()
    of_host = statistics.median(device.host_seconds(step) for _ in range(TURNS))
    (on_gpu,) = device.seconds([device.captured(step)], TURNS)
    return on_gpu, of_host


# ---- PyTorch's hooks ----


def hooks_table(device: Device) -> Iterator[Row]:
    """One rank's gradient there and back, 8 bits: encoding and decoding alone."""
    n = 1 << (LOG2_EMULATED if device.emulated else LOG2_HOOKS)
    gradient = device.gaussian(n)
    ours = Exchange(device, gradient, {"bits": 8}, 1)

    def both() -> None:
        ours.encode()
        ours.decode_sum()

    def hook(name: str) -> Callable[[], Any]:
        mean = torch_baselines.quantization_hook(name, gradient)
        assert (mean - gradient).abs().max() < gradient.abs().max() / 50, name
        return lambda: torch_baselines.quantization_hook(name, gradient)

    names = ["quantization_pertensor_hook", "quantization_perchannel_hook"]
    seconds = device.seconds([both, *map(hook, names)], TURNS)
    yield f"one rank, 8 bits, n = {n}", "ms", "times ours"
    for name, spent in zip(["encode and sum", *names], seconds):
        yield name, f"{spent * 1e3:.3f}", f"{spent / seconds[0]:.1f}"


# ---- the report ----


def markdown(rows: Sequence[Row]) -> str:
    """Rows, the first of which is the head, as a table that lines up."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    head, *body = (f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths))} |" for row in rows)
    return "\n".join([head, f"|{'|'.join('-' * (width + 2) for width in widths)}|", *body])


def default_log2(device: Device) -> int:
    if device.emulated:
        return LOG2_EMULATED
    log2 = LOG2_N
    while BYTES_AN_ELEMENT << log2 > device.free_bytes():
        log2 -= 1
    return log2


def report(device: Device, log2: int) -> Iterator[tuple[str, bool]]:
    """The head, then each table as soon as it is made, and whether it could be."""
    parts: list[tuple[str, Callable[[], Iterator[Row]]]] = [
        (f"n = 2^{log2}", lambda: kernels_table(device, 1 << log2)),
        ("many tensors", lambda: step_table(device)),
        ("PyTorch's own hooks", lambda: hooks_table(device)),
        ("encoding beside backward", lambda: overlap_table(device)),
    ]
    yield f"{device.name}, bucket 512 and max norm unless it says otherwise", True
    for name, rows in parts:
        try:
            yield f"\n{name}\n\n{markdown(list(rows()))}", True
        except Exception as error:  # of any kind: the other tables can still be made
            traceback.print_exc()
            yield f"\n{name}: failed: {error}", False
        device.release()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, metavar="LOG2", help=f"2^LOG2 elements (default {LOG2_N}, if they fit)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the report there, too")
    parser.add_argument("--emulated", action="store_true", help="on this processor, to try the program itself")
    options = parser.parse_args(arguments)
    if options.emulated:
        os.environ[native_cuda.LIBRARY_VARIABLE] = str(EMULATED)
    device = Device(options.emulated)
    if options.output:
        options.output.write_text("", encoding="utf-8")
    all_made = True
    for text, made in report(device, options.n or default_log2(device)):
        print(text, flush=True)
        if options.output:
            with options.output.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        all_made &= made
    return 0 if all_made else 1


if __name__ == "__main__":
    sys.exit(main())
