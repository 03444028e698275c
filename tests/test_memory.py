"""Peak memory of a step: the frames and the result, and nothing else as large as the gradient."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STEP = """
import horovod.torch as hvd
import torch
from hvd_qsgd.torch import QSGD

def peak():  # bytes, since the last reset
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

def step(gradient):
    token, context = compression.compress(gradient)
    return compression.decompress(hvd.allreduce(token, name="token"), context)

hvd.init()
gradient = torch.randn(2**12, 2**12)
for bucket_size, norm in ((512, "max"), (64, "l2"), (None, "l2"), (100, "max")):
    compression = QSGD(bits=4, bucket_size=bucket_size, norm=norm)
    step(torch.zeros(1000, 1000))  # whatever the first step alone needs
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = peak()
    compression.reset_stats()
    result = step(gradient)
    print(peak() - before, compression.stats().bytes_sent, result.numel() * 4)
    del result
"""


@pytest.mark.torch
def test_nothing_else_is_as_large_as_the_gradient() -> None:
    run = subprocess.run([sys.executable, "-c", STEP], cwd=ROOT, capture_output=True, text=True, check=True)
    cases = [tuple(map(int, line.split())) for line in run.stdout.splitlines()]
    assert len(cases) == 4
    for grown, frame, result in cases:
        # One rank's frame as it was made and as it was gathered.
        assert 0.9 * result < grown < result + 2 * frame + 2**23, (grown / result, frame / result)
