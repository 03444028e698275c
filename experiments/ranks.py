"""Real ranks: Horovod jobs of examples/torch_mnist.py."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from job import run_job
from launch import horovodrun_command, launch_environment

from experiments.runs import ExperimentError

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "torch_mnist.py"
COMPRESSION = {  # by what the plots call it: arguments of the script
    "SGD": ["--compression", "none"],
    "QSGD, 4 bits": ["--bits", "4"],
    "QSGD, variance 0.1": ["--variance", "0.1", "--codec", "auto"],
    "1-bit SGD": ["--codec", "onebit", "--error-feedback"],
    "1-bit SGD without error feedback": ["--codec", "onebit"],
}


def train(ranks: int, arguments: Sequence[str], log: Path, launch: str | None = None) -> dict[str, Any]:
    """Run the script, and return what it recorded (examples/record.py).

    Args:
        ranks: how many; a single one communicates with nobody.
        arguments: of the script, but for ``--output``.
        log: for the job's output; the record is written beside it.
        launch: what stands before the command of a rank, with {ranks} for their number; default: on this machine.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    record = log.with_suffix(".json").resolve()
    record.unlink(missing_ok=True)
    command, environment = _job(ranks, [str(SCRIPT), *arguments, f"--output={record}"], launch)
    status, tail = run_job(command, environment, log)
    if status or not record.exists():
        raise ExperimentError(
            f"the ranks failed (exit status {status}); these were their last lines, {log} has all:\n{tail}"
        )
    values: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return values


def _job(ranks: int, python_args: Sequence[str], launch: str | None) -> tuple[list[str], dict[str, str]]:
    """Command and environment of ``python *python_args`` on each rank."""
    if launch is None:
        return horovodrun_command(ranks, python_args)
    return [*shlex.split(launch.replace("{ranks}", str(ranks))), sys.executable, *python_args], launch_environment()
