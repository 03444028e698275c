"""When residuals stay bounded: docs/theory.md says so of relative variances below one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hvd_qsgd

N = 1 << 14


def residual_norms(steps: int, **how: Any) -> list[float]:
    """Of Gaussian gradients' residuals, over that of a gradient."""
    rng, residual, norms = np.random.default_rng(0), np.zeros(N, np.float32), []
    for step in range(steps):
        total = rng.standard_normal(N).astype(np.float32) + residual
        residual = total - hvd_qsgd.decode(hvd_qsgd.encode(total, step=step, **how))
        norms.append(float(np.linalg.norm(residual)) / N**0.5)
    return norms


@pytest.mark.parametrize(
    ("how", "limit"), [({"codec": "onebit"}, 0.8), ({"bits": 4}, 0.21), ({"bits": 3}, 0.52), ({"variance": 0.5}, 1.05)]
)
def test_it_stays_bounded(how: dict[str, Any], limit: float) -> None:
    assert max(residual_norms(30, **how)) < limit


@pytest.mark.parametrize(
    "how", [{"levels": 1, "norm": "l2", "bucket_size": None}, {"codec": "ternary", "bucket_size": None}], ids=str
)
def test_it_grows(how: dict[str, Any]) -> None:
    norms = residual_norms(30, **how)
    assert norms[29] > 2 * norms[9] > 4 * norms[0]
