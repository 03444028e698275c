"""Encoding and decoding by address: the one place where Python meets the kernels, for every frontend."""

from __future__ import annotations

from hvd_qsgd import native, wire
from hvd_qsgd.config import AUTO, Quantization
from hvd_qsgd.errors import QSGDError


def make_spec(
    quantization: Quantization,
    *,
    count: int,
    dtype: str,
    seed: int,
    rank: int,
    tensor: int,
    step: int,
    squared_norm: bool = False,
    columns: int = 0,
) -> native.Spec:
    """What the kernels need to encode one tensor."""
    spec = native.Spec(count=count, seed=seed, rank=rank, tensor=tensor, step=step, columns=columns)
    spec.dtype = wire.DTYPES[dtype]
    spec.flags = wire.SQUARED_NORM if squared_norm else 0
    set_quantization(spec, quantization)
    return spec


def set_quantization(spec: native.Spec, quantization: Quantization) -> None:
    """Let ``spec`` say how to encode from now on."""
    spec.bucket_size = quantization.bucket_size_for(spec.count)
    spec.levels = quantization.levels_for(spec.count)
    spec.codec = codec_id(quantization.codec)
    spec.norm = wire.NORM_IDS[quantization.norm]
    spec.flags = spec.flags & ~wire.SUBTRACTIVE | wire.DITHERS[quantization.dither]


def codec_id(name: str) -> int:
    """The codec's number in ``native.Spec``."""
    return native.CODEC_AUTO if name == AUTO else wire.CODECS[name].id


def expect(spec: native.Spec, first_rank: int = 0) -> native.Expectation:
    """What the frames that are summed with ``spec``'s must say."""
    return native.Expectation(spec.count, spec.tensor, spec.step, spec.dtype, first_rank)


def decode_sum(
    address: int,
    size: int,
    frame_count: int,
    expected: native.Expectation,
    factor: float,
    out: int,
    what: object = "the frame",
) -> None:
    """Write ``factor`` times the sum of ``frame_count`` frames in ``size`` bytes at ``address`` to ``out``.

    Raises:
        QSGDError: a frame is invalid or belongs to something else; the sentence names the rank and the reason.
    """
    try:
        native.decode_sum(address, size, frame_count, expected, factor, out)
    except native.FrameError as refused:
        raise QSGDError(native.explain(refused, address, size, expected, str(what))) from None
