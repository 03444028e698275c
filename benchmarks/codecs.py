"""What codecs make of gradients and of noise, and how fast: python -m benchmarks.codecs [--json] [--quick]

    python -m benchmarks.codecs --gradients DIR        of examples/save_gradients.py, which is run if DIR is not given

Bits and variance (the words are those of hvd_qsgd.compare.Size): a row for each gradient that would be compressed by
default, in each setting; a row MODEL-epochN for all of a model's; rows for Gaussian and Laplace noise. ``levels`` is
empty where tensors differ.
Speed: one core, max norm, buckets of 512, s = 7 (ternary: 1), Gaussian values; ``ratio`` is GB/s over memcpy's, as in
benchmarks.kernels but for counting 4 bytes for each element of every frame that is summed. Codecs of variable length
may take longer if they are told that the values are a matrix, as they are in training: both are shown.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import kernels
from hvd_qsgd import native, wire
from hvd_qsgd.compare import Values, as_values, measure, resolve, settings
from hvd_qsgd.config import DEFAULT_MIN_SIZE

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "save_gradients.py"
COLUMNS = 4096  # of the matrix whose coding is timed
SIZES = ("payload_bits", "bits", "entropy")
Row = dict[str, Any]


def make_gradients(folder: Path, quick: bool, fashion_dir: Path | None) -> None:
    """Run the example that saves them."""
    command = [sys.executable, str(EXAMPLE), "--output-dir", str(folder), *["--quick"] * quick]
    command += ["--fashion-dir", str(fashion_dir)] if fashion_dir else []
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
        sys.exit("benchmarks.codecs: no gradients were made (see above); --gradients DIR takes saved ones")


def gradients(folder: Path) -> Iterator[tuple[str, Values]]:
    """Name and values of those that a compressor does not leave alone by default."""
    for file in sorted(folder.glob("*.npy")):
        array = np.load(file)
        if array.ndim > 1 and array.size >= DEFAULT_MIN_SIZE:
            yield file.stem, as_values(array)


def noise(n: int) -> Iterator[tuple[str, Values]]:
    """Independent values, whose codes no model tells apart."""
    random = np.random.default_rng(0)
    yield "gaussian noise", random.standard_normal(n).astype(np.float32)
    yield "laplace noise", random.laplace(size=n).astype(np.float32)


def size_rows(name: str, values: Values) -> list[Row]:
    """A row for each setting that is possible with ``values``."""
    rows = []
    for number, setting in enumerate(settings()):
        print(f"\r{name} {number} ", end="", file=sys.stderr, flush=True)
        resolved = resolve(values, setting)
        if resolved is not None:
            size = dataclasses.asdict(measure(values, resolved))
            rows.append({"gradient": name, "target": setting.get("variance"), "coordinates": values.size, **size})
    print("\r" + " " * 70 + "\r", end="", file=sys.stderr)
    return rows


def total_rows(name: str, parts: list[tuple[Values, list[Row]]]) -> Iterator[Row]:
    """What a model's gradients come to, in each setting that is possible with all of them."""
    same: dict[tuple[Any, ...], list[tuple[float, Row]]] = defaultdict(list)
    for values, rows in parts:
        squared_norm = float(np.square(values, dtype=np.float64).sum())
        for row in rows:
            setting = (row["codec"], row["bucket_size"], row["target"] or row["levels"])
            same[setting].append((squared_norm, row))
    for members in same.values():
        if len(members) == len(parts):
            squared_norms, rows_of_setting = zip(*members)
            counts = [row["coordinates"] for row in rows_of_setting]
            means = {key: float(np.average([row[key] for row in rows_of_setting], weights=counts)) for key in SIZES}
            errors = sum(weight * row["variance"] for weight, row in members)
            levels = {row["levels"] for row in rows_of_setting}
            yield {
                **rows_of_setting[0],
                "gradient": name,
                "coordinates": sum(counts),
                "levels": levels.pop() if len(levels) == 1 else None,
                **means,
                "variance": errors / (sum(squared_norms) or 1.0),
            }


def speed_rows(n: int, repeats: int) -> list[Row]:
    """Encoding, and decoding and adding up, by every codec: of a vector, and where the shape matters of a matrix."""
    cases, shapes = [next(kernels.memory_cases(n))], []
    for name, codec in wire.CODECS.items():
        for shape in [(n,), (n // COLUMNS, COLUMNS)] if codec.variable else [(n,)]:
            setting = {"codec": name, "levels": min(7, codec.max_levels)}
            cases += kernels.codec_cases(n, setting, "float32", shape)
            shapes += [shape] * 2
    memcpy, *times = kernels.measure(cases, repeats)
    return [
        {
            "name": about["name"],
            "codec": about["codec"],
            "shape": "x".join(map(str, shape)),
            "frames": about["frames"],
            "isa": native.isa(),
            "memcpy_gbps": 4 * n / memcpy / 1e9,
            "ratio": about["frames"] * memcpy / seconds,
        }
        for (about, _), shape, seconds in zip(cases[1:], shapes, times)
    ]


def all_size_rows(folder: Path, quick: bool) -> Iterator[Row]:
    """Gradients, models, noise."""
    models: dict[str, list[tuple[Values, list[Row]]]] = defaultdict(list)
    for name, values in gradients(folder):
        rows = size_rows(name, values)
        models["-".join(name.split("-")[:2])].append((values, rows))
        yield from rows
    if not models:
        sys.exit(f"benchmarks.codecs: {folder} has no .npy file of a gradient that would be compressed")
    for model, parts in models.items():
        yield from total_rows(model, parts)
    for name, values in noise(1 << (18 if quick else 22)):
        yield from size_rows(name, values)


def report(rows: Iterable[Row], as_json: bool) -> None:
    """JSON, or columns under a heading."""
    for number, row in enumerate(rows):
        if as_json:
            print(json.dumps(row), flush=True)
            continue
        if number == 0:
            print(line(row))
        print(line(row.values()), flush=True)


def line(cells: Iterable[Any]) -> str:
    first, *others = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)
    return f"{first:62s}" + " ".join(f"{cell:>12s}" for cell in others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--quick", action="store_true", help="less training, less noise, and speed at 2^20")
    parser.add_argument("--gradients", type=Path, metavar="DIR", help="saved ones (default: make them anew)")
    parser.add_argument("--fashion-dir", type=Path, metavar="DIR", help="Fashion-MNIST, if they are made anew")
    parser.add_argument("--repeats", type=int, default=11, help="turns when speed is measured (default 11)")
    options = parser.parse_args()
    os.environ.setdefault(native.THREADS_VARIABLE, "1")
    with tempfile.TemporaryDirectory() as made:
        if options.gradients is None:
            make_gradients(Path(made), options.quick, options.fashion_dir)
        report(all_size_rows(options.gradients or Path(made), options.quick), options.json)
    report(speed_rows(1 << (20 if options.quick else 24), options.repeats), options.json)


if __name__ == "__main__":
    main()
