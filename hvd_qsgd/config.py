"""What a user may set, checked once, in the field's terms."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any, Union

from hvd_qsgd.errors import QSGDError
from hvd_qsgd.wire import CODECS, NORMS

MAX_BUCKET_SIZE = 1 << 48
DEFAULT_BUCKET_SIZE = 512
DEFAULT_BITS = 4
DEFAULT_MIN_SIZE = 1024

IntOrNone = Union[int, None]


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How values become codes: what a frame's header says of it.

    Attributes:
        levels: s; a code is an integer in [-s, s].
        bucket_size: elements that share one scale; ``None``: one scale for the whole tensor.
        norm: ``"max"`` or ``"l2"``, what the scale is (QSGD, Alistarh et al. 2017, section 4 and section 3.1).
        codec: how codes become bytes: ``"packed"`` (fixed width) or ``"ternary"`` (s = 1 at 1.6 bits).
    """

    levels: int
    bucket_size: IntOrNone
    norm: str
    codec: str

    @classmethod
    def create(
        cls,
        bits: IntOrNone = None,
        levels: IntOrNone = None,
        bucket_size: IntOrNone = DEFAULT_BUCKET_SIZE,
        norm: str = "max",
        codec: str = "packed",
    ) -> Quantization:
        """Check the arguments and resolve ``bits`` to levels: 2^(bits-1) - 1.

        Raises:
            QSGDError: naming the argument that is wrong and what it may be.
        """
        if not isinstance(norm, str) or norm not in NORMS:
            raise QSGDError(f"norm={norm!r} is unknown: use one of {_names(NORMS)}")
        if not isinstance(codec, str) or codec not in CODECS:
            raise QSGDError(f"codec={codec!r} is unknown: use one of {_names(CODECS)}")
        if bucket_size is not None:
            bucket_size = whole_number("bucket_size", bucket_size, 1, MAX_BUCKET_SIZE, " (or None: the whole tensor)")
        limit = CODECS[codec].max_levels
        return cls(_resolve_levels(bits, levels, codec, limit), bucket_size, norm, codec)

    def changed(self, **changes: Any) -> Quantization:
        """A checked copy with some of ``create``'s arguments changed; a new codec brings its default levels."""
        unknown = set(changes) - {"bits", "levels", "bucket_size", "norm", "codec"}
        if unknown:
            raise QSGDError(f"{_names(unknown)} cannot be changed: only bits, levels, bucket_size, norm and codec can")
        kept: dict[str, Any] = {"bucket_size": self.bucket_size, "norm": self.norm, "codec": self.codec}
        if not {"bits", "levels", "codec"} & set(changes):
            kept["levels"] = self.levels
        return Quantization.create(**{**kept, **changes})

    def bucket_size_for(self, count: int) -> int:
        """The bucket size that the frame of a tensor of ``count`` elements states."""
        return max(count, 1) if self.bucket_size is None else self.bucket_size


def whole_number(name: str, value: Any, low: int, high: int, also: str = "") -> int:
    """``value`` as an int in [low, high], or a QSGDError that names the argument."""
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        most = f"2^{high.bit_length()} - 1" if high >= 2**32 - 1 and high & (high + 1) == 0 else high
        raise QSGDError(f"{name}={value!r} is not a whole number from {low} to {most}{also}")
    return number


def encodable(text: str) -> bool:
    """Whether ``text`` can be sent: not with half of a surrogate pair, as names of files may have."""
    return text == text.encode("utf-8", "ignore").decode()


def _resolve_levels(bits: IntOrNone, levels: IntOrNone, codec: str, limit: int) -> int:
    if bits is not None and levels is not None:
        raise QSGDError(f"bits={bits!r} and levels={levels!r} say the same thing twice: give one of them")
    if levels is not None:
        return whole_number("levels", levels, 1, limit, f" for codec={codec!r}")
    most = (limit + 1).bit_length()
    if bits is None:
        bits = min(DEFAULT_BITS, most)
    if most == 2 and bits != 2:
        raise QSGDError(f"bits={bits!r} does not go with codec={codec!r}, which has one level: leave bits out")
    bits = whole_number("bits", bits, 2, most, f" for codec={codec!r}")
    return (1 << (bits - 1)) - 1


def _names(words: Any) -> str:
    return ", ".join(repr(word) for word in sorted(words))
