"""Quantized allreduce of NumPy arrays over MPI, with no framework: encode, ``Iallgatherv``, decode-and-sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_qsgd.arrays import as_gradient, from_wire, wire_array
from hvd_qsgd.compressor import Compressor, Options, Ranks
from hvd_qsgd.config import DEFAULT, BucketSize, Levels, Quantization
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.steps import Ticket
from hvd_qsgd.transport.mpi import MpiTransport, import_mpi

Array = npt.NDArray[Any]
_keyval: int | None = None  # of the attribute under which a communicator keeps its transport and step


def allreduce(
    array: npt.ArrayLike,
    comm: Any = None,
    op: str = "average",
    *,
    bits: int | None = None,
    levels: Levels = None,
    variance: float | None = None,
    bucket_size: BucketSize = DEFAULT,
    norm: str | None = None,
    codec: str | None = None,
    dither: str = "nonsubtractive",
    seed: int = 0,
) -> Array:
    """The average or sum of every rank's ``array``, quantized; the same bits on all ranks.

    A collective call: every rank of ``comm`` makes it with an array of the same size and dtype, in the same order as
    its other calls on ``comm``. Each call draws fresh random numbers: calls on a communicator are numbered.

    Args:
        array: float32, float16, bfloat16 or float64 (sent as float32), any shape. It is not written.
        comm: an mpi4py intracommunicator; default ``MPI.COMM_WORLD``. Messages travel on a duplicate of it.
        op: ``"average"`` or ``"sum"``.
        bits, levels, variance, bucket_size, norm, codec, dither, seed: as for ``hvd_qsgd.encode``; ranks may differ in
            them. Each call with codec "auto" compares all codecs.

    Returns:
        A new array of the same shape and dtype.

    Raises:
        QSGDError: on every rank that can know it: an argument is wrong, ranks disagree on size, dtype or order, or a
            rank could
            not encode.
    """
    transport, call = _next_call(import_mpi().COMM_WORLD if comm is None else comm)
    try:
        if not isinstance(op, str) or op not in ("average", "sum"):
            raise QSGDError(f"op={op!r} is unknown: use 'average' or 'sum'")
        quantization = Quantization.create(bits, levels, variance, bucket_size, norm, codec, dither)
        core = Compressor(quantization, Options(min_size=0, seed=seed))
        gradient, dtype = as_gradient(array)
    except Exception as error:
        _tell_all(transport, call, error)
        raise
    ticket = _open(core, transport, call, op, gradient.shape, dtype)
    words = core.encode(ticket, gradient.ctypes.data, _allocate_frame)
    gathered = transport.allgather(words, ticket.slot.operation, 0).wait()
    result = wire_array(gradient.size, dtype)
    factor = 1.0 / transport.size if op == "average" else 1.0
    core.decode(ticket, gathered.ctypes.data, gathered.nbytes, factor, result.ctypes.data)
    original = np.asarray(array)
    return from_wire(result, dtype).reshape(original.shape).astype(original.dtype, copy=False)


def _open(core: Compressor, transport: MpiTransport, call: int, op: str, shape: Sequence[int], dtype: str) -> Ticket:
    core.steps.begin(call)
    return core.open(op, shape, dtype, lambda: Ranks(transport.rank, transport.size, "mpi"))


def _tell_all(transport: MpiTransport, call: int, error: Exception) -> None:
    """Take part with an error frame: the other ranks made this call and wait."""
    core = Compressor(Quantization.create(), Options())
    ticket = _open(core, transport, call, "average", (0,), "float32")
    transport.allgather(core.refuse(ticket, error, _allocate_frame), ticket.slot.operation, 0).wait()


def _allocate_frame(size: int) -> tuple[npt.NDArray[np.int64], int]:
    frame = np.empty(size // 8, np.int64)
    return frame, frame.ctypes.data


class _Calls:
    """A communicator's transport, and how many calls were made on it."""

    def __init__(self, comm: Any) -> None:
        self.transport = MpiTransport(comm)
        self.made = 0


def _next_call(comm: Any) -> tuple[MpiTransport, int]:
    global _keyval
    mpi = import_mpi()
    if not isinstance(comm, mpi.Intracomm) or comm == mpi.COMM_NULL:
        raise QSGDError(f"comm={comm!r} is not an intracommunicator of mpi4py")
    if _keyval is None:
        _keyval = mpi.Comm.Create_keyval(delete_fn=lambda comm, keyval, calls: calls.transport.comm.Free())
    calls = comm.Get_attr(_keyval)
    if calls is None:
        calls = _Calls(comm)
        comm.Set_attr(_keyval, calls)
    calls.made += 1
    return calls.transport, (calls.made - 1) % 2**32
