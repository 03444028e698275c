"""The token that Horovod reduces in place of a gradient: it carries the factor, and tells when ranks disagree.

Entry 0 is 1 on the first rank and 0 elsewhere: a sum or an average of it is exactly the factor that Horovod would
have applied to the gradient (1 for Sum, 1/N for Average, with all pre- and postscale factors). Entry 1 is 1
everywhere: it becomes N times the factor, unless the reduction is another one or other ranks take part. The remaining
entries are bits of a signature: each must come back as 0 or N times the factor, unless ranks differ. All this is
checked before anyone waits for frames that might never come.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from hvd_qsgd.errors import QSGDError

LENGTH = 16
SIGNATURE_BITS = LENGTH - 2
# Of the sum over the ranks: rounding stays well below, another reduction than a sum does not.
TOLERANCE = 1e-3


def signature(*meaning: object) -> int:
    """A few bits that differ, most likely, wherever ``meaning`` differs."""
    return zlib.crc32(repr(meaning).encode()) & ((1 << SIGNATURE_BITS) - 1)


def make(rank: int, bits: int) -> list[float]:
    """The entries that ``rank`` sends."""
    return [1.0 if rank == 0 else 0.0, 1.0, *(float(bits >> k & 1) for k in range(SIGNATURE_BITS))]


def factor(reduced: Sequence[float], size: int, bits: int, what: str) -> float:
    """What the sum of the decoded frames is to be multiplied by.

    Args:
        reduced: the token as it came back.
        size: ranks that send frames.
        bits: this rank's signature.
        what: the tensor, for messages.

    Raises:
        QSGDError: the reduction is neither a sum nor an average over these ranks, or a rank means another tensor.
    """
    if len(reduced) != LENGTH:
        raise QSGDError(
            f"the reduction of {what} returned {len(reduced)} token entries instead of {LENGTH}: QSGD works with "
            "allreduce and grouped_allreduce, not with reducescatter"
        )
    one, everyone = reduced[0], reduced[1]
    if not abs(everyone - size * one) <= TOLERANCE * abs(everyone):
        raise QSGDError(
            f"the reduction of {what} is not a sum or an average over the {size} ranks that exchange its frames: use "
            "op=hvd.Average or op=hvd.Sum (Adasum, Min, Max and Product do not work on quantized gradients), and give "
            "QSGD(process_set=) the same process set as the optimizer or the allreduce"
        )
    for k, entry in enumerate(reduced[2:]):
        if not abs(entry - everyone * (bits >> k & 1)) <= 0.25 / size * abs(everyone):  # one rank's bit is 1 / size
            raise QSGDError(
                f"the ranks do not mean the same by {what}: its size, dtype, place in the step or step differs between "
                "ranks. If some parameters go unused on some ranks, pass "
                "QSGD(named_parameters=model.named_parameters()); after a restart, let all ranks load the same "
                "compressor.state_dict()"
            )
    return one
