"""Frames made once and kept in `golden/frames.json`: neither the reference nor the kernels may ever make others.

`python tests/test_golden.py --write` makes them anew, from the reference: only after docs/wire_format.md has changed.
Inputs are computed from integers alone, so that they do not depend on any library's random numbers.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1])]

import reference as ref
from support import Array, all_kernels, bits_of, same_bits

FILE = Path(__file__).with_name("golden") / "frames.json"
INPUTS = ("usual", "wide", "tiny", "huge")
SMALL = 512  # bytes of a frame that is kept whole
Case = dict[str, Any]


def golden_input(kind: str, n: int, dtype: str) -> Array:
    """Numbers made of a Weyl sequence's bits; bfloat16 as uint16 bit patterns."""
    words = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    mantissas = (words >> np.uint64(40)).astype(np.int64) - 2**23  # 24 bits
    exponents = (words >> np.uint64(8)).astype(np.int64) % 256
    range_of = {"float32": (-149, 128), "float16": (-24, 16), "bfloat16": (-133, 128)}[dtype]
    if kind == "usual":
        powers = -24 - exponents % 8
    elif kind == "wide":  # a power of two for every 100 elements, over all of the dtype's range
        powers = range_of[0] + exponents[np.arange(n) // 100 * 100] % (range_of[1] - range_of[0]) - 24
    elif kind == "tiny":
        powers = np.full(n, range_of[0] - 8)
    else:  # huge
        powers = np.full(n, range_of[1] - 23)
    values = np.ldexp(mantissas.astype(np.float64), powers)
    largest = float(2.0 ** range_of[1] * (1 - 2.0 ** -{"float32": 24, "float16": 11, "bfloat16": 8}[dtype]))
    array = ref.narrow(np.clip(values, -largest, largest).astype(np.float32), dtype)
    if kind == "wide":
        array[7::50] = 0
        if n > 300:
            bits_of(array)[300] = {"float32": 0x7F800000, "float16": 0x7E01, "bfloat16": 0xFF80}[dtype]
    return array


def all_cases() -> list[Case]:
    """Every codec, width, norm and dtype; every kind of input; lengths and bucket sizes of every sort."""
    coders = [("packed", s) for s in (1, 2, 3, 5, 7, 15, 31, 63, 100, 127)] + [("ternary", 1)] * 5
    coders += [("rans", s) for s in (1, 7, 127, 500, 32767)]
    coders += [("elias-dense", s) for s in (1, 7, 1805, 32767)] + [("elias-sparse", s) for s in (1, 7, 1805, 32767)]
    coders += [("onebit", 1)] * 4
    kinds = itertools.product(enumerate(coders), enumerate(itertools.product(ref.NORMS, ref.DTYPES)))
    cases = [
        {
            "input": INPUTS[(c + j) % 4],
            "n": (1, 17, 81, 700, 5121)[(c + 2 * j) % 5],
            "codec": codec,
            "levels": levels,
            "bucket_size": (512, 3, None, 16, 1000, 100)[(c + j + c // 5) % 6],
            "norm": norm,
            "dtype": dtype,
            "squared_norm": (c + j) % 3 == 0,
            "columns": (0, 16, 40)[(c + j) % 3] if codec == "rans" else 0,
            "seed": (c + 7) * 0x123456789ABCDEF * (j + 1) % 2**64,
            "rank": j,
            "tensor": 2**32 - 1 - c,
            "step": 2**31 * (c % 2) + j,
        }
        for (c, (codec, levels)), (j, (norm, dtype)) in kinds
    ]
    return cases + [{**case, "subtractive": True} for case in cases[3::7] if case["codec"] in ("packed", "ternary")]


def arguments(case: Case) -> Case:
    return {name: value for name, value in case.items() if name not in ("input", "n", "frame", "sha256", "decoded")}


def decoded(case: Case, frame: bytes) -> Array:
    """What the kernels make of the frame alone (`reference.decode_sum` would want it to be of rank 0)."""
    with np.errstate(over="ignore"):
        return ref.narrow(ref.dequantize(frame) + np.float32(0), case["dtype"])


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write() -> None:
    lines = []
    for case in all_cases():
        frame = ref.encode(golden_input(case["input"], case["n"], case["dtype"]), **arguments(case))
        case["decoded"] = digest(decoded(case, frame).tobytes())
        case["sha256"] = digest(frame)
        if len(frame) <= SMALL:
            case["frame"] = frame.hex()
        lines.append(json.dumps(case))
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"wrote {len(lines)} frames to {FILE}")


CASES: list[Case] = json.loads(FILE.read_text()) if FILE.exists() else []


def test_golden_frames_are_complete() -> None:
    assert len(CASES) == len(all_cases()) == 205
    for case, expected in zip(CASES, all_cases()):
        assert {name: case[name] for name in expected} == expected
    assert sum("frame" in case for case in CASES) >= 30
    for codec in ("packed", "ternary", "elias-dense", "elias-sparse", "rans"):
        of_codec = [case for case in CASES if case["codec"] == codec]
        assert {(case["norm"], case["dtype"], case["input"]) for case in of_codec} == {
            (norm, dtype, kind)
            for norm in ref.NORMS
            for dtype in ref.DTYPES
            for kind in ("usual", "wide", "tiny", "huge")
        }


@pytest.mark.parametrize("k", range(len(CASES)))
def test_golden_frame(k: int) -> None:
    case = CASES[k]
    array = golden_input(case["input"], case["n"], case["dtype"])
    frame = ref.encode(array, **arguments(case))
    assert frame.hex() == case.get("frame", frame.hex())
    assert digest(frame) == case["sha256"]
    values = decoded(case, frame)
    assert digest(values.tobytes()) == case["decoded"]
    where = {"tensor": case["tensor"], "step": case["step"], "first_rank": case["rank"], "dtype": case["dtype"]}
    for kernels in all_kernels():
        assert kernels.encode(array, **arguments(case)) == frame, kernels.isa
        assert same_bits(kernels.decode_sum([frame], count=case["n"], **where), values), kernels.isa


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit(__doc__)
    write()
