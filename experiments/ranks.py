"""Real ranks: Horovod jobs of examples/torch_mnist.py on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from job import run_job
from launch import horovodrun_command

from experiments.runs import ExperimentError

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "torch_mnist.py"
COMPRESSION = {  # by what the plots call it: arguments of the script
    "SGD": ["--compression", "none"],
    "1-bit SGD": ["--codec", "onebit", "--error-feedback"],
    "1-bit SGD without error feedback": ["--codec", "onebit"],
}


def train(ranks: int, arguments: Sequence[str], log: Path) -> dict[str, Any]:
    """Run the script, and return what it recorded (examples/record.py).

    Args:
        ranks: how many; a single one communicates with nobody.
        arguments: of the script, but for ``--output``.
        log: for the job's output; the record is written beside it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    record = log.with_suffix(".json").resolve()
    record.unlink(missing_ok=True)
    command = [str(SCRIPT), *arguments, f"--output={record}"]
    command, environment = horovodrun_command(ranks, command)
    status, tail = run_job(command, environment, log)
    if status or not record.exists():
        raise ExperimentError(
            f"the ranks failed (exit status {status}); these were their last lines, {log} has all:\n{tail}"
        )
    values: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return values
