"""What the environment scripts print: one line a step; the noise goes to a log."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "build" / "env.log"
TAIL_LINES = 30


def say(message: str) -> None:
    print(f"env: {message}", flush=True)


def fail(message: str) -> NoReturn:
    """End with one line that says what is wrong and what to do."""
    print(f"env: {message}", file=sys.stderr, flush=True)
    raise SystemExit(1)


def log_tail() -> str:
    return "\n".join(LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:])


def attempt(command: Sequence[str], env: Mapping[str, str], cwd: Path = ROOT) -> bool:
    """Run a command with its output in the log; tell whether it succeeded."""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("a", encoding="utf-8") as log:
        print(f"\n$ {' '.join(command)}", file=log, flush=True)
        try:
            done = subprocess.run(
                command, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
            )
        except OSError as error:
            print(error, file=log)
            return False
    return done.returncode == 0


def step(what: str, *commands: Sequence[str], env: Mapping[str, str], cwd: Path = ROOT) -> None:
    """Say what happens, run the commands, say how long it took; on failure show the log's end and stop."""
    say(f"{what} ...")
    start = time.monotonic()
    for command in commands:
        if not attempt(command, env, cwd):
            print(log_tail(), file=sys.stderr)
            fail(f"failed: {what} (the whole log: {LOG.relative_to(ROOT)})")
    say(f"  done in {time.monotonic() - start:.0f} s")
