"""How tensors travel: by Horovod's allgather, on the CPU or on the gradient's GPU, or by MPI's."""

from __future__ import annotations

from typing import Any

import horovod.torch as hvd
import torch

from hvd_qsgd import torch_streams
from hvd_qsgd.compressor import Ranks
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.transport.horovod import HorovodTransport
from hvd_qsgd.transport.mpi import MpiTransport, import_mpi

Tensor = torch.Tensor


class Transport:
    """The chosen transport, made at first use: after hvd.init()."""

    def __init__(self, kind: str, process_set: Any) -> None:
        if not isinstance(kind, str) or kind not in ("horovod", "mpi"):
            raise QSGDError(f"transport={kind!r} is unknown: use 'horovod' or 'mpi'")
        if not isinstance(process_set, hvd.ProcessSet):
            raise QSGDError(f"process_set={process_set!r} is not a horovod ProcessSet")
        self._kind = kind
        self._process_set = process_set
        self._horovod = HorovodTransport(torch, hvd, process_set)
        self._mpi: _TensorsOverMpi | None = None

    def ranks(self) -> Ranks:
        """Who takes part now; raises if this rank cannot."""
        self._horovod.prepare()
        if self._kind == "mpi" and self._mpi is None:
            self._mpi = _TensorsOverMpi(MpiTransport(_communicator(self._process_set)))
        return Ranks(self._horovod.rank, self._horovod.size, self._horovod.group)

    def allgather(self, frames: list[Tensor], names: list[str], bounds: list[int], gpu: torch.device | None) -> Any:
        """Start gathering all ranks' frames of gradients that belong together: to ``wait()``, or ``wait_for``, for.

        Horovod moves them on that GPU, whatever this rank made them on: either all ranks have one or none. Built
        without GPU operations it copies them to pinned memory of the CPU and back, by itself.
        """
        if self._mpi is not None:
            return self._mpi.allgather([frame.cpu() for frame in frames], names, bounds)
        if gpu is not None:  # even where nothing is to be done, to() costs
            frames = [frame if frame.device == gpu else frame.to(gpu) for frame in frames]
        return self._horovod.allgather_together(frames, names, bounds)

    def wait_for(self, gatherings: list[Any], gpu: torch.device) -> list[list[Tensor]]:
        """What each of the gatherings' ``wait()`` returns, with one change of streams for all."""
        if self._mpi is not None:  # on the CPU
            return [gathering.wait() for gathering in gatherings]
        with torch_streams.GPU.arriving(gpu):
            arrived: list[list[Tensor]] = [gathering.wait() for gathering in gatherings]
        torch_streams.GPU.arrived([words for each in arrived for words in each])
        return arrived


class _TensorsOverMpi:
    """The MPI transport for tensors, which share their memory with NumPy arrays."""

    def __init__(self, transport: MpiTransport) -> None:
        self._transport = transport

    def allgather(self, frames: list[Tensor], names: list[str], bounds: list[int]) -> _TensorsOverMpi._Gathering:
        each = zip(frames, names, bounds)
        return self._Gathering([self._transport.allgather(frame.numpy(), name, bound) for frame, name, bound in each])

    class _Gathering:
        def __init__(self, gatherings: list[Any]) -> None:
            self._gatherings = gatherings

        def wait(self) -> list[Tensor]:
            return [torch.from_numpy(gathering.wait()) for gathering in self._gatherings]


def _communicator(process_set: Any) -> Any:
    """The process set's ranks as an MPI communicator, which must be numbered as Horovod's ranks are."""
    mpi = import_mpi()
    if hvd.mpi_enabled() and mpi.Query_thread() < mpi.THREAD_MULTIPLE:
        raise QSGDError(
            "transport='mpi' beside a Horovod that runs on MPI needs MPI_THREAD_MULTIPLE, because Horovod calls MPI "
            "from a thread of its own; this MPI provides less: use transport='horovod'"
        )
    world = mpi.COMM_WORLD
    if (world.Get_rank(), world.Get_size()) != (hvd.rank(), hvd.size()):
        raise QSGDError(
            f"transport='mpi' needs MPI's ranks to be Horovod's: this is rank {world.Get_rank()} of {world.Get_size()} "
            f"to MPI and {hvd.rank()} of {hvd.size()} to Horovod; start the job with mpirun"
        )
    if process_set.process_set_id == 0:
        return world
    return world.Create_group(world.Get_group().Incl(process_set.ranks))
