"""Tools for frames and gradients in files: ``python -m hvd_qsgd inspect`` and ``codecs``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_qsgd import describe, native
from hvd_qsgd.compare import Result, as_values, compare
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.plot import plot

CODECS_HEADING = ("codec", "levels", "bucket", "norm", "payload", "frame", "entropy", "variance", "encode", "decode")
CODECS_UNITS = ("", "", "", "", "bits", "bits", "bits", "", "GB/s", "GB/s")


def inspect(options: argparse.Namespace) -> None:
    """Print a frame's header."""
    frame = options.file.read_bytes()
    if options.json:
        print(json.dumps(describe.summary(frame), indent=1))
    else:
        print_table(describe.table(frame), "<><")


def codecs(options: argparse.Namespace) -> None:
    """Print, and plot, what every codec makes of a gradient."""
    values = as_values(load_array(options.file))
    results = compare(values)
    if options.json:
        for result in results:
            print(json.dumps(dataclasses.asdict(result)))
    else:
        print_table([CODECS_HEADING, CODECS_UNITS, *map(row, results)], "<>>>>>>>>>")
        print(f"{values.size} coordinates; at most {native.default_threads()} threads, {native.isa()}")
    if options.plot:
        plot(results, f"{options.file.name}: {values.size:,} coordinates", options.plot)


def load_array(file: Path) -> npt.NDArray[Any]:
    """The array in a .npy file."""
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError):
        array = None
    if not isinstance(array, np.ndarray):
        raise QSGDError("this is no array of numbers that numpy.save() wrote, or it is damaged")
    return array


def row(result: Result) -> tuple[str, ...]:
    """A result as text."""
    bits = (f"{value:.3f}" for value in (result.payload_bits, result.bits, result.entropy))
    speeds = (f"{value:.2f}" for value in (result.encode_gbps, result.decode_gbps))
    bucket = "tensor" if result.bucket_size is None else str(result.bucket_size)
    return (result.codec, str(result.levels), bucket, result.norm, *bits, f"{result.variance:.3g}", *speeds)


def print_table(rows: Sequence[Sequence[str]], alignment: str) -> None:
    """Columns as wide as they must be, each aligned to the left (<) or right (>)."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for cells in rows:
        line = "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(cells, alignment, widths))
        print(line.rstrip())


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hvd_qsgd", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("inspect", help="a frame's header, and what it means")
    one.add_argument(
        "file", type=Path, metavar="FILE", help="the bytes of one frame, as hvd_qsgd.encode() returns them"
    )
    one.set_defaults(run=inspect)
    all_codecs = commands.add_parser("codecs", help="what each codec makes of a gradient: bits, variance, speed")
    all_codecs.add_argument("file", type=Path, metavar="FILE.npy", help="a gradient, as numpy.save() writes it")
    all_codecs.add_argument("--plot", type=Path, metavar="OUT.png", help="draw it too (needs Matplotlib)")
    all_codecs.set_defaults(run=codecs)
    for command in (one, all_codecs):
        command.add_argument("--json", action="store_true", help="for programs")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    try:
        options.run(options)
    except QSGDError as error:
        sys.exit(f"hvd_qsgd: {options.file}: {error}")
    except OSError as error:
        sys.exit(f"hvd_qsgd: {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
