"""What a user may set: defaults, changes, limits; and the sentence for everything else."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from hvd_qsgd import QSGDError, native
from hvd_qsgd.checks import whole_number
from hvd_qsgd.compressor import Options
from hvd_qsgd.config import Quantization

DEFAULT = Quantization(levels=7, bucket_size=512, norm="max", codec="packed")


def test_defaults() -> None:
    assert Quantization.create() == DEFAULT
    assert Quantization.create(codec="ternary") == dataclasses.replace(DEFAULT, levels=1, codec="ternary")
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT.levels = 3  # type: ignore[misc]


@pytest.mark.parametrize("bits", range(2, 9))
def test_bits(bits: int) -> None:
    assert Quantization.create(bits).levels == 2 ** (bits - 1) - 1
    assert Quantization.create(np.int32(bits)) == Quantization.create(bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("levels", range(1, 128))
def test_levels(levels: int) -> None:
    quantization = Quantization.create(levels=levels)
    assert quantization.levels == levels
    assert type(quantization.levels) is int


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"bits": 8}, {"levels": 127}),
        ({"levels": 100}, {"levels": 100}),
        ({"bucket_size": None}, {"bucket_size": None}),
        ({"norm": "l2", "bucket_size": 64}, {"norm": "l2", "bucket_size": 64}),
        ({"codec": "ternary"}, {"codec": "ternary", "levels": 1}),
        ({"codec": "packed"}, {"levels": 7}),
        ({"dither": "subtractive"}, {"dither": "subtractive"}),
        ({"codec": "ternary", "levels": 1}, {"codec": "ternary", "levels": 1}),
        ({}, {}),
    ],
)
def test_changed(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert DEFAULT.changed(**changes) == dataclasses.replace(DEFAULT, **expected)


def test_changes_keep_the_rest() -> None:
    odd = Quantization.create(levels=5, bucket_size=None, norm="l2")
    assert odd.changed(bucket_size=3) == Quantization(5, 3, "l2", "packed")
    assert odd.changed(bits=2) == Quantization(1, None, "l2", "packed")
    assert odd.changed(codec="ternary") == Quantization(1, None, "l2", "ternary")


def test_defaults_with_a_variance() -> None:
    """What needs the fewest bits for it, unless it is given."""
    quantization = Quantization.create(variance=0.1)
    assert quantization == Quantization(levels=None, bucket_size=None, norm="l2", codec="auto", variance=0.1)
    given = Quantization.create(variance=np.float32(0.5), bucket_size=512, norm="max", codec="packed")
    assert given == dataclasses.replace(DEFAULT, levels=None, variance=0.5)
    assert type(given.variance) is float
    assert [each.levels_for(1000) for each in (quantization, given, DEFAULT)] == [32767, 127, 7]


def test_a_variance_is_changed() -> None:
    """Nothing else changes with it."""
    finer = DEFAULT.changed(variance=0.01)
    assert finer == dataclasses.replace(DEFAULT, levels=None, variance=0.01)
    assert finer.changed(norm="l2").variance == 0.01
    assert finer.changed(codec="rans") == dataclasses.replace(finer, codec="rans")
    assert finer.changed(bits=4) == DEFAULT
    assert finer.changed(dither="subtractive", bits=3).changed(bits=8).dither == "subtractive"
    assert finer.changed(levels=5) == dataclasses.replace(DEFAULT, levels=5)


@pytest.mark.parametrize(
    ("how", "fixed"),
    [
        ({}, True), ({"codec": "ternary"}, True), ({"codec": "rans"}, False), ({"codec": "auto"}, False),
        ({"variance": 0.1}, False), ({"variance": 0.1, "codec": "packed"}, False),
    ],
)  # fmt: skip
def test_whether_frames_are_equally_long(how: dict[str, Any], fixed: bool) -> None:
    assert Quantization.create(**how).fixed_length is fixed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bits": 1}, "bits=1 is not a whole number from 2 to 8"),
        ({"bits": 4, "levels": 7}, "bits=4 and levels=7 each say how fine the rounding is: give one of them"),
        ({"levels": 4, "variance": 0.1}, "levels=4 and variance=0.1 each say how fine"),
        ({"variance": 0}, "variance=0 is not a positive number, such as 0.1"),
        ({"variance": float("nan")}, "variance=nan is not a positive number"),
        ({"variance": float("inf")}, "variance=inf is not a positive number"),
        ({"variance": "0.1"}, "variance='0.1' is not a positive number"),
        ({"variance": True}, "variance=True is not a positive number"),
        ({"dither": None}, "dither=None is unknown: use one of 'nonsubtractive', 'subtractive'"),
        (
            {"dither": "subtractive", "codec": "rans"},
            "dither='subtractive' does not go with codec='rans': use 'packed'",
        ),
        ({"dither": "subtractive", "codec": "auto"}, "dither='subtractive' does not go with codec='auto'"),
        ({"codec": "auto", "levels": 32768}, "levels=32768 is not a whole number from 1 to 32767 for codec='auto'"),
        (
            {"codec": "ternary", "bits": 4},
            "bits=4 does not go with codec='ternary', which has one level: leave bits out",
        ),
        (
            {"seed": 1},
            "'seed' cannot be changed: only bits, levels, variance, schedule, bucket_size, norm, codec and dither can",
        ),
        ({"codec": np.array(["onebit", "rans"])}, "codec=array(['onebit', 'rans'], dtype='<U6') is unknown"),
        ({"levels": np.array([1, 2])}, "levels=array([1, 2]) is not a whole number"),
        ({"codec": "ternary", "bits": np.array([2, 3])}, "bits=array([2, 3]) is not a whole number from 2 to 2"),
        ({"codec": "onebit", "levels": True}, "levels=True does not apply to codec='onebit'"),
        ({"codec": "onebit", "levels": np.array([1, 1])}, "levels=array([1, 1]) does not apply to codec='onebit'"),
        ({"codec": "onebit", "norm": np.array(["none", "l2"])}, "does not apply to codec='onebit'"),
        ({"norm": "l1"}, "norm='l1' is unknown: use one of 'l2', 'max'"),
        ({"codec": "elias"}, "codec='elias' is unknown: use one of 'auto', 'elias-dense', 'elias-sparse',"),
        (
            {"bucket_size": 0},
            "bucket_size=0 is not a whole number from 1 to 281474976710656 (or None: the",
        ),
    ],
)
def test_wrong_changes(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(QSGDError) as caught:
        DEFAULT.changed(**changes)
    assert words in str(caught.value)


def test_bucket_size_for() -> None:
    assert [Quantization.create(bucket_size=None).bucket_size_for(n) for n in (0, 1, 10**9)] == [1, 1, 10**9]
    assert [DEFAULT.bucket_size_for(n) for n in (0, 1, 10**9)] == [512] * 3


@pytest.mark.parametrize("value", [0, 5, np.uint64(5), np.int8(0)])
def test_whole_numbers(value: Any) -> None:
    number = whole_number("x", value, 0, 5)
    assert type(number) is int
    assert number == value


@pytest.mark.parametrize("value", [-1, 6, 5.0, "5", True, np.bool_(1), np.float32(1), None, [1], 2**70, float("nan")])
def test_not_whole_numbers(value: Any) -> None:
    with pytest.raises(QSGDError) as caught:
        whole_number("x", value, 0, 5, " or so")
    assert str(caught.value) == f"x={value!r} is not a whole number from 0 to 5 or so"


# ---- options ----


@pytest.mark.parametrize(
    "wrong",
    [
        *({"min_size": x} for x in (-1, 1.0, None, "1024", True)),
        *({"seed": x} for x in (-1, 2**64, None, 0.0)),
        *({"name": x} for x in ("", 5, b"a")),
        *({"measure_error": x} for x in (1, None, "yes")),
    ],
    ids=str,
)
def test_wrong_options_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(QSGDError) as caught:
        Options(**wrong)
    name, value = next(iter(wrong.items()))
    assert f"{name}={value!r}" in str(caught.value)


def test_options_are_plain_values() -> None:
    """Which a state may hold, whatever they were given as."""
    options = Options(min_size=np.int64(5), seed=np.uint64(2**64 - 1), clip=np.float32(2.5))  # type: ignore[arg-type]
    assert json.dumps(dataclasses.astuple(options)) == "[5, 18446744073709551615, null, false, false, 2.5]"


@pytest.mark.parametrize(
    ("min_size", "count", "dimensions", "wanted"),
    [
        (1024, 1024, 2, True), (1024, 1023, 2, False), (1024, 10**6, 1, False), (1024, 10**6, 0, False),
        (1, 1, 2, True), (1, 10**6, 1, False), (0, 10**6, 1, True), (0, 0, 0, True), (0, 1, 4, True),
    ],
)  # fmt: skip
def test_which_gradients_are_wanted(min_size: int, count: int, dimensions: int, wanted: bool) -> None:
    """Small and one-dimensional ones (biases, norms) are not, unless min_size is 0."""
    assert Options(min_size=min_size).wants(count, dimensions) is wanted


# ---- environment ----


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The number of threads that a process decides on, told these variables and nothing else."""

    def decide(**variables: str) -> int:
        for name in (native.THREADS_VARIABLE, *native.LOCAL_SIZE_VARIABLES):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return native.default_threads.__wrapped__()

    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    return decide


def test_threads(threads: Any) -> None:
    assert threads() == 12
    assert threads(HVD_QSGD_NUM_THREADS="3") == 3
    assert threads(HVD_QSGD_NUM_THREADS="64", HOROVOD_LOCAL_SIZE="2") == 64
    assert threads(HVD_QSGD_NUM_THREADS="") == 12
    for name in native.LOCAL_SIZE_VARIABLES:
        assert threads(**{name: "4"}) == 3
    assert threads(OMPI_COMM_WORLD_LOCAL_SIZE="5") == 2
    assert threads(OMPI_COMM_WORLD_LOCAL_SIZE="99") == 1
    assert threads(OMPI_COMM_WORLD_LOCAL_SIZE="²") == 12
    assert threads(OMPI_COMM_WORLD_LOCAL_SIZE="0", HOROVOD_LOCAL_SIZE="x", PMI_LOCAL_SIZE="6") == 2


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", " ", "²", "9" * 5000])
def test_wrong_number_of_threads(threads: Any, value: str) -> None:
    with pytest.raises(QSGDError, match="HVD_QSGD_NUM_THREADS="):
        threads(HVD_QSGD_NUM_THREADS=value)


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.LIBRARY_VARIABLE, "/nowhere/libhvd_qsgd.so")
    with pytest.raises(QSGDError, match=r"cannot be loaded .*make kernels"):
        native.library.__wrapped__()


def test_a_library_of_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.LIBRARY_VARIABLE, "libc.so.6")
    with pytest.raises(QSGDError, match="has ABI version None"):
        native.library.__wrapped__()


def test_a_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    version = native.ABI_VERSION
    monkeypatch.setattr(native, "ABI_VERSION", 99)
    with pytest.raises(QSGDError, match=f"has ABI version {version}, this package needs 99"):
        native.library.__wrapped__()


def test_a_library_from_before_a_function_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(native.SIGNATURES, "qsgd_new", (None,))
    with pytest.raises(QSGDError, match=r"has no function qsgd_new, .*build it again \(`make kernels`\)"):
        native.library.__wrapped__()
