"""MPI's allgather through mpi4py, on a communicator of its own. Operations are matched by their order."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_qsgd.errors import QSGDError

Words = npt.NDArray[np.int64]


def import_mpi() -> Any:
    """The module ``mpi4py.MPI``."""
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise QSGDError(
            "the MPI transport needs mpi4py: pip install mpi4py (built for the MPI that launches the job)"
        ) from error
    return MPI


class MpiTransport:
    """Moves NumPy arrays over a duplicate of ``comm``, so that nobody else's messages can mix with these."""

    def __init__(self, comm: Any) -> None:
        self.mpi = import_mpi()
        self.comm = comm.Dup()
        self.rank = int(comm.Get_rank())
        self.size = int(comm.Get_size())
        self._asked: list[_Gathering] = []  # not yet complete, in the order of asking

    def allgather(self, words: Words, name: str, bound: int) -> _Gathering:
        """Start gathering ``words`` of all ranks; ``name`` and ``bound`` do not matter to MPI."""
        gathering = _Gathering(self, words)
        self._asked.append(gathering)
        return gathering

    def complete(self, gathering: _Gathering) -> None:
        """Complete everything up to ``gathering``, in the order of asking: on every rank the same.

        What nobody waits for any more, after an exception, is received all the same: its memory must last until then.
        """
        if gathering.done:
            return
        due = self._asked[: self._asked.index(gathering) + 1]
        for asked in due:
            asked.send()
        for asked in due:
            asked.receive()
        del self._asked[: len(due)]


class _Gathering:
    """Lengths travel when it is made, the words once somebody waits."""

    def __init__(self, transport: MpiTransport, words: Words) -> None:
        self._transport = transport
        self._words = words
        self._own_size = np.array([words.size], np.int64)
        self._sizes = np.empty(transport.size, np.int64)
        self._gathered = self._sizes[:0]
        self._request = transport.comm.Iallgather(self._own_size, self._sizes)
        self.done = False

    def send(self) -> None:
        """Lengths are here: send the words."""
        self._request.Wait()
        self._gathered = np.empty(int(self._sizes.sum()), np.int64)
        places = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        receive = [self._gathered, self._sizes, places, self._transport.mpi.INT64_T]
        self._request = self._transport.comm.Iallgatherv(self._words, receive)

    def receive(self) -> None:
        """Wait until all words are here."""
        self._request.Wait()
        self.done = True

    def wait(self) -> Words:
        """Words of all ranks, in rank order."""
        self._transport.complete(self)
        return self._gathered
