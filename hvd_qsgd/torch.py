"""QSGD as ``compression=`` of Horovod's PyTorch functions and optimizers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

try:
    import horovod.torch as hvd
    from horovod.torch.compression import Compressor as HorovodCompressor
except ImportError as _error:
    raise ImportError(
        "hvd_qsgd.torch needs Horovod built for PyTorch, which cannot be imported here: see README.md"
    ) from _error

from hvd_qsgd import presets, residuals
from hvd_qsgd.compressor import Compressor, Options
from hvd_qsgd.config import DEFAULT, DEFAULT_MIN_SIZE, BucketSize, Levels, Quantization
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.methods import Method
from hvd_qsgd.qsvrg import QSVRG as QSVRG
from hvd_qsgd.residuals import Residuals
from hvd_qsgd.schedule import Schedule
from hvd_qsgd.selection import ParameterNames, Skip, make_skip
from hvd_qsgd.stats import Stats
from hvd_qsgd.torch_cpu import CpuPath
from hvd_qsgd.torch_cuda import CudaPath
from hvd_qsgd.torch_groups import Journey, Station
from hvd_qsgd.torch_tensors import FEEDBACK_WIRE, WIRE_DTYPES, Wire, saved_residual
from hvd_qsgd.torch_transport import Transport

Tensor = torch.Tensor


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
        grouped: set it where gradients on a GPU are reduced in groups (``groups=``, ``num_groups=``,
            ``grouped_allreduce``) of which some go uncompressed: Horovod wants all of a group on one device. The same
            on all ranks.

    Gradients of float32, float16, bfloat16 and float64 (sent as float32) are compressed; others are left to Horovod.
    On a GPU packed, ternary, Elias and rans codes are made and added up there, on the current stream and one beside it;
    with another codec, ``variance``, a schedule that goes by the frames, ``dither="subtractive"``, ``measure_error``,
    ``error_feedback`` or ``clip``, gradients are copied to the CPU and back. With Elias and rans the host waits for the
    GPU.

    Raises:
        QSGDError: an argument is wrong. Later, on every rank that can know it: the reduction is not Average or Sum,
            ranks disagree on a tensor or a step, a frame is damaged, or a rank could not encode. A GPU finds damaged
            frames late: the sum is NaN, and the next step, ``state_dict()`` or ``stats()`` raises.
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
        grouped: bool = False,
    ) -> None:
        if not isinstance(grouped, bool):
            raise QSGDError(f"grouped={grouped!r} is neither True nor False")
        quantization = Quantization.create(bits, levels, variance, bucket_size, norm, codec, dither, schedule)
        self._core = Compressor(quantization, Options(min_size, seed, name, measure_error, error_feedback, clip))
        self._residuals = Residuals(torch.zeros, torch.Tensor.data_ptr) if error_feedback else None
        named_parameters = None if named_parameters is None else list(named_parameters)
        self._names = None if named_parameters is None else ParameterNames(named_parameters)
        self._skip = None if skip is None else make_skip(skip, have_names=self._names is not None)
        self._transport = Transport(transport, process_set)
        on_cpu = CpuPath(self._core, self._transport, self._residuals)
        self._on_gpu = CudaPath(self._core, self._transport, on_cpu)
        self._station = Station(self._core, on_cpu, self._on_gpu, grouped)
        self._others = {
            "named_parameters": named_parameters, "min_size": min_size, "skip": skip, "name": name,
            "process_set": process_set, "transport": transport, "measure_error": measure_error,
            "error_feedback": error_feedback, "clip": clip, "grouped": grouped,
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
    def compress(self, tensor: Tensor) -> Any:
        """Horovod calls this. Returns what it is to reduce instead of ``tensor``, and what ``decompress`` needs."""
        name = self._names.find(tensor) if self._names else None
        wire = self._wire(name, tensor)
        if wire is None:
            return self._carry(tensor)
        ticket = self._core.open(name, tensor.shape, wire.dtype, self._transport.ranks)
        return self._station.wait_here(Journey(ticket, tensor, wire))

    @Method
    def decompress(self, tensor: Tensor, ctx: Any) -> Tensor:
        """Horovod calls this with what it reduced. Returns the reduced gradient."""
        if ctx is None:
            return tensor
        if isinstance(ctx, torch.dtype):
            return tensor.to(ctx)
        journey: Journey = ctx
        factor = self._core.factor(journey.ticket, journey.reduced(tensor))
        journey.departure.accept(in_place=tensor is journey.token)
        result: Tensor = journey.departure.path.finish(journey, factor)
        return result if result.dtype is journey.wire.original else result.to(journey.wire.original)

    @Method
    def change(self, **changes: Any) -> None:
        """Change any of the arguments from ``bits`` to ``schedule``, from the next gradient on.

        Ranks may differ in these for a while, but not in a schedule: frames say how they were made. With gradients on a
        GPU they must go on together from codes that the GPU makes to those that the CPU makes, and back.
        """
        self._core.change(**changes)

    @Method
    def stats(self) -> Stats:
        """A copy of the counts so far (``hvd_qsgd.stats.Stats``).

        Waits for sums on GPUs, and raises if one is wrong.
        """
        self._on_gpu.check()
        return self._core.stats.copy()

    @Method
    def reset_stats(self) -> None:
        """Start counting again."""
        self._core.stats = Stats()

    @Method
    def state_dict(self) -> dict[str, Any]:
        """What continues a run bit for bit, for a checkpoint or ``hvd.broadcast_object``: plain values.

        With error feedback also copies of this rank's residuals: each rank saves its own. Waits for sums on GPUs, and
        raises if one is wrong, so that no checkpoint is made of what came of it.
        """
        self._on_gpu.check()
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
        copies = {name: saved_residual(name, buffer) for name, buffer in buffers.items()}
        self._on_gpu.forget()
        self._core.load(state)
        if self._residuals is not None:
            self._residuals.load(rank, copies)

    def _wire(self, name: str | None, tensor: Tensor) -> Wire | None:
        """What the gradient is encoded as; None: not at all."""
        wire = (WIRE_DTYPES if self._residuals is None else FEEDBACK_WIRE).get(tensor.dtype)
        if wire is None or tensor.layout is not torch.strided or tensor.is_nested:
            return None
        if not self._core.options.wants(tensor.numel(), tensor.dim()):
            return None
        return None if self._skip is not None and self._skip(name, tensor) else wire

    def _carry(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """An uncompressed gradient, as stock Horovod can take it: contiguous, and not bfloat16."""
        self._core.skipped(tensor.numel() * tensor.element_size())
        if tensor.layout is not torch.strided or tensor.is_nested:
            return tensor, None
        if tensor.dtype is torch.bfloat16:
            return tensor.float().contiguous(), torch.bfloat16
        return tensor.contiguous(), None


def _rebuild(kind: type[QSGD], arguments: dict[str, Any], state: dict[str, Any]) -> QSGD:
    copy = kind(**arguments)
    copy.load_state_dict(state)
    return copy
