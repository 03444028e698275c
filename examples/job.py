"""A job of several ranks: show what rank 0 prints, keep the rest in a log, leave no process behind."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil  # Horovod needs it, so it is there

# horovodrun marks what ranks print: [1,0]<stdout>: with MPI, [0]<stdout>: with Gloo.
RANK_0 = re.compile(r"^\[(?:1,)?0\]<stdout>: ?")
TAIL_LINES = 25


def run_job(command: Sequence[str], environment: Mapping[str, str], log: Path) -> tuple[int, str]:
    """Run ``command`` to its end, its output in ``log``. Returns the exit status and the last lines."""
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    # A session of its own: Ctrl-C reaches this program only, which then ends all that it started.
    with (
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process,
        log.open("w", encoding="utf-8") as log_file,
    ):
        try:
            for line in process.stdout or ():
                log_file.write(line)
                tail.append(line)
                if RANK_0.match(line):
                    print("  ", RANK_0.sub("", line).rstrip(), flush=True)
            process.wait()
        finally:
            end(process)
    return process.returncode, "".join(tail)


def end(process: subprocess.Popen[str]) -> None:
    """End ``process`` if it still runs, and all that it started."""
    if process.poll() is not None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.terminate()
        for member in psutil.wait_procs(family, timeout=5)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()
