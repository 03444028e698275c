"""QSGD as ``compression=`` of Horovod's TensorFlow functions, tapes and Keras optimizers."""

from __future__ import annotations

import itertools
from typing import Any, Callable

import tensorflow as tf

try:
    import horovod.tensorflow as hvd
    from horovod.tensorflow.compression import Compressor as HorovodCompressor
except ImportError as _error:
    raise ImportError(
        "hvd_qsgd.tensorflow needs Horovod built for TensorFlow, which cannot be imported here: see README.md"
    ) from _error

from hvd_qsgd import presets, residuals, tensorflow_ops, tensorflow_settings, tensorflow_steps
from hvd_qsgd.compressor import STATE_VERSION, Options, read_state
from hvd_qsgd.config import DEFAULT, DEFAULT_MIN_SIZE, BucketSize, Levels, Quantization
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.methods import Method
from hvd_qsgd.progress import Progress
from hvd_qsgd.schedule import Schedule
from hvd_qsgd.selection import Predicate, make_skip
from hvd_qsgd.stats import Stats
from hvd_qsgd.tensorflow_names import Names, Runs
from hvd_qsgd.tensorflow_residuals import Residuals
from hvd_qsgd.tensorflow_schedule import Scheduled
from hvd_qsgd.tensorflow_steps import StepsOfTensors
from hvd_qsgd.tensorflow_tensors import WIRE_DTYPES, OnItsWay, Tensor, clipped
from hvd_qsgd.transport.horovod import membership

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
        schedule: decides the levels instead, in each step: ``hvd_qsgd.schedule.Budget(bits_per_coordinate=2.5,
            steps=1000)``, ``DQSGD``, ``Piecewise`` or ``Constant``. The same on all ranks. A step is one run of the
            function, or of the body of the loop, that reduces gradients.
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

    Gradients of float32, float16, bfloat16 and float64 (sent as float32) are compressed; others are left to Horovod,
    and so are ``tf.IndexedSlices``. On a GPU packed, ternary, Elias and rans codes are made and added up there; with
    ``variance``, ``dither="subtractive"``, ``error_feedback`` or another codec gradients are copied to the CPU, which
    encodes them.

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
        schedule: Schedule | None = None,
        min_size: int = DEFAULT_MIN_SIZE,
        skip: Predicate | None = None,
        seed: int = 0,
        name: str | None = None,
        process_set: Any = hvd.global_process_set,
        error_feedback: bool = False,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        quantization = Quantization.create(bits, levels, variance, bucket_size, norm, codec, dither, schedule)
        self._options = Options(min_size, seed, name, error_feedback=error_feedback, clip=clip)
        if skip is not None and not callable(skip):
            raise QSGDError(f"skip={skip!r} is not a function: TensorFlow's gradients have no names to match")
        self._skip = make_skip(skip, have_names=False)
        if not isinstance(process_set, hvd.ProcessSet):
            raise QSGDError(f"process_set={process_set!r} is not a horovod ProcessSet")
        self._process_set = process_set
        self._ops = tensorflow_ops.library()  # if it cannot be loaded, say so before other ranks wait for this one
        self._id = next(_ids)
        self._names = Names(name, process_set, self._id)
        self._settings = tensorflow_ops.variable(tensorflow_settings.row(quantization, seed), tf.int64)
        self._steps, self._runs = StepsOfTensors(), Runs()
        self._scheduled = Scheduled(self._id)
        self._scheduled.use(quantization)
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
        """Levels on either side of zero, as of the next gradient, or "sqrt"; None if they differ by tensor."""
        return self._scheduled.levels or self._quantization().levels

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
            gradient = clipped(gradient, self._options.clip)
        number, ticket = self._names.number()
        about = self._names.about(number)
        device = tensorflow_ops.device_beside(gradient) if self._residuals is None else "cpu"
        with tf.device("cpu"):
            step = self._steps.take(about["tensor_name"])
            run = self._runs.current(number)
            settings = self._settings.read_value()
        with tf.device(device):
            shape = tf.shape(gradient, out_type=tf.int64)  # where the gradient is, or that would be copied for it
            frame, link = self._encode(gradient, (settings, step, run), about)
            token = self._ops.qsgd_token(frame, shape, T=self._wire(tensor.dtype), name=self._names.reduced(), **about)
        return token, OnItsWay(
            tensor.shape, tensor.dtype, device, about, frame, link, settings, step, run, shape, ticket
        )

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
        # Where Horovod gathers what lies on a GPU is its own affair: it may have been built without operations for it.
        with tf.device("cpu" if ctx.device == "cpu" else None):
            frames = self._gather(frame, about["operation"])
        with tf.device(ctx.device):
            result = self._ops.qsgd_decode_sum(
                frames, factor, ctx.step, ctx.shape, ctx.link, ctx.run, ctx.settings, **about
            )
        self._steps.end(about["tensor_name"], result)
        result.set_shape(ctx.static_shape)
        return tf.cast(result, ctx.dtype)

    @Method
    def change(self, **changes: Any) -> None:
        """Change any of the arguments from ``bits`` to ``schedule``, between steps; nothing is traced again.

        Ranks may differ in these for a while, but not in a schedule: frames say how they were made.
        """
        self._use(self._quantization().changed(**changes), self._seed())

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
        kept = {"version": STATE_VERSION, "steps": self._steps.state(), "seed": self._seed()}
        state = {**kept, **self._quantization().saved(), **self._scheduled.state()}
        return state if self._residuals is None else {**state, residuals.KEY: self._residuals.state()}

    @Method
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned. All ranks must load the same, but for residuals: each its own.

        A rank that loads another's residuals, or a state without them, begins with zeros.
        """
        saved, steps = read_state(state, "steps")
        checked = tensorflow_steps.read_state(steps)
        owner, arrays = residuals.read_state(state, self._residuals is not None)
        if self._residuals is not None:
            self._residuals.load(owner, arrays)
            if hvd.is_initialized():
                self._residuals.belong_to(membership(hvd, self._process_set)[0])
        self._use(saved.quantization, saved.seed, saved.past)
        self._steps.load(checked)

    def expect(self, gradients: int) -> None:
        """Have a step for so many gradients already: a checkpoint that waits to restore them does so now."""
        for number in range(gradients):
            self._steps.counter(f"#{number}")

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
        self, gradient: Tensor, settings_step_run: tuple[Tensor, ...], about: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        if self._residuals is None:
            return self._ops.qsgd_encode(gradient, *settings_step_run, **about)  # type: ignore[no-any-return]
        residual = self._residuals.of(about["tensor_name"], gradient.shape, about["rank"])
        return self._ops.qsgd_encode_residual(  # type: ignore[no-any-return]
            gradient, *settings_step_run, residual.handle, **about
        )

    def _carry(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """An uncompressed tensor; bfloat16 as float32, since Horovod cannot reduce it."""
        wide = tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor
        return tf.identity(wide, name=self._names.reduced()), tensor.dtype if wide is not tensor else None

    def _gather(self, frame: Tensor, operation: str) -> Tensor:
        """The words of all ranks' frames. The operation's name is the same on all ranks and in every trace."""
        return hvd.allgather(frame, name=operation, ignore_name_scope=True, process_set=self._process_set)

    def _use(self, quantization: Quantization, seed: int, past: Progress | None = None) -> None:
        self._scheduled.use(quantization, past)
        with tf.init_scope():
            self._settings.assign(tensorflow_settings.row(quantization, seed))

    def _quantization(self) -> Quantization:
        if self._scheduled.quantization is not None:
            return self._scheduled.quantization
        with tf.init_scope():
            return tensorflow_settings.read(self._settings.numpy())

    def _seed(self) -> int:
        with tf.init_scope():
            return tensorflow_settings.read_seed(self._settings.numpy())
