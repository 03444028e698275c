"""The literature's variants of quantized SGD, by name: ``QSGD.preset("qsgd-4bit-512")``, in every frontend."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

from hvd_qsgd.errors import QSGDError

_QSGD = "Alistarh et al., QSGD, NIPS 2017"


@dataclasses.dataclass(frozen=True)
class Preset:
    """A variant: the arguments of ``QSGD`` that make it, and where it is from."""

    arguments: Mapping[str, Any]
    source: str


def _preset(source: str, **arguments: Any) -> Preset:
    return Preset(types.MappingProxyType(arguments), source)


PRESETS: Mapping[str, Preset] = types.MappingProxyType(
    {
        "qsgd-2bit-64": _preset(f"{_QSGD}, experiments", bits=2, bucket_size=64, norm="max"),
        "qsgd-4bit-512": _preset(f"{_QSGD}, experiments", bits=4, bucket_size=512, norm="max"),
        "qsgd-8bit-512": _preset(f"{_QSGD}, experiments", bits=8, bucket_size=512, norm="max"),
        "qsgd-theory": _preset(
            f"{_QSGD}, theorem 3.3 at s = √n", levels="sqrt", bucket_size=None, norm="l2", codec="elias-dense"
        ),
        "terngrad": _preset("Wen et al., TernGrad, NIPS 2017", codec="ternary", bucket_size=None, norm="max", clip=2.5),
        "onebit": _preset("Seide et al., 1-bit SGD, Interspeech 2014", codec="onebit", error_feedback=True),
        "variance-0.1": _preset("a tenth of noise in the fewest bits", variance=0.1),
    }
)


def arguments(name: str) -> dict[str, Any]:
    """The preset's arguments.

    Raises:
        QSGDError: there is no such preset; it lists those that there are.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise QSGDError(f"preset {name!r} is unknown: use one of {', '.join(map(repr, PRESETS))}")
    return dict(PRESETS[name].arguments)
