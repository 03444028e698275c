"""The one exception of this package."""

from __future__ import annotations


class QSGDError(RuntimeError):
    """What went wrong, which argument, tensor or rank is concerned, and what to do about it."""
