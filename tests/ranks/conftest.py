"""These tests run inside ranks: every rank runs all of them in the same order, started by `tests/test_ranks.py`.

By hand: HVD_QSGD_IN_RANKS=1 .venv/bin/python tools/launch.py -n 2 -m pytest tests/ranks -p no:cacheprovider -x -q
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

IN_RANKS = "HVD_QSGD_IN_RANKS" in os.environ
TEST_SECONDS = float(os.environ.get("HVD_QSGD_RANK_TEST_SECONDS", "60"))
ABORT_AFTER = 3.0  # seconds in which other ranks may report their side of a failure

collect_ignore_glob = [] if IN_RANKS else ["*"]

if IN_RANKS:
    import horovod.torch as hvd
    import ranktools
    import torch
    from mpi4py import MPI

    torch.set_num_threads(1)
    hvd.init(process_sets=ranktools.PROCESS_SETS)

    def pytest_configure(config: pytest.Config) -> None:
        if ranktools.RANK:  # one rank's summary is enough
            config.option.durations, config.option.reportchars = None, ""

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(report: pytest.TestReport) -> None:
        """The other ranks would wait for this one for ever."""
        if report.failed:
            print(f"\n==== rank {hvd.rank()}: {report.nodeid} ({report.when})\n{report.longreprtext}", file=sys.stderr)
            print(report.capstdout, report.capstderr, file=sys.stderr, flush=True)
            time.sleep(ABORT_AFTER)
            MPI.COMM_WORLD.Abort(1)

    def pytest_collection_finish(session: pytest.Session) -> None:
        names = [item.nodeid for item in session.items]
        assert all(theirs == names for theirs in ranktools.from_all_ranks(names)), "ranks collected different tests"

    def pytest_collectreport(report: pytest.CollectReport) -> None:
        if report.failed:
            pytest_runtest_logreport(report)  # type: ignore[arg-type]

    def give_up(test: str, main: int) -> None:
        """A test takes too long: say where this rank is, and end all of them."""
        stack = traceback.extract_stack(sys._current_frames()[main])
        ours = [k for k, frame in enumerate(stack) if Path(frame.filename).parent == Path(__file__).parent]
        where = "".join(traceback.format_list(stack[ours[0] if ours else 0 :]))
        print(f"\n==== rank {hvd.rank()}: {test} hangs\n{where}", file=sys.stderr, flush=True)
        time.sleep(ABORT_AFTER)
        MPI.COMM_WORLD.Abort(1)

    @pytest.fixture(autouse=True)
    def _together(request: pytest.FixtureRequest) -> Iterator[None]:
        """No rank is more than a test ahead, and none takes for ever."""
        watchdog = threading.Timer(TEST_SECONDS, give_up, (request.node.nodeid, threading.get_ident()))
        watchdog.daemon = True
        watchdog.start()
        faulthandler.dump_traceback_later(TEST_SECONDS + 10, exit=True)  # if the watchdog cannot run
        yield
        MPI.COMM_WORLD.Barrier()
        faulthandler.cancel_dump_traceback_later()
        watchdog.cancel()
