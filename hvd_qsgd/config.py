"""What a user may set, checked once, in the field's terms."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from typing import Any, Union

from hvd_qsgd.checks import positive, whole_number
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.schedule import KINDS, Schedule
from hvd_qsgd.wire import CODECS, DITHERS, NORMS, ONEBIT

MAX_BUCKET_SIZE = 1 << 48
DEFAULT_BUCKET_SIZE = 512
DEFAULT_BITS = 4
DEFAULT_MIN_SIZE = 1024

IntOrNone = Union[int, None]
AUTO = "auto"  # the codec that makes the shortest frames
SQRT = "sqrt"  # levels that follow from the size of a bucket

Levels = Union[int, str, None]


class Default(enum.Enum):
    """What an argument is that was not given, where None means something else."""

    DEFAULT = "default"

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT = Default.DEFAULT
BucketSize = Union[int, None, Default]


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How values become codes: what a frame's header says of it, or what decides that.

    Attributes:
        levels: s; a code is an integer in [-s, s]. None: as many as ``variance`` or ``schedule`` asks for.
            ``"sqrt"``: √n, n being the elements of a bucket (QSGD, theorem 3.3), or the most that the codec has.
        bucket_size: elements that share one scale; ``None``: one scale for the whole tensor.
        norm: ``"max"`` or ``"l2"``, what the scale is (QSGD, Alistarh et al. 2017, section 4 and section 3.1);
            ``"none"`` with codec ``"onebit"``.
        codec: how codes become bytes: ``"packed"`` (fixed width), ``"ternary"`` (s = 1 at 1.6 bits), ``"elias-dense"``,
            ``"elias-sparse"`` (QSGD's theorems 3.3 and 3.2), ``"rans"`` (near their entropy), or ``"auto"``: the one of
            these that makes a tensor's frames shortest. ``"onebit"``: no codes, but signs, and the means of either sign
            in a bucket (1-bit SGD, Seide et al. 2014); levels are 1.
        variance: relative variance E||Q(v) - v||^2 / ||v||^2 of each tensor in each step (QSGD, theorem 3.1), or None.
        dither: ``"nonsubtractive"`` (QSGD's random rounding), or ``"subtractive"``: decoders subtract the random
            numbers again, so that the error does not depend on the value (L. Schuchman, "Dither signals and their
            effect on quantization noise", 1964).
        schedule: decides the levels of each step (``hvd_qsgd.schedule``), or None.
    """

    levels: Levels
    bucket_size: int | None
    norm: str
    codec: str
    variance: float | None = None
    dither: str = "nonsubtractive"
    schedule: Schedule | None = None

    @classmethod
    def create(
        cls,
        bits: int | None = None,
        levels: Levels = None,
        variance: float | None = None,
        bucket_size: BucketSize = DEFAULT,
        norm: str | None = None,
        codec: str | None = None,
        dither: str = "nonsubtractive",
        schedule: Schedule | None = None,
    ) -> Quantization:
        """Check the arguments, fill in what was not given, and resolve ``bits`` to levels: 2^(bits-1) - 1.

        The defaults are packed codes of 4 bits with a max norm a bucket of 512; with a variance they are what needs the
        fewest bits for it: the best codec, and one l2 norm a tensor.

        Raises:
            QSGDError: naming the argument that is wrong and what it may be.
        """
        if codec is None:
            codec = "packed" if variance is None else AUTO
        if not isinstance(codec, str) or codec not in (AUTO, *CODECS):
            raise QSGDError(f"codec={codec!r} is unknown: use one of {_names((AUTO, *CODECS))}")
        if bucket_size is DEFAULT:
            bucket_size = DEFAULT_BUCKET_SIZE if variance is None else None
        if bucket_size is not None:
            bucket_size = whole_number("bucket_size", bucket_size, 1, MAX_BUCKET_SIZE, " (or None: the whole tensor)")
        if codec == ONEBIT:
            return cls._onebit(bits, levels, variance, bucket_size, norm, dither, schedule)
        if norm is None:
            norm = "max" if variance is None else "l2"
        if not isinstance(norm, str) or norm not in NORMS:
            raise QSGDError(f"norm={norm!r} is unknown: use one of {_names(NORMS)}")
        if not isinstance(dither, str) or dither not in DITHERS:
            raise QSGDError(f"dither={dither!r} is unknown: use one of {_names(DITHERS)}")
        if dither == "subtractive" and (codec == AUTO or CODECS[codec].variable):
            raise QSGDError(
                f"dither='subtractive' does not go with codec={codec!r}: use 'packed' or 'ternary', or "
                "dither='nonsubtractive'"
            )
        _check_given_once(bits=bits, levels=levels, variance=variance, schedule=schedule)
        if schedule is not None:
            _check_schedule(schedule, codec)
            return cls(None, bucket_size, norm, codec, None, dither, schedule)
        if variance is not None:
            return cls(None, bucket_size, norm, codec, positive("variance", variance, 0.1), dither)
        return cls(_resolve_levels(bits, levels, codec), bucket_size, norm, codec, None, dither)

    @classmethod
    def _onebit(
        cls, bits: Any, levels: Any, variance: Any, bucket_size: int | None, norm: Any, dither: Any, schedule: Any
    ) -> Quantization:
        """1-bit SGD's, which has nothing else to choose; what a state says of it is taken."""
        given = {"bits": bits, "levels": levels, "variance": variance, "norm": norm, "dither": dither}
        saved = {"levels": 1, "norm": "none", "dither": "nonsubtractive"}
        for name, value in {**given, "schedule": schedule}.items():
            if value is not None and not (type(value) is type(saved.get(name)) and value == saved[name]):
                raise QSGDError(
                    f"{name}={value!r} does not apply to codec='onebit', which sends signs and two means a bucket: "
                    f"leave {name} out"
                )
        return cls(1, bucket_size, "none", ONEBIT)

    def changed(self, **changes: Any) -> Quantization:
        """A checked copy with some of ``create``'s arguments changed; the others stay as they are.

        A new codec brings its default levels, unless a variance or a schedule decides.
        """
        quality = {"bits", "levels", "variance", "schedule"}
        others = ("bucket_size", "norm", "codec", "dither")
        unknown = set(changes) - quality - set(others)
        if unknown:
            raise QSGDError(
                f"{_names(unknown)} cannot be changed: only bits, levels, variance, schedule, bucket_size, norm, "
                "codec and dither can"
            )
        codec = changes.get("codec", self.codec)
        if isinstance(codec, str) and codec != self.codec and ONEBIT in (codec, self.codec):
            # They have only the buckets in common.
            return Quantization.create(**{"bucket_size": self.bucket_size, **changes})
        kept: dict[str, Any] = {name: getattr(self, name) for name in others}
        if not quality & set(changes):
            kept["variance"], kept["schedule"] = self.variance, self.schedule
            if "codec" not in changes:
                kept["levels"] = self.levels
        return Quantization.create(**{**kept, **changes})

    def levels_for(self, count: int) -> int:
        """Levels for a tensor of ``count`` elements, or as many as may be chosen for a variance or by a schedule."""
        if isinstance(self.levels, int):
            return self.levels
        if self.levels is None:
            return most_levels(self.codec)
        root = math.isqrt(min(count, self.bucket_size_for(count)))
        return max(1, min(root, most_levels(self.codec)))

    @functools.cached_property
    def fixed_length(self) -> bool:
        """Whether all frames of a tensor are equally long, and how long is known before."""
        return self.levels is not None and self.codec != AUTO and not CODECS[self.codec].variable

    def saved(self) -> dict[str, Any]:
        """Everything but the schedule, as plain values."""
        names = (field.name for field in dataclasses.fields(self) if field.name != "schedule")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        name = next(name for name in ("variance", "schedule", "levels") if getattr(self, name) is not None)
        quality = f"{name}={getattr(self, name)}"
        dither = f", dither={self.dither!r}" if self.dither == "subtractive" else ""
        return f"{quality}, bucket_size={self.bucket_size}, norm={self.norm!r}, codec={self.codec!r}{dither}"

    def bucket_size_for(self, count: int) -> int:
        """The bucket size that the frame of a tensor of ``count`` elements states."""
        return max(count, 1) if self.bucket_size is None else self.bucket_size


def _check_given_once(**quality: Any) -> None:
    given = [f"{name}={value!r}" for name, value in quality.items() if value is not None]
    if len(given) > 1:
        raise QSGDError(f"{' and '.join(given)} each say how fine the rounding is: give one of them")


def _check_schedule(schedule: Any, codec: str) -> None:
    if not isinstance(schedule, Schedule):
        raise QSGDError(f"schedule={schedule!r} is none: use one of {_names(KINDS)} of hvd_qsgd.schedule")
    if most_levels(codec) == 1:
        raise QSGDError(f"schedule={schedule!r} does not go with codec={codec!r}, which has one level")
    schedule.check(codec, most_levels(codec))


def most_levels(codec: str) -> int:
    """The most levels that the codec can code."""
    return max(each.max_levels for each in CODECS.values()) if codec == AUTO else CODECS[codec].max_levels


def _resolve_levels(bits: IntOrNone, levels: Levels, codec: str) -> int | str:
    limit = most_levels(codec)
    if isinstance(levels, str) and levels == SQRT:
        return SQRT
    if levels is not None:
        return whole_number("levels", levels, 1, limit, f" for codec={codec!r}")
    most = (limit + 1).bit_length()
    if bits is None:
        bits = min(DEFAULT_BITS, most)
    if most == 2 and isinstance(bits, int) and bits != 2:
        raise QSGDError(f"bits={bits!r} does not go with codec={codec!r}, which has one level: leave bits out")
    bits = whole_number("bits", bits, 2, most, f" for codec={codec!r}")
    return (1 << (bits - 1)) - 1


def _names(words: Any) -> str:
    return ", ".join(repr(word) for word in sorted(words))
