"""What tests inside ranks share, whatever the framework. It travels by mpi4py, past Horovod and hvd_qsgd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mpi4py import MPI

COMM = MPI.COMM_WORLD.Dup()
RANK, SIZE = COMM.Get_rank(), COMM.Get_size()

on_two_ranks = pytest.mark.skipif(SIZE > 2, reason="what it tests does not depend on the number of ranks")


def from_all_ranks(value: Any) -> list[Any]:
    """Every rank's value, in rank order."""
    return COMM.allgather(value)


def outcomes(function: Callable[[], Any]) -> list[tuple[str, str]]:
    """What ``function`` raised on every rank, as the exception's class and text, or ("", "")."""
    try:
        function()
    except Exception as error:
        mine = type(error).__name__, str(error)
    else:
        mine = "", ""
    return from_all_ranks(mine)


def assert_all_raise(function: Callable[[], Any], *words: str, kind: str = "QSGDError") -> list[str]:
    """Every rank gets a ``kind`` of exception whose message has all the words; returns the messages."""
    found = outcomes(function)
    for rank, (raised, text) in enumerate(found):
        assert raised == kind, f"rank {rank} raised {raised or 'nothing'} {text!r}; all ranks: {found}"
        for word in words:
            assert word in text, f"rank {rank}: {word!r} is not in {text!r}"
    return [text for _, text in found]
