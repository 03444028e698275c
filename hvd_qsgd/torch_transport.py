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

    def allgather(self, words: Tensor, name: str, bound: int, gpu: torch.device | None) -> Any:
        """Start gathering all ranks' words for a gradient, on a GPU or not; to ``wait()`` for, wherever they arrive.

        Horovod moves them on that GPU, whatever this rank made them on: either all ranks have one or none. Built
        without GPU operations it copies them to pinned memory of the CPU and back, by itself.
        """
        if self._mpi is not None:
            return self._mpi.allgather(words.cpu(), name, bound)
        if gpu is None:
            return self._horovod.allgather(words, name, bound)
        words = words if words.device == gpu else words.to(gpu)  # which costs even where nothing is to be done
        return _GatheringOnGpu(self._horovod.allgather(words, name, bound), gpu)

    def wait_for(self, gatherings: list[Any]) -> list[Tensor]:
        """The words of gradients of one device, with one change of streams for all."""
        return _wait_for(gatherings)


class _GatheringOnGpu:
    """Words that Horovod gathers on a GPU."""

    def __init__(self, gathering: Any, device: torch.device) -> None:
        self.gathering = gathering
        self.device = device

    def wait(self) -> Tensor:
        return _wait_for([self])[0]


def _wait_for(gatherings: list[Any]) -> list[Tensor]:
    first = gatherings[0]
    if not isinstance(first, _GatheringOnGpu):
        return [gathering.wait() for gathering in gatherings]
    gpu = torch_streams.GPU
    with gpu.arriving(first.device):
        everything: list[Tensor] = [on_gpu.gathering.wait() for on_gpu in gatherings]
    gpu.arrived(everything)
    return everything


class _TensorsOverMpi:
    """The MPI transport for tensors, which share their memory with NumPy arrays."""

    def __init__(self, transport: MpiTransport) -> None:
        self._transport = transport

    def allgather(self, words: Tensor, name: str, bound: int) -> _TensorsOverMpi._Gathering:
        return self._Gathering(self._transport.allgather(words.numpy(), name, bound))

    class _Gathering:
        def __init__(self, gathering: Any) -> None:
            self._gathering = gathering

        def wait(self) -> Tensor:
            return torch.from_numpy(self._gathering.wait())


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
