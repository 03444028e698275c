"""Peak memory of a step: the frames and the result, and nothing else as large as the gradient."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STEP = """
import sys
import horovod.torch as hvd
import torch
from hvd_qsgd.torch import QSGD

def peak():  # bytes, since the last reset
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

def step(gradient):
    token, context = compression.compress(gradient)
    return compression.decompress(hvd.allreduce(token, name="token"), context)

hvd.init()
compression = QSGD(bits=4, bucket_size=eval(sys.argv[1]), norm=sys.argv[2])
step(torch.zeros(1000, 1000))  # whatever the first step alone needs
gradient = torch.randn(2**13, 2**12)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = peak()
compression.reset_stats()
result = step(gradient)
print(peak() - before, compression.stats().bytes_sent, result.numel() * 4)
"""


@pytest.mark.torch
@pytest.mark.parametrize("how", [("512", "max"), ("64", "l2"), ("None", "l2"), ("100", "max")])
def test_nothing_else_is_as_large_as_the_gradient(how: tuple[str, str]) -> None:
    run = subprocess.run([sys.executable, "-c", STEP, *how], cwd=ROOT, capture_output=True, text=True, check=True)
    grown, frame, result = map(int, run.stdout.split())
    # One rank's frame as it was made and as it was gathered.
    assert 0.9 * result < grown < result + 2 * frame + 2**23, (grown / result, frame / result)
