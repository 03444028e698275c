"""Real ranks: Horovod jobs of examples/torch_mnist.py, on this machine or wherever a launcher starts them."""

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
    "1-bit SGD": ["--codec", "onebit", "--error-feedback"],
    "1-bit SGD without error feedback": ["--codec", "onebit"],
}


def train(ranks: int, arguments: Sequence[str], log: Path, launch: str = "") -> dict[str, Any]:
    """Run the script, and return what it recorded (examples/record.py).

    Args:
        ranks: how many; a single one communicates with nobody.
        arguments: of the script, but for ``--output``.
        log: for the job's output; the record is written beside it.
        launch: a command before "python script.py ..." that starts the ranks, with {np} for their number; "":
            horovodrun. A single rank needs none.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    record = log.with_suffix(".json").resolve()
    record.unlink(missing_ok=True)
    command = [str(SCRIPT), *arguments, f"--output={record}"]
    if launch and ranks > 1:
        command, environment = [*shlex.split(launch.format(np=ranks)), sys.executable, *command], launch_environment()
    else:
        command, environment = horovodrun_command(ranks, command)
    status, tail = run_job(command, environment, log)
    if status or not record.exists():
        raise ExperimentError(
            f"the ranks failed (exit status {status}); these were their last lines, {log} has all:\n{tail}"
        )
    values: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return values
