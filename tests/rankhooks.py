"""What happens around tests that run inside ranks, whatever the framework: their `conftest.py` imports these.

Every rank runs all tests in the same order. Whatever one of them does wrong, the job ends, and soon.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from mpi4py import MPI
from rankcommon import RANK, from_all_ranks

TEST_SECONDS = float(os.environ.get("HVD_QSGD_RANK_TEST_SECONDS", "60"))
ABORT_AFTER = 3.0  # seconds in which other ranks may report their side of a failure


def pytest_configure(config: pytest.Config) -> None:
    if RANK:  # one rank's summary is enough
        config.option.durations, config.option.reportchars = None, ""


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """The other ranks would wait for this one for ever."""
    if report.failed:
        print(f"\n==== rank {RANK}: {report.nodeid} ({report.when})\n{report.longreprtext}", file=sys.stderr)
        print(report.capstdout, report.capstderr, file=sys.stderr, flush=True)
        time.sleep(ABORT_AFTER)
        MPI.COMM_WORLD.Abort(1)


def pytest_collection_finish(session: pytest.Session) -> None:
    names = [item.nodeid for item in session.items]
    assert all(theirs == names for theirs in from_all_ranks(names)), "ranks collected different tests"


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        pytest_runtest_logreport(report)  # type: ignore[arg-type]


def give_up(test: str, main: int) -> None:
    """A test takes too long: say where this rank is, and end all of them."""
    stack = traceback.extract_stack(sys._current_frames()[main])
    ours = [k for k, frame in enumerate(stack) if Path(frame.filename).name.startswith("test_")]
    where = "".join(traceback.format_list(stack[ours[0] if ours else 0 :]))
    print(f"\n==== rank {RANK}: {test} hangs\n{where}", file=sys.stderr, flush=True)
    time.sleep(ABORT_AFTER)
    MPI.COMM_WORLD.Abort(1)


@pytest.fixture(autouse=True)
def together(request: pytest.FixtureRequest) -> Iterator[None]:
    """No rank is more than a test ahead, and none takes for ever."""
    watchdog = threading.Timer(TEST_SECONDS, give_up, (request.node.nodeid, threading.get_ident()))
    watchdog.daemon = True
    watchdog.start()
    faulthandler.dump_traceback_later(TEST_SECONDS + 10, exit=True)  # if the watchdog cannot run
    yield
    MPI.COMM_WORLD.Barrier()
    faulthandler.cancel_dump_traceback_later()
    watchdog.cancel()
