"""QSGD as ``compression=`` of Horovod's PyTorch functions and optimizers."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterable
from typing import Any, Callable, NamedTuple

import torch

try:
    import horovod.torch as hvd
    from horovod.torch.compression import Compressor as HorovodCompressor
except ImportError as _error:
    raise ImportError(
        "hvd_qsgd.torch needs Horovod built for PyTorch, which cannot be imported here: see README.md"
    ) from _error

from hvd_qsgd import native, presets, residuals
from hvd_qsgd.compressor import Compressor, Options, Ranks
from hvd_qsgd.config import DEFAULT, DEFAULT_MIN_SIZE, BucketSize, Levels, Quantization
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.methods import Method
from hvd_qsgd.residuals import Residuals
from hvd_qsgd.schedule import Schedule
from hvd_qsgd.selection import ParameterNames, Skip, make_skip
from hvd_qsgd.stats import Stats
from hvd_qsgd.steps import Ticket
from hvd_qsgd.transport.horovod import HorovodTransport
from hvd_qsgd.transport.mpi import MpiTransport, import_mpi

Tensor = torch.Tensor


class _Wire(NamedTuple):
    """What a gradient is encoded as."""

    original: torch.dtype
    carrier: torch.dtype
    dtype: str


# float64 travels as float32.
WIRE_DTYPES = {
    wire.original: wire
    for wire in (
        _Wire(torch.float32, torch.float32, "float32"),
        _Wire(torch.float16, torch.float16, "float16"),
        _Wire(torch.bfloat16, torch.bfloat16, "bfloat16"),
        _Wire(torch.float64, torch.float32, "float32"),
    )
}
# With error feedback float32 travels, whatever comes.
FEEDBACK_WIRE = {dtype: _Wire(dtype, torch.float32, "float32") for dtype in WIRE_DTYPES}
# A shape that no gradient has, so that ranks of which only one compresses are told by Horovod.
TOKEN_SHAPE = (native.TOKEN_LENGTH, 1, 1, 1, 1, 1, 1)
# No frame of n elements is longer than this many bytes: a scale and a code for each element.
BYTES_PER_ELEMENT, BYTES_PER_FRAME = 9, 4096


class QSGD(HorovodCompressor):  # type: ignore[misc]
    """Quantized gradients for an unpatched Horovod: pass an instance, or this class, as ``compression=``.

    QSGD (Alistarh et al., NIPS 2017): every value is rounded at random to one of ``levels`` steps of its bucket's
    scale, so that the expectation is the value itself (lemma 3.1), and coded in ``bits`` bits. All ranks decode the
    same frames in the same order, so their results are equal bit for bit.

    Args:
        bits: b = 2..8 bits a value: 2^(b-1) - 1 levels on either side of zero. Default 4.
        levels: the levels instead: 1..127, or 1..32767 with codecs of variable length; or "sqrt": √n of a bucket of n.
        variance: w > 0: as many levels instead, for each tensor in each step, as bring the relative variance
            E||Q(v) - v||^2 / ||v||^2 = w, or the next lower one that whole numbers of levels allow; if the codec has
            fewer levels, all it has.
        bucket_size: elements that share a scale (float32), or None: one a tensor. Default 512; with variance None.
        norm: what the scale is: "max" (largest magnitude) or "l2" (Euclidean norm). Default "max"; with variance "l2".
        codec: "packed" (fixed width), "ternary" (levels=1 in 1.6 bits), "elias-dense" or "elias-sparse" (QSGD's own
            codes, of variable length), "rans" (near the codes' entropy) or "auto": for each tensor the one whose frames
            are shortest. Default "packed"; with variance "auto". Or "onebit" (1-bit SGD, Seide et al. 2014): the sign
            of each value, and the means of either sign in a bucket, to which no other argument but bucket_size applies.
        dither: "nonsubtractive"; or "subtractive", with codec "packed" or "ternary": receivers subtract the random
            numbers that were added before rounding. About half of the variance for the same bits, for zeros as well.
        schedule: decides the levels instead, in each step: ``hvd_qsgd.schedule.Budget(bits_per_coordinate=2.5,
            steps=1000)``, ``DQSGD``, ``Piecewise`` or ``Constant``. The same on all ranks.
        named_parameters: ``model.named_parameters()``. Needed only if ranks leave different parameters unused in a
            step, for ``skip`` by name, and for messages with names.
        min_size: gradients with fewer elements, and one-dimensional ones, are reduced uncompressed; 0 compresses all.
        skip: a name pattern ("*.norm.*"), a list of them, or a function (name or None, gradient) -> bool: reduced
            uncompressed.
        seed: of the random rounding; equal seeds give equal runs.
        name: of this compressor, the same on all ranks. Needed if ranks first use several compressors in different
            order.
        process_set: Horovod's process set; the same one as the optimizer's.
        transport: "horovod", or "mpi": frames travel by mpi4py on a communicator of their own. The same on all ranks.
            Over MPI tensors are matched by their order, so that all ranks must use the same parameters in every step.
        measure_error: add up the quantization error for ``stats()``; decodes every own frame once more.
        error_feedback: add what encoding left out of a tensor to its next gradient (1-bit SGD, Seide et al. 2014): for
            codecs that are biased, such as "onebit". Keeps a float32 residual for each compressed tensor, which is told
            by its name or, without ``named_parameters``, by its place in the step. The same on all ranks.
        clip: limit a gradient's values to so many of its standard deviations before it is encoded (TernGrad, Wen et al.
            2017, which takes 2.5). That is biased.

    Gradients of float32, float16, bfloat16 and float64 (sent as float32) are compressed; others are left to Horovod.

    Raises:
        QSGDError: an argument is wrong. Later, on every rank that can know it: the reduction is not Average or Sum,
            ranks disagree on a tensor or a step, a frame is damaged, or a rank could not encode.
    """

    def __init__(
        self,
        bits: int | None = None,
        *,
        levels: Levels = None,
        variance: float | None = None,
        bucket_size: BucketSize = DEFAULT,
        norm: str | None = None,
        codec: str | None = None,
        dither: str = "nonsubtractive",
        schedule: Schedule | None = None,
        named_parameters: Iterable[tuple[str, Tensor]] | None = None,
        min_size: int = DEFAULT_MIN_SIZE,
        skip: Skip = None,
        seed: int = 0,
        name: str | None = None,
        process_set: Any = hvd.global_process_set,
        transport: str = "horovod",
        measure_error: bool = False,
        error_feedback: bool = False,
        clip: float | None = None,
    ) -> None:
        quantization = Quantization.create(bits, levels, variance, bucket_size, norm, codec, dither, schedule)
        self._core = Compressor(quantization, Options(min_size, seed, name, measure_error, error_feedback, clip))
        self._residuals = Residuals(torch.zeros, torch.Tensor.data_ptr) if error_feedback else None
        named_parameters = None if named_parameters is None else list(named_parameters)
        self._names = None if named_parameters is None else ParameterNames(named_parameters)
        self._skip = make_skip(skip, have_names=self._names is not None)
        self._transport = _Transport(transport, process_set)
        self._others = {
            "named_parameters": named_parameters, "min_size": min_size, "skip": skip, "name": name,
            "process_set": process_set, "transport": transport, "measure_error": measure_error,
            "error_feedback": error_feedback, "clip": clip,
        }  # fmt: skip

    @classmethod
    def preset(cls, name: str, /, **overrides: Any) -> QSGD:
        """A compressor with the arguments of a variant in the literature (``hvd_qsgd.presets``), and others of yours.

        Raises:
            QSGDError: there is no such preset, or an argument is wrong.
        """
        return cls(**{**presets.arguments(name), **overrides})

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or what comes out of a pickle, goes on from the same state; what is on its way stays here."""
        return _rebuild, (type(self), self._others, self.state_dict())

    @property
    def levels(self) -> Levels:
        """Levels on either side of zero, as of the next gradient, or "sqrt"; None if they differ by tensor."""
        return self._core.levels

    def __repr__(self) -> str:
        return f"QSGD({self._core.quantization})"

    @Method
    def compress(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """Horovod calls this. Returns what it is to reduce instead of ``tensor``, and what ``decompress`` needs."""
        name = self._names.find(tensor) if self._names else None
        wire = self._wire(name, tensor)
        if wire is None:
            return self._carry(tensor)
        core = self._core
        ticket = core.open(name, tensor.shape, wire.dtype, self._ranks)
        slot = ticket.slot
        try:
            own = WIRE_DTYPES[tensor.dtype]
            gradient = _readable(tensor, own.carrier)
            if core.options.clip is not None:
                gradient = _clipped(gradient, core.options.clip)
            if self._residuals is not None:
                gradient = self._residuals.add(slot, tensor.shape, gradient.data_ptr(), own.dtype)
        except Exception as error:  # told to all ranks, which would wait for this one's frame for ever
            frame = core.refuse(ticket, error, _allocate_frame)
        else:
            frame = core.encode(ticket, gradient.data_ptr(), _allocate_frame)
        if slot.tokens is None:
            slot.tokens = _Tokens(core.token(ticket))
        bound = (BYTES_PER_ELEMENT * slot.spec.count + BYTES_PER_FRAME) // 8
        gathering = self._transport.allgather(frame, slot.operation, bound)
        if core.options.measure_error and ticket.encoded:
            self._measure(ticket, frame, gradient)
        if self._residuals is not None and ticket.encoded:
            self._residuals.subtract(slot, frame.data_ptr())
        token = slot.tokens.take()
        return token, (ticket, token, gathering, tensor, tensor.shape, wire)

    @Method
    def decompress(self, tensor: Tensor, ctx: Any) -> Tensor:
        """Horovod calls this with what it reduced. Returns the reduced gradient."""
        if ctx is None:
            return tensor
        if isinstance(ctx, torch.dtype):
            return tensor.to(ctx)
        ticket, token, gathering, gradient, shape, wire = ctx
        core = self._core
        factor = core.factor(ticket, _bytes_of(tensor))
        ticket.slot.tokens.give_back(token)
        start = time.perf_counter()
        words = gathering.wait()
        core.stats.seconds_wait += time.perf_counter() - start
        if gradient.shape == shape and gradient.is_cpu:  # what it still is, unless somebody changed it meanwhile
            result = torch.empty_like(gradient, dtype=wire.carrier, memory_format=torch.contiguous_format)
        else:
            result = torch.empty(shape, dtype=wire.carrier, device="cpu")
        core.decode(ticket, words.data_ptr(), 8 * words.numel(), factor, result.data_ptr())
        return result if wire.original is wire.carrier else result.to(wire.original)

    @Method
    def change(self, **changes: Any) -> None:
        """Change any of the arguments from ``bits`` to ``schedule``, from the next gradient on.

        Ranks may differ in these for a while, but not in a schedule: frames say how they were made.
        """
        self._core.change(**changes)

    @Method
    def stats(self) -> Stats:
        """A copy of the counts so far (``hvd_qsgd.stats.Stats``)."""
        return self._core.stats.copy()

    @Method
    def reset_stats(self) -> None:
        """Start counting again."""
        self._core.stats = Stats()

    @Method
    def state_dict(self) -> dict[str, Any]:
        """What continues a run bit for bit, for a checkpoint or ``hvd.broadcast_object``: plain values.

        With error feedback also copies of this rank's residuals: each rank saves its own.
        """
        state = self._core.state()
        if self._residuals is not None:
            state[residuals.KEY] = self._residuals.state(torch.clone)
        return state

    @Method
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned. All ranks must load the same, but for residuals: each its own.

        A rank that loads another's residuals, or a state without them, begins with zeros.
        """
        rank, buffers = residuals.read_state(state, self._residuals is not None)
        copies = {name: _residual(name, buffer) for name, buffer in buffers.items()}
        self._core.load(state)
        if self._residuals is not None:
            self._residuals.load(rank, copies)

    def _wire(self, name: str | None, tensor: Tensor) -> _Wire | None:
        """What the gradient is encoded as; None: not at all."""
        wire = (WIRE_DTYPES if self._residuals is None else FEEDBACK_WIRE).get(tensor.dtype)
        if wire is None or tensor.layout is not torch.strided or tensor.is_nested:
            return None
        if not self._core.options.wants(tensor.numel(), tensor.dim()) or self._skip(name, tensor):
            return None
        return wire

    def _ranks(self) -> Ranks:
        return self._transport.ranks()

    def _carry(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """An uncompressed gradient, as stock Horovod can take it: contiguous, and not bfloat16."""
        self._core.skipped(tensor.numel() * tensor.element_size())
        if tensor.layout is not torch.strided or tensor.is_nested:
            return tensor, None
        if tensor.dtype is torch.bfloat16:
            return tensor.float().contiguous(), torch.bfloat16
        return tensor.contiguous(), None

    def _measure(self, ticket: Ticket, frame: Tensor, gradient: Tensor) -> None:
        decoded = torch.empty_like(gradient)
        self._core.decode_own(ticket, frame.data_ptr(), decoded.data_ptr())
        exact = gradient.double()
        self._core.stats.squared_error += float((decoded.double() - exact).square().sum())
        self._core.stats.squared_norm += float(exact.square().sum())


def _residual(name: str, saved: Any) -> Tensor:
    """A copy of a saved residual."""
    if not isinstance(saved, Tensor) or saved.dtype is not torch.float32:
        raise QSGDError(f"the residual of tensor {name!r} is no float32 tensor: pass what state_dict() returned")
    return saved.detach().to("cpu", copy=True).contiguous()


def _rebuild(kind: type[QSGD], arguments: dict[str, Any], state: dict[str, Any]) -> QSGD:
    copy = kind(**arguments)
    copy.load_state_dict(state)
    return copy


class _Tokens:
    """A slot's tensors for tokens. Horovod reduces in place: each is used again only once its reduction has ended."""

    def __init__(self, entries: list[float]) -> None:
        self._original = torch.tensor(entries, dtype=torch.float32, device="cpu").view(TOKEN_SHAPE)
        self._entries = _bytes_of(self._original)
        self._free: list[Tensor] = []

    def take(self) -> Tensor:
        if not self._free:
            return self._original.clone()
        token = self._free.pop()
        ctypes.memmove(token.data_ptr(), self._entries, len(self._entries))
        return token

    def give_back(self, token: Tensor) -> None:
        self._free.append(token)


def _bytes_of(token: Tensor) -> bytes:
    return ctypes.string_at(token.contiguous().data_ptr(), 4 * token.numel())


def _readable(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` where the kernels can read it."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise QSGDError("QSGD cannot be differentiated: reduce tensor.detach(), or call it under torch.no_grad()")
    if not tensor.is_cpu:
        raise QSGDError(
            f"this hvd_qsgd compresses CPU gradients only, not those on {tensor.device}: move the model to the CPU"
        )
    if tensor.dtype is dtype and tensor.is_contiguous():
        return tensor
    return tensor.detach().to(dtype).contiguous()


def _clipped(gradient: Tensor, deviations: float) -> Tensor:
    """A copy with values limited to so many standard deviations; equal ones, which deviate by nothing, stay."""
    mean = gradient.sum(dtype=torch.float64) / gradient.numel()
    square = torch.linalg.vector_norm(gradient, dtype=torch.float64).square() / gradient.numel()
    limit = deviations * float((square - mean.square()).clamp(min=0).sqrt())
    return gradient if limit == 0 else gradient.clamp(-limit, limit)


def _allocate_frame(size: int) -> tuple[Tensor, int]:
    frame = torch.empty(size // 8, dtype=torch.int64, device="cpu")
    return frame, frame.data_ptr()


class _Transport:
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
        self.allgather: Callable[[Tensor, str, int], Any] = self._horovod.allgather

    def ranks(self) -> Ranks:
        """Who takes part now; raises if this rank cannot."""
        self._horovod.prepare()
        if self._kind == "mpi" and self._mpi is None:
            self._mpi = _TensorsOverMpi(MpiTransport(_communicator(self._process_set)))
            self.allgather = self._mpi.allgather
        return Ranks(self._horovod.rank, self._horovod.size, self._horovod.group)


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
