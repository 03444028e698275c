"""Horovod's own allgather. Operations are matched by name, so that ranks may start them in any order."""

from __future__ import annotations

import contextlib
from typing import Any

from hvd_qsgd.errors import QSGDError

# Horovod counts the elements of a gathered tensor in a C int.
MAX_WORDS = 2**31 - 1
# (process set, operation) -> Horovod's handle: Horovod knows operations by their names, whoever started them.
_in_flight: dict[tuple[int, str], int] = {}
_handles: Any = None  # Horovod's table of handles that those are of


def membership(hvd: Any, process_set: Any) -> tuple[int, int, int]:
    """This process's rank in the process set, its size and its id, as Horovod's module ``hvd`` has them now.

    Raises:
        QSGDError: this process cannot communicate in it.
    """
    if not hvd.is_initialized():
        raise QSGDError("Horovod is not running: call hvd.init() before the first gradient is compressed")
    if process_set.process_set_id is None:
        raise QSGDError(f"{process_set} is not registered: pass it to hvd.init() or hvd.add_process_set() first")
    if not process_set.included():
        raise QSGDError(f"this rank is not in {process_set}: only its ranks may use a compressor made for it")
    return int(process_set.rank()), int(process_set.size()), int(process_set.process_set_id)


class HorovodTransport:
    """Moves torch tensors by ``horovod.torch``; both are passed in, so that this module imports no framework."""

    def __init__(self, torch: Any, hvd: Any, process_set: Any, max_words: int = MAX_WORDS) -> None:
        self._torch = torch
        self._hvd = hvd
        self._process_set = process_set
        self._max_words = max_words
        self.rank, self.size, self.group = 0, 1, 0

    def prepare(self) -> None:
        """Look up who takes part, which Horovod may change between steps; raise unless this rank can communicate."""
        global _handles
        self.rank, self.size, self.group = membership(self._hvd, self._process_set)
        handles = getattr(self._hvd.mpi_ops, "_handle_map", None)
        if handles is not _handles:
            # Horovod was started again: it numbers its handles anew, and what was on its way is lost.
            _handles = handles
            _in_flight.clear()

    def allgather(self, words: Any, name: str, bound: int) -> _Gathering:
        """Start gathering ``words`` (one-dimensional, int64) of all ranks."""
        if bound * self.size <= self._max_words:
            self._start(self._hvd.allgather_async, words, name)
            return _Gathering(self, name, 1)
        parts = -(-bound * self.size // self._max_words)
        self._start(self._hvd.allgather_async, self._torch.tensor([len(words)]), f"{name}/sizes")
        for k, part in enumerate(words.tensor_split(parts)):
            self._start(self._hvd.allgather_async, part, f"{name}/{k}")
        return _Gathering(self, name, parts)

    def allgather_together(self, everything: list[Any], names: list[str], bounds: list[int]) -> Any:
        """Start gathering all of these, on all ranks the same: to ``wait()`` for a list of what ``allgather`` gives.

        Horovod has one operation for that, which it negotiates as a whole and sends as one message, but for tensors
        that must be split.
        """
        if len(everything) == 1 or max(bounds) * self.size > self._max_words:
            return _Several(list(map(self.allgather, everything, names, bounds)))
        name = f"{len(names)} of {names[0]}"  # which no tensor's name begins like
        self._start(self._hvd.grouped_allgather_async, everything, name)
        return _Gathering(self, name, 1)

    def _start(self, operation: Any, words: Any, name: str) -> None:
        key = self.group, name
        if key in _in_flight:
            # Nobody waited for it, because of an exception; its name is free only after it has ended.
            with contextlib.suppress(self._hvd.mpi_ops.HorovodInternalError):
                self.finish(name)
        _in_flight[key] = operation(words, name=name, process_set=self._process_set)

    def finish(self, name: str) -> Any:
        """The gathered words of operation ``name``."""
        return self._hvd.synchronize(_in_flight.pop((self.group, name)))

    def join(self, sizes: list[int], parts: list[Any]) -> Any:
        """Whole buffers, rank after rank, of gathered parts."""
        shares = [[-(-(size - k) // len(parts)) for size in sizes] for k in range(len(parts))]  # as tensor_split cuts
        pieces = [part.split(share) for part, share in zip(parts, shares)]
        return self._torch.cat([piece[rank] for rank in range(len(sizes)) for piece in pieces])


class _Gathering:
    __slots__ = ("_name", "_parts", "_transport")

    def __init__(self, transport: HorovodTransport, name: str, parts: int) -> None:
        self._transport = transport
        self._name = name
        self._parts = parts

    def wait(self) -> Any:
        """Words of all ranks, in rank order."""
        if self._parts == 1:
            return self._transport.finish(self._name)
        sizes = self._transport.finish(f"{self._name}/sizes").tolist()
        return self._transport.join(sizes, [self._transport.finish(f"{self._name}/{k}") for k in range(self._parts)])


class _Several:
    """Gatherings that were started one by one."""

    __slots__ = ("_each",)

    def __init__(self, each: list[_Gathering]) -> None:
        self._each = each

    def wait(self) -> list[Any]:
        """For each, words of all ranks, in rank order."""
        return list(map(_Gathering.wait, self._each))
