"""`hvd_qsgd.encode`, `decode`, `decode_sum`, `inspect`: NumPy arrays in, NumPy arrays out, sentences for mistakes."""

from __future__ import annotations

import math
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import reference as ref
from support import DTYPES, NORMS, SOME_CODERS, make_input, same_bits

import hvd_qsgd

VALUES = make_input("gaussian", 600)
NUMPY_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def of_dtype(dtype: str, n: int = 600, kind: str = "gaussian") -> tuple[ref.Array, ref.Array]:
    """A gradient as NumPy users hold it, and as the reference takes it."""
    array = make_input(kind, n, dtype)
    return array.view(NUMPY_DTYPES[dtype]), array


# ---- what works ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("codec", "levels"), SOME_CODERS)
def test_frames_and_values_are_the_references(codec: str, levels: int, norm: str, dtype: str) -> None:
    array, plain = of_dtype(dtype, kind="patchwork")
    how: dict[str, Any] = {"codec": codec, "levels": levels, "squared_norm": True}
    how |= {"norm": norm} if codec != "onebit" else {}
    for bucket_size, place in ((64, {"tensor": 3, "step": 4}), (None, {"seed": 2**64 - 1, "rank": 0})):
        frame = hvd_qsgd.encode(array, bucket_size=bucket_size, **how, **place)
        assert type(frame) is bytes
        assert frame == ref.encode(plain, bucket_size=bucket_size, dtype=dtype, **how, **place)
        decoded = hvd_qsgd.decode(frame)
        assert decoded.dtype == array.dtype
        assert decoded.shape == (600,)
        where = {"tensor": 0, "step": 0, **place}
        expected = ref.decode_sum([frame], count=600, dtype=dtype, tensor=where["tensor"], step=where["step"])
        assert same_bits(decoded.view(expected.dtype), expected)


@pytest.mark.parametrize(("bits", "levels"), [(None, 7), (2, 1), (3, 3), (4, 7), (5, 15), (6, 31), (7, 63), (8, 127)])
def test_bits_are_levels(bits: int | None, levels: int) -> None:
    assert hvd_qsgd.encode(VALUES, bits) == hvd_qsgd.encode(VALUES, levels=levels)
    assert hvd_qsgd.inspect(hvd_qsgd.encode(VALUES, bits)).levels == levels
    assert hvd_qsgd.inspect(hvd_qsgd.encode(VALUES, codec="ternary")).levels == 1


@pytest.mark.filterwarnings("error")
def test_float64_is_rounded_to_float32() -> None:
    values = np.random.default_rng(1).standard_normal(100) * 1e-3
    assert hvd_qsgd.encode(values) == hvd_qsgd.encode(values.astype(np.float32))
    assert hvd_qsgd.decode(hvd_qsgd.encode(values)).dtype == np.float32
    assert hvd_qsgd.encode([0.5, -2.0]) == hvd_qsgd.encode(np.array([0.5, -2.0], np.float32))
    too_large = hvd_qsgd.decode(hvd_qsgd.encode([1e300, 1.0], bucket_size=1))  # and no warning
    assert np.isnan(too_large[0])
    assert too_large[1] == 1


def test_any_shape_and_layout() -> None:
    flat = make_input("gaussian", 24)
    expected = hvd_qsgd.encode(flat)
    cube = flat.reshape(2, 3, 4)
    fortran = np.asfortranarray(cube)
    read_only = cube.copy()
    read_only.flags.writeable = False
    for array in (cube, fortran, read_only, np.repeat(cube, 2, axis=2)[..., ::2], flat[::-1][::-1], cube.tolist()):
        assert hvd_qsgd.encode(np.asarray(array, np.float32)) == expected
    odd = np.frombuffer(b"x" + flat.tobytes(), np.uint8)[1:].view(np.float32)  # not aligned
    assert hvd_qsgd.encode(odd) == expected
    assert hvd_qsgd.encode(cube.transpose(2, 0, 1)) == hvd_qsgd.encode(cube.transpose(2, 0, 1).ravel())
    assert (flat == make_input("gaussian", 24)).all()  # not written


@pytest.mark.parametrize("empty", [[], np.zeros(0, np.float16), np.zeros((3, 0, 2), np.float32)])
@pytest.mark.parametrize("bucket_size", [None, 1, 2**48])
def test_empty(empty: Any, bucket_size: int | None) -> None:
    frame = hvd_qsgd.encode(empty, bucket_size=bucket_size)
    assert len(frame) == 96
    assert hvd_qsgd.inspect(frame).bucket_size == (bucket_size or 1)
    assert hvd_qsgd.decode(frame).shape == (0,)
    assert hvd_qsgd.decode_sum([frame, hvd_qsgd.encode(empty, rank=1)], 0.5).size == 0


def test_zero_dimensional() -> None:
    for scalar in (np.float32(-3), np.array(-3, np.float16), -3.0):
        assert hvd_qsgd.decode(hvd_qsgd.encode(scalar)).tolist() == [-3.0]


def test_sum_and_factor() -> None:
    frames = [hvd_qsgd.encode(make_input("gaussian", 600, seed=k), rank=k, step=2) for k in range(4)]
    expected = ref.decode_sum(frames, count=600, dtype="float32", tensor=0, step=2, factor=0.25)
    assert same_bits(hvd_qsgd.decode_sum(frames, 0.25), expected)
    assert same_bits(hvd_qsgd.decode_sum(tuple(frames), factor=0.25), expected)
    assert same_bits(hvd_qsgd.decode_sum([bytearray(f) for f in frames], np.float32(0.25)), expected)
    later = [hvd_qsgd.encode(VALUES, rank=k) for k in (7, 8)]
    assert hvd_qsgd.decode_sum(later).shape == (600,)  # from any first rank on
    assert np.isnan(hvd_qsgd.decode_sum(frames, math.nan)).all()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda frame: np.frombuffer(frame, np.uint8)])
def test_frames_in_any_buffer(kind: Any) -> None:
    frame = hvd_qsgd.encode(VALUES, rank=3)
    assert same_bits(hvd_qsgd.decode(kind(frame)), hvd_qsgd.decode(frame))
    assert hvd_qsgd.inspect(kind(frame)) == hvd_qsgd.inspect(frame)


def test_inspect() -> None:
    array, _ = of_dtype("bfloat16", 1000)
    where = {"seed": 2**64 - 1, "rank": 2**32 - 1, "tensor": 2**32 - 2, "step": 2**32 - 3}
    frame = hvd_qsgd.encode(array, levels=5, bucket_size=300, norm="l2", squared_norm=True, **where)
    header = hvd_qsgd.inspect(frame)
    assert (header.version, header.codec, header.norm, header.dtype) == (1, "packed", "l2", "bfloat16")
    assert (header.flags, header.levels, header.count, header.bucket_size) == (1, 5, 1000, 300)
    assert {name: getattr(header, name) for name in where} == where
    assert header.coded_bytes == header.frame_bytes == len(frame)
    assert header.squared_norm == pytest.approx(float(np.square(array.astype(np.float64)).sum()), rel=1e-12)
    assert header.checksum == ref.checksum(frame)
    assert hvd_qsgd.inspect(hvd_qsgd.encode(VALUES)).squared_norm == 0
    with pytest.raises(AttributeError):
        header.count = 3  # type: ignore[misc]


def test_without_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 values come as float32, which holds them exactly."""
    frame = hvd_qsgd.encode(of_dtype("bfloat16")[0])
    expected = hvd_qsgd.decode(frame).astype(np.float32)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert same_bits(hvd_qsgd.decode(frame), expected)


# ---- what does not ----


@pytest.mark.parametrize(
    "array",
    [[1, 2], np.arange(3), [True], np.ones(2, complex), np.ones(2, np.longdouble), np.ones(2, np.int8), ["a"], None,
     np.ones(2, ">f4"), np.ones(2, ">f8"), np.ones(2, ">f2"), np.ones(2, ml_dtypes.float8_e4m3fn), object()],
    ids=lambda array: str(np.asarray(array).dtype),
)  # fmt: skip
def test_other_dtypes_are_refused(array: Any) -> None:
    with pytest.raises(hvd_qsgd.QSGDError, match=r"dtype .* cannot be encoded: use float32, float16, bfloat16 or"):
        hvd_qsgd.encode(array)


WRONG: list[dict[str, Any]] = [
    *({"bits": x} for x in (0, 1, 9, -4, 4.0, "4", True, 2**64)),
    *({"levels": x} for x in (0, 128, -1, 7.0, "7", False)),
    *({"bucket_size": x} for x in (0, -1, 2**48 + 1, 512.0, "all", True)),
    *({"variance": x} for x in (0, -0.1, float("inf"), float("nan"), "0.1", True)),
    *({"norm": x} for x in ("L2", "", 2, "inf")),
    *({"codec": x} for x in ("elias", "", 1, "Packed")),
    *({"seed": x} for x in (-1, 2**64, 0.5, None, "0")),
    *({name: x} for name in ("rank", "tensor", "step") for x in (-1, 2**32, 1.0, None, "1")),
    {"levels": 2, "codec": "ternary"},
    {"bits": 3, "codec": "ternary"},
    {"bits": 4, "levels": 7},
    {"variance": 0.1, "bits": 4},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_wrong_arguments_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(hvd_qsgd.QSGDError) as caught:
        hvd_qsgd.encode(VALUES, **wrong)
    name, value = next(iter(wrong.items()))
    assert f"{name}={value!r}" in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [{"bits": np.array([4, 5])}, {"norm": []}, {"codec": {}}, {"squared_norm": "no"}, {"bits": int}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_odd_types_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(hvd_qsgd.QSGDError, match=next(iter(wrong))):
        hvd_qsgd.encode(VALUES, **wrong)


@pytest.mark.parametrize("frame", [None, 5, "QSGD", [], memoryview(bytes(200))[::2]], ids=repr)
def test_what_is_no_frame(frame: Any) -> None:
    for function in (hvd_qsgd.decode, hvd_qsgd.inspect):
        with pytest.raises(hvd_qsgd.QSGDError):
            function(frame)


def test_nothing_to_decode() -> None:
    with pytest.raises(hvd_qsgd.QSGDError, match="at least one frame"):
        hvd_qsgd.decode_sum([])
    with pytest.raises(hvd_qsgd.QSGDError, match="cut short"):
        hvd_qsgd.decode(b"")


@pytest.mark.parametrize("factor", ["1", None, 1j])
def test_wrong_factor(factor: Any) -> None:
    with pytest.raises(hvd_qsgd.QSGDError, match="factor"):
        hvd_qsgd.decode_sum([hvd_qsgd.encode(VALUES)], factor)


class NoArray:
    """Raises what it likes when it is asked for its values, as a tensor on a GPU does."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError


def released(frame: bytes) -> memoryview:
    view = memoryview(frame)
    view.release()
    return view


@pytest.mark.parametrize(
    "call",
    [
        lambda frame: hvd_qsgd.decode_sum(5),  # type: ignore[arg-type]
        lambda frame: hvd_qsgd.decode_sum(np.frombuffer(frame, np.uint8)),  # type: ignore[arg-type]
        lambda frame: hvd_qsgd.decode_sum([frame], 10**400),
        lambda frame: hvd_qsgd.decode_sum([frame], 1e39),
        lambda frame: hvd_qsgd.encode([[1.0, 2.0], [3.0]]),
        lambda frame: hvd_qsgd.encode(np.ma.masked_array([1.0, 2.0], [True, False])),
        lambda frame: hvd_qsgd.encode(NoArray()),  # type: ignore[arg-type]
        lambda frame: hvd_qsgd.decode(released(frame)),
    ],
    ids=["frames=5", "frames=array", "factor=10**400", "factor=1e39", "ragged", "masked", "no array", "released"],
)
def test_other_mistakes(call: Any) -> None:
    with pytest.raises(hvd_qsgd.QSGDError):
        call(hvd_qsgd.encode(VALUES))
