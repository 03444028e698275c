"""Presets are rows of arguments that both frontends take; and levels that follow from a tensor's size."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
from typing import Any

import numpy as np
import pytest

import hvd_qsgd
from hvd_qsgd import QSGDError, presets
from hvd_qsgd.compressor import Options
from hvd_qsgd.config import Quantization

PACKED = {"norm": "max", "codec": "packed"}
EXPECTED: dict[str, dict[str, Any]] = {
    "qsgd-2bit-64": {"levels": 1, "bucket_size": 64, **PACKED},
    "qsgd-4bit-512": {"levels": 7, "bucket_size": 512, **PACKED},
    "qsgd-8bit-512": {"levels": 127, "bucket_size": 512, **PACKED},
    "qsgd-theory": {"levels": "sqrt", "bucket_size": None, "norm": "l2", "codec": "elias-dense"},
    "terngrad": {"levels": 1, "bucket_size": None, "norm": "max", "codec": "ternary"},
    "onebit": {"levels": 1, "bucket_size": 512, "norm": "none", "codec": "onebit"},
    "variance-0.1": {"levels": None, "bucket_size": None, "norm": "l2", "codec": "auto", "variance": 0.1},
}


@pytest.mark.parametrize("name", presets.PRESETS)
def test_what_they_stand_for(name: str) -> None:
    arguments = presets.arguments(name)
    assert arguments.pop("error_feedback", False) == (name == "onebit")
    assert arguments.pop("clip", None) == (2.5 if name == "terngrad" else None)
    assert Quantization.create(**arguments) == Quantization(**EXPECTED[name])


def test_they_cannot_be_changed() -> None:
    assert set(presets.PRESETS) == set(EXPECTED)
    presets.arguments("onebit")["codec"] = "packed"
    assert presets.arguments("onebit")["codec"] == "onebit"
    with pytest.raises(TypeError):
        presets.PRESETS["onebit"].arguments["codec"] = "packed"  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        presets.PRESETS["onebit"].source = ""  # type: ignore[misc]


@pytest.mark.parametrize("name", ["qsgd", "", None, ["onebit"]])
def test_unknown_names(name: Any) -> None:
    with pytest.raises(QSGDError) as caught:
        presets.arguments(name)
    assert str(caught.value) == f"preset {name!r} is unknown: use one of {', '.join(map(repr, EXPECTED))}"


@pytest.mark.parametrize("module", ["torch", "tensorflow"])
def test_both_frontends_take_them(module: str) -> None:
    pytest.importorskip(f"horovod.{module}")
    frontend = importlib.import_module(f"hvd_qsgd.{module}")
    for name, quantization in EXPECTED.items():
        compressor = frontend.QSGD.preset(name)
        state = compressor.state_dict()
        assert {field: state[field] for field in quantization} == quantization
        assert ("residuals" in state) == (name == "onebit")
    assert frontend.QSGD.preset("qsgd-4bit-512", bits=3, norm="l2").levels == 3
    with pytest.raises(QSGDError, match="bits=4 and levels=5 each say"):
        frontend.QSGD.preset("qsgd-4bit-512", levels=5)
    assert frontend.QSGD.preset("qsgd-4bit-512", bits=None, levels=5).levels == 5
    assert set(inspect.signature(frontend.QSGD.preset).parameters) == {"name", "overrides"}


@pytest.mark.parametrize("clip", [0, -1, float("nan"), float("inf"), "2.5", True])
def test_limits_that_are_none(clip: Any) -> None:
    with pytest.raises(QSGDError, match=r"clip=.* is not a positive number, such as 2\.5"):
        Options(clip=clip)


# ---- levels="sqrt" ----


@pytest.mark.parametrize("n", [0, 1, 2, 3, 15, 16, 17, 4095, 4096, 10_000])
@pytest.mark.parametrize("bucket_size", [None, 100, 1])
def test_levels_are_the_root_of_a_bucket_s_elements(n: int, bucket_size: int | None) -> None:
    values = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    levels = max(1, math.isqrt(min(n, bucket_size or n)))
    for how in ({"codec": "elias-dense"}, {"codec": "packed"}, {"codec": "auto"}, {"norm": "l2"}):
        frame = hvd_qsgd.encode(values, levels="sqrt", bucket_size=bucket_size, **how)
        assert hvd_qsgd.inspect(frame).levels == min(levels, 127 if how.get("codec") != "elias-dense" else levels)


def test_no_more_levels_than_the_codec_has() -> None:
    sqrt = Quantization.create(levels="sqrt", bucket_size=None, codec="rans")
    assert [sqrt.levels_for(n) for n in (0, 99, 2**20, 2**48)] == [1, 9, 1024, 32767]
    assert sqrt.changed(codec="ternary", levels="sqrt").levels_for(2**20) == 1
    assert sqrt.changed(bucket_size=400).levels_for(2**20) == 20
    assert not sqrt.fixed_length
    assert sqrt.changed(codec="packed", levels="sqrt").fixed_length
    with pytest.raises(QSGDError, match="levels='square' is not a whole number from 1 to 127"):
        Quantization.create(levels="square")
