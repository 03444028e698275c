"""Error feedback: what encoding left out of a tensor is added to its next gradient, before that is encoded.

Seide et al., "1-Bit Stochastic Gradient Descent", Interspeech 2014, section 3; ``docs/theory.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from hvd_qsgd import frames, native, wire
from hvd_qsgd.checks import whole_number
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.steps import Slot

KEY = "residuals"  # of a compressor's state
Shape = tuple[int, ...]


class Residuals:
    """The residuals of one compressor on one rank: a float32 buffer for each tensor, of its shape, zero at first.

    A residual belongs to the rank that made it, and to the tensor's shape: others begin at zero.
    """

    def __init__(self, zeros: Callable[[Shape], Any], address: Callable[[Any], int]) -> None:
        self._zeros, self._address = zeros, address
        self._rank = 0
        self._buffers: dict[str, Any] = {}

    def add(self, slot: Slot, shape: Sequence[int], gradient: int, dtype: str) -> Any:
        """The tensor's residual, to which its gradient at address ``gradient`` was added: what is to be encoded."""
        buffer = self._buffer(slot, tuple(shape))
        native.add_gradient(gradient, wire.DTYPES[dtype], slot.spec.count, self._address(buffer))
        return buffer

    def subtract(self, slot: Slot, frame: int) -> None:
        """Take off what the frame at address ``frame`` stands for, which was encoded from it.

        Of a bucket with a NaN or an infinity nothing is left: its residual is zero again.
        """
        own = frames.expect(slot.spec, first_rank=slot.spec.rank)
        native.subtract_frame(frame, slot.history.frame_bytes, own, self._address(self._buffers[slot.name]))

    def state(self, copy: Callable[[Any], Any]) -> dict[str, Any]:
        """Whose they are, and copies of the buffers by the tensors' names."""
        return {"rank": self._rank, "tensors": {name: copy(buffer) for name, buffer in self._buffers.items()}}

    def load(self, rank: int, buffers: dict[str, Any]) -> None:
        """Go on with these buffers of ``rank``."""
        self._rank, self._buffers = rank, buffers

    def _buffer(self, slot: Slot, shape: Shape) -> Any:
        if slot.spec.rank != self._rank:
            self.load(slot.spec.rank, {})
        buffer = self._buffers.get(slot.name)
        if buffer is None or tuple(buffer.shape) != shape:
            buffer = self._buffers[slot.name] = self._zeros(shape)
        return buffer


def read_state(state: dict[str, Any], wanted: bool) -> tuple[int, dict[str, Any]]:
    """Rank and buffers in a compressor's state, none if it has none; raises if it has and they are not ``wanted``."""
    residuals = state.get(KEY) if isinstance(state, Mapping) else None  # what it is then, others say
    if residuals is None:
        return 0, {}
    if not wanted:
        raise QSGDError(
            f"this state has the residuals of error feedback: make the compressor with error_feedback=True, or delete "
            f"state[{KEY!r}] to lose them"
        )
    try:
        rank, buffers = residuals["rank"], {str(name): buffer for name, buffer in residuals["tensors"].items()}
    except Exception as error:  # of whatever was passed
        raise QSGDError(f"state[{KEY!r}] holds no residuals: {error!r}; pass what state_dict() returned") from error
    return whole_number("rank of the residuals", rank, 0, 2**32 - 1), buffers
