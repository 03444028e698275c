"""QSGD as ``compression=`` of Horovod's TensorFlow functions, tapes and Keras optimizers."""

from __future__ import annotations

import itertools
import os
import re
import weakref
from typing import Any, Callable, NamedTuple

import numpy as np
import tensorflow as tf

try:
    import horovod.tensorflow as hvd
    from horovod.tensorflow.compression import Compressor as HorovodCompressor
except ImportError as _error:
    raise ImportError(
        "hvd_qsgd.tensorflow needs Horovod built for TensorFlow, which cannot be imported here: see README.md"
    ) from _error

from hvd_qsgd import frames, native, presets, residuals, tensorflow_ops, wire
from hvd_qsgd.checks import whole_number
from hvd_qsgd.compressor import STATE_VERSION, Options, read_state
from hvd_qsgd.config import (
    AUTO,
    DEFAULT,
    DEFAULT_MIN_SIZE,
    SQRT,
    BucketSize,
    Levels,
    Quantization,
    most_levels,
)
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.methods import Method
from hvd_qsgd.selection import Predicate, make_skip
from hvd_qsgd.stats import Stats
from hvd_qsgd.steps import STEPS, Steps, Ticket, operation_prefix, tensor_id
from hvd_qsgd.tensorflow_residuals import Residuals
from hvd_qsgd.transport.horovod import membership

Tensor = Any  # tf.Tensor, to type checkers

# What a gradient is encoded as; float64 travels as float32.
WIRE_DTYPES = {tf.float32: tf.float32, tf.float16: tf.float16, tf.bfloat16: tf.bfloat16, tf.float64: tf.float32}

_ids = itertools.count()


def _plain_python(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps AutoGraph, which Horovod's functions turn on, from rewriting a function."""
    kept: Callable[..., Any] = tf.autograph.experimental.do_not_convert(function)
    return kept


class QSGD(tf.Module, HorovodCompressor):  # type: ignore[misc]
    """Quantized gradients for an unpatched Horovod: pass an instance, or this class, as ``compression=``.

    The same frames, arithmetic and defaults as ``hvd_qsgd.torch.QSGD``. It is a ``tf.Module``:
    ``tf.train.Checkpoint(compression=...)`` saves and restores what continues a run bit for bit.

    Horovod does not say which gradient it compresses: it is the k-th of the outermost ``tf.function`` that is being
    traced, or of the step in eager mode, which must be the same on all ranks. Give each optimizer its own compressor.

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
        min_size: gradients with fewer elements, and one-dimensional ones, are reduced uncompressed; 0 compresses all.
            A gradient whose static shape does not tell is compressed.
        skip: a function (None, gradient) -> bool, called while a function is traced: reduced uncompressed.
        seed: of the random rounding; equal seeds give equal runs.
        name: of this compressor, the same on all ranks. Needed if ranks first use several compressors in different
            order.
        process_set: Horovod's process set; the same one as the optimizer's.
        error_feedback: add what encoding left out of a gradient to its next one (1-bit SGD, Seide et al. 2014): for
            codecs that are biased, such as "onebit". Keeps a float32 variable for each compressed gradient, whose shape
            must be static. The same on all ranks.
        clip: limit a gradient's values to so many of its standard deviations before it is encoded (TernGrad, Wen et al.
            2017, which takes 2.5). That is biased.

    Gradients of float32, float16, bfloat16 and float64 (sent as float32) are compressed, on the CPU; others are left
    to Horovod, and so are ``tf.IndexedSlices``.

    Raises:
        QSGDError: an argument is wrong, or Horovod's elastic mode is on, which is not supported.
        tf.errors.InvalidArgumentError: when the graph runs, on every rank that can know it: the reduction is not
            Average or Sum, ranks disagree on a tensor or a step, a frame is damaged, or a rank could not encode.
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
        min_size: int = DEFAULT_MIN_SIZE,
        skip: Predicate | None = None,
        seed: int = 0,
        name: str | None = None,
        process_set: Any = hvd.global_process_set,
        error_feedback: bool = False,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        quantization = Quantization.create(bits, levels, variance, bucket_size, norm, codec, dither)
        self._options = Options(min_size, seed, name, error_feedback=error_feedback, clip=clip)
        if skip is not None and not callable(skip):
            raise QSGDError(f"skip={skip!r} is not a function: TensorFlow's gradients have no names to match")
        self._skip = make_skip(skip, have_names=False)
        if not isinstance(process_set, hvd.ProcessSet):
            raise QSGDError(f"process_set={process_set!r} is not a horovod ProcessSet")
        self._process_set = process_set
        self._ops = tensorflow_ops.library()  # if it cannot be loaded, say so before other ranks wait for this one
        self._id = next(_ids)
        self._prefix: str | None = None
        self._traced, self._reduced = NumbersOfGraphs(), NumbersOfGraphs()
        self._eager = Steps()
        self._settings = tensorflow_ops.variable(_settings(quantization, seed), tf.int64)
        self._next_steps: dict[str, Any] = {}  # tensor -> the step that it belongs to next
        self._residuals = Residuals() if error_feedback else None

    @classmethod
    def preset(cls, name: str, /, **overrides: Any) -> QSGD:
        """A compressor with the arguments of a variant in the literature (``hvd_qsgd.presets``), and others of yours.

        Raises:
            QSGDError: there is no such preset, or an argument is wrong.
        """
        return cls(**{**presets.arguments(name), **overrides})

    @property
    def levels(self) -> Levels:
        """Levels on either side of zero, as of the next gradient, or "sqrt"; None with ``variance``."""
        return self._quantization().levels

    def __repr__(self) -> str:
        return f"QSGD({self._quantization()})"

    @Method
    @_plain_python
    def compress(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """Horovod calls this. Returns what it is to reduce instead of ``tensor``, and what ``decompress`` needs."""
        tensor = tf.convert_to_tensor(tensor)
        if not tf.executing_eagerly() and hvd.is_initialized() and self._process_set.included() is False:
            return tensor, None  # Horovod's optimizers trace this on other ranks as well, to run it on none of them
        if not self._wants(tensor):
            return self._carry(tensor)
        gradient = tf.cast(tensor, WIRE_DTYPES[tensor.dtype])
        if self._options.clip is not None:
            gradient = _clipped(gradient, self._options.clip)
        number, ticket = self._number()
        about = self._about(number)
        device = "cpu" if self._residuals is not None else tensorflow_ops.device_beside(gradient)
        with tf.device("cpu"):
            shape = tf.shape(gradient, out_type=tf.int64)
            step = self._step(about["tensor_name"])
            settings = self._settings.read_value()
        with tf.device(device):
            frame, link = self._encode(gradient, settings, step, about)
            token = self._ops.qsgd_token(frame, shape, T=self._wire(tensor.dtype), name=self._reduced_name(), **about)
        return token, _OnItsWay(tensor.shape, tensor.dtype, device, about, frame, link, step, shape, ticket)

    @Method
    @_plain_python
    def decompress(self, tensor: Tensor, ctx: Any) -> Tensor:
        """Horovod calls this with what it reduced. Returns the reduced gradient."""
        if ctx is None:
            return tensor
        if isinstance(ctx, tf.DType):
            return tf.cast(tensor, ctx)
        if ctx.ticket is not None:
            ctx.ticket.close()
        about = {"T": self._wire(ctx.dtype), **ctx.about}
        with tf.device(ctx.device):
            # No rank sends its frame before it has the token, which tells whether all of them will.
            frame, factor = self._ops.qsgd_accept(ctx.frame, tensor, ctx.step, ctx.shape, **about)
            frames = self._gather(frame, about["operation"])
            result = self._ops.qsgd_decode_sum(frames, factor, ctx.step, ctx.shape, ctx.link, **about)
        result.set_shape(ctx.static_shape)
        return tf.cast(result, ctx.dtype)

    @Method
    def change(self, **changes: Any) -> None:
        """Change any of the arguments from ``bits`` to ``dither``; nothing is traced again.

        Ranks may differ in these for a while: frames say how they were made.
        """
        self._set(self._quantization().changed(**changes), self._seed())

    @Method
    def stats(self) -> Stats:
        """The counts so far (``hvd_qsgd.stats.Stats``) of what was compressed.

        Skipped tensors, waiting and the quantization error are not counted: those fields stay 0.
        """
        return tensorflow_ops.read_counters(self._id)

    @Method
    def reset_stats(self) -> None:
        """Start counting again."""
        tensorflow_ops.read_counters(self._id, reset=True)

    @Method
    def state_dict(self) -> dict[str, Any]:
        """What continues a run bit for bit, for ``hvd.broadcast_object`` or a checkpoint of your own: plain values.

        With error feedback also copies of this rank's residuals, as arrays: each rank saves its own.
        """
        with tf.init_scope():
            steps = {name: int(step) % STEPS for name, step in self._next_steps.items()}
        state = {"version": STATE_VERSION, "steps": steps, "seed": self._seed(), **self._quantization().saved()}
        return state if self._residuals is None else {**state, residuals.KEY: self._residuals.state()}

    @Method
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned. All ranks must load the same, but for residuals: each its own.

        A rank that loads another's residuals, or a state without them, begins with zeros.
        """
        saved, steps = read_state(state, "steps")
        if not isinstance(steps, dict):
            raise QSGDError(f"steps={steps!r} is not a step for each tensor; pass what state_dict() returned")
        checked = {str(name): whole_number(f"step of {name}", step, 0, STEPS - 1) for name, step in steps.items()}
        owner, arrays = residuals.read_state(state, self._residuals is not None)
        if self._residuals is not None:
            self._residuals.load(owner, arrays)
            if hvd.is_initialized():
                self._residuals.belong_to(membership(hvd, self._process_set)[0])
        self._set(saved.quantization, saved.seed)
        with tf.init_scope():
            for name in {*self._next_steps, *checked}:
                self._counter(name).assign(checked.get(name, 0))

    def expect(self, gradients: int) -> None:
        """Have a step for so many gradients already: a checkpoint that waits to restore them does so now."""
        for number in range(gradients):
            self._counter(f"#{number}")

    def _wants(self, tensor: Tensor) -> bool:
        """Whether to compress; what the static shape does not tell is taken to be large."""
        shape = tensor.shape
        if tensor.dtype not in WIRE_DTYPES or self._skip(None, tensor):
            return False
        dimensions = 2 if shape.rank is None else shape.rank
        count = shape.num_elements()
        return self._options.wants(self._options.min_size if count is None else count, dimensions)

    def _wire(self, dtype: tf.DType) -> tf.DType:
        """What travels; with error feedback float32, whatever comes."""
        return WIRE_DTYPES[dtype] if self._residuals is None else tf.float32

    def _encode(
        self, gradient: Tensor, settings: Tensor, step: Tensor, about: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        if self._residuals is None:
            return self._ops.qsgd_encode(gradient, settings, step, **about)  # type: ignore[no-any-return]
        residual = self._residuals.of(about["tensor_name"], gradient.shape, about["rank"])
        return self._ops.qsgd_encode_residual(  # type: ignore[no-any-return]
            gradient, settings, step, residual.handle, **about
        )

    def _number(self) -> tuple[int, Ticket | None]:
        """Which gradient this is: of the outermost function that is being traced, or of the step in eager mode."""
        return self._eager.take() if tf.executing_eagerly() else (self._traced.take(_outermost_function()), None)

    def _reduced_name(self) -> str | None:
        """Of the tensor that Horovod reduces, after which it names the operation in a graph.

        The same on all ranks whether they compress the tensor or not, so that Horovod tells those that disagree.
        """
        if tf.executing_eagerly():
            return None
        return f"{self._operation(self._reduced.take(_outermost_function()))}.reduced"

    def _carry(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """An uncompressed tensor; bfloat16 as float32, since Horovod cannot reduce it."""
        wide = tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor
        return tf.identity(wide, name=self._reduced_name()), tensor.dtype if wide is not tensor else None

    def _about(self, number: int) -> dict[str, Any]:
        """The attributes that the ops have in common."""
        if int(os.environ.get("HOROVOD_ELASTIC") or 0):
            raise QSGDError("QSGD does not support Horovod's elastic mode in TensorFlow: the number of ranks is fixed")
        rank, size, _ = membership(hvd, self._process_set)
        return {
            "tensor": tensor_id(self._options.name or "", f"#{number}"),
            "operation": self._operation(number),
            "tensor_name": f"#{number}",
            "rank": rank,
            "size": size,
            "threads": native.default_threads(),
            "counters": self._id,
        }

    def _operation(self, number: int) -> str:
        if self._prefix is None:
            *_, group = membership(hvd, self._process_set)
            self._prefix = operation_prefix(self, self._options.name, group)
        return re.sub(r"[^A-Za-z0-9_.]", "_", f"{self._prefix}.{number}")  # as TensorFlow takes it

    def _gather(self, frame: Tensor, operation: str) -> Tensor:
        """The words of all ranks' frames. The operation's name is the same on all ranks and in every trace."""
        return hvd.allgather(frame, name=operation, ignore_name_scope=True, process_set=self._process_set)

    def _step(self, name: str) -> Tensor:
        """The step that the tensor belongs to, advanced by each run of the graph."""
        with tf.init_scope():  # a second trace must not make variables
            counter = self._counter(name)
        return tf.bitwise.bitwise_and(counter.assign_add(1) - 1, STEPS - 1)

    def _counter(self, name: str) -> Any:
        if name not in self._next_steps:
            self._next_steps[name] = tensorflow_ops.variable(
                0, tf.int64
            )  # which a checkpoint may have waited to restore
        return self._next_steps[name]

    def _set(self, quantization: Quantization, seed: int) -> None:
        if quantization.schedule is not None:
            raise QSGDError(
                "a schedule decides between the steps of Python, and a TensorFlow graph has none: schedules are for "
                "PyTorch; call change(levels=...) between the calls of a tf.function instead"
            )
        with tf.init_scope():
            self._settings.assign(_settings(quantization, seed))

    def _quantization(self) -> Quantization:
        with tf.init_scope():
            levels, bucket_size, norm, codec, variance, flags, _ = self._settings.numpy()
        wanted = float(variance.view(np.float64)) or None
        name = AUTO if codec == native.CODEC_AUTO else wire.CODEC_NAMES[int(codec)]
        levels = None if wanted else SQRT if levels < 0 else int(levels)
        dither = wire.DITHER_NAMES[int(flags)]
        return Quantization(levels, int(bucket_size) or None, wire.NORM_NAMES[int(norm)], name, wanted, dither)

    def _seed(self) -> int:
        with tf.init_scope():
            return int(self._settings.numpy()[-1]) % 2**64


class NumbersOfGraphs:
    """Counts what is traced into each graph."""

    def __init__(self) -> None:
        self._next: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def take(self, graph: Any) -> int:
        """The graph's next number."""
        number = self._next.get(graph, 0)
        self._next[graph] = number + 1
        return number


def _clipped(gradient: Tensor, deviations: float) -> Tensor:
    """Values limited to so many standard deviations; equal ones, which deviate by nothing, stay."""
    limit = deviations * tf.math.reduce_std(tf.cast(gradient, tf.float64))
    limit = tf.cast(tf.where(limit > 0, limit, gradient.dtype.max), gradient.dtype)
    return tf.clip_by_value(gradient, -limit, limit)


def _outermost_function() -> Any:
    """The graph of the outermost function that is being traced."""
    graph = tf.compat.v1.get_default_graph()
    while hasattr(getattr(graph, "outer_graph", None), "outer_graph"):  # branches and functions within a function
        graph = graph.outer_graph
    if not hasattr(graph, "outer_graph"):
        raise QSGDError("QSGD works in eager mode and in tf.function, not in TensorFlow 1's graphs and sessions")
    return graph


class _OnItsWay(NamedTuple):
    """A gradient between ``compress`` and ``decompress``."""

    static_shape: tf.TensorShape
    dtype: tf.DType
    device: str | None  # of the ops; None: TensorFlow chooses
    about: dict[str, Any]
    frame: Tensor
    link: Tensor
    step: Tensor
    shape: Tensor
    ticket: Ticket | None


def _settings(quantization: Quantization, seed: int) -> list[int]:
    """As QsgdEncode takes them (``kernels/tensorflow/tensor.h``); bits of what is no signed number."""
    q = quantization
    variance, bits_of_seed = np.float64(q.variance or 0).view(np.int64), np.uint64(seed).view(np.int64)
    flags = wire.DITHERS[q.dither]
    kinds = [wire.NORM_IDS[q.norm], frames.codec_id(q.codec), int(variance), flags]
    levels = q.levels if isinstance(q.levels, int) else most_levels(q.codec) * (-1 if q.levels == SQRT else 1)
    return [levels, q.bucket_size or 0, *kinds, int(bits_of_seed)]
