"""The example that saves gradients, and the benchmark that compares codecs on them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_examples import write_idx

from benchmarks import codecs
from hvd_qsgd import wire

ROOT = Path(__file__).resolve().parent.parent


def run(*command, status=0):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


def save_gradients(folder, *arguments, status=0):
    return run("examples/save_gradients.py", "--quick", "--output-dir", folder, *arguments, status=status)


@pytest.mark.torch
@pytest.mark.slow
def test_gradients_of_every_model(tmp_path):
    pytest.importorskip("torch")
    write_idx(tmp_path, images=600)
    data = ("--data-dir", tmp_path, "--fashion-dir", tmp_path)
    out = save_gradients(tmp_path / "first", *data)
    losses = {run: float(loss) for run, loss in re.findall(r"(\w+, epoch \d): loss ([0-9.]+), \d+ s", out)}
    assert len(losses) == 3 + 2 + 2
    assert losses["transformer, epoch 1"] < losses["transformer, epoch 0"] - 0.5, "it learns"
    saved = {file.name: np.load(file) for file in (tmp_path / "first").iterdir()}
    shapes = {name: array.shape for name, array in saved.items()}
    for epoch in (0, 1, 5):
        assert shapes[f"perceptron-epoch{epoch}-hidden.weight.npy"] == (4096, 784)
        assert shapes[f"perceptron-epoch{epoch}-output.bias.npy"] == (10,)
    assert shapes["convolutional-epoch1-convolution2.weight.npy"] == (64, 32, 3, 3)
    assert shapes["transformer-epoch1-output.weight.npy"] == (8192, 128)
    for name, array in saved.items():
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
        assert array.any(), name
    embedding = saved["transformer-epoch0-embedding.weight.npy"]
    assert 0.8 < np.mean(~embedding.any(axis=1)) < 1, "words that do not occur have no gradient"
    assert (saved["perceptron-epoch0-hidden.weight.npy"] != saved["perceptron-epoch1-hidden.weight.npy"]).any()

    save_gradients(tmp_path / "again", *data, "--models", "perceptron", "convolutional")
    for file in (tmp_path / "again").iterdir():
        assert file.read_bytes() == (tmp_path / "first" / file.name).read_bytes(), file.name


@pytest.mark.torch
def test_data_that_is_not_there(tmp_path):
    pytest.importorskip("torch")
    err = save_gradients(tmp_path, "--models", "convolutional", status=1)
    assert err.startswith("save_gradients: the convolutional net needs --fashion-dir")
    err = save_gradients(tmp_path, "--models", "perceptron", "--data-dir", tmp_path, status=1)
    assert err.startswith(f"save_gradients: --data-dir {tmp_path} lacks ")
    assert err.count("\n") == 1


def gradients(folder):
    """Two of a model that are compressed, and two that are not."""
    random = np.random.default_rng(1)
    for name, shape, scale in (
        ("a", (40, 50), 1.0),
        ("b", (30, 40), 5.0),
        ("bias", (2000,), 1.0),
        ("small", (2, 2), 1.0),
    ):
        np.save(folder / f"net-epoch1-{name}.npy", (scale * random.standard_normal(shape)).astype(np.float32))


def test_a_model_is_the_sum_of_its_gradients(tmp_path):
    gradients(tmp_path)
    rows = list(codecs.all_size_rows(tmp_path, quick=True))
    names = dict.fromkeys(row["gradient"] for row in rows)
    assert list(names) == ["net-epoch1-a", "net-epoch1-b", "net-epoch1", "gaussian noise", "laplace noise"]
    assert {row["codec"] for row in rows if row["gradient"] == "net-epoch1"} == set(wire.CODECS)
    a, b, both = (
        next(row for row in rows if row["gradient"] == name and row["codec"] == "packed" and row["levels"] == 7)
        for name in ("net-epoch1-a", "net-epoch1-b", "net-epoch1")
    )
    assert both["coordinates"] == 2000 + 1200
    for size in ("payload_bits", "bits", "entropy"):
        assert both[size] == pytest.approx((2000 * a[size] + 1200 * b[size]) / 3200)
    norms = [float(np.square(np.load(tmp_path / f"net-epoch1-{name}.npy")).sum()) for name in "ab"]
    assert both["variance"] == pytest.approx((a["variance"] * norms[0] + b["variance"] * norms[1]) / sum(norms))


def test_a_benchmark_of_nothing(tmp_path):
    err = run("-m", "benchmarks.codecs", "--gradients", tmp_path, status=1)
    assert err == f"benchmarks.codecs: {tmp_path} has no .npy file of a gradient that would be compressed\n"


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_the_benchmark_of_codecs(tmp_path, arguments):
    gradients(tmp_path)
    out = run("-m", "benchmarks.codecs", "--quick", "--repeats", "1", "--gradients", tmp_path, *arguments)
    assert "net-epoch1" in out
    if arguments:
        rows = [json.loads(line) for line in out.splitlines()]
        speeds = [row for row in rows if "ratio" in row]
        assert [row["codec"] for row in speeds] == [
            name for name, codec in wire.CODECS.items() for _ in range(4 if codec.variable else 2)
        ]
        assert {(row["name"], row["frames"]) for row in speeds} == {("encode", 1), ("decode_sum", 4)}
        assert {row["shape"] for row in speeds if row["codec"] == "rans"} == {"1048576", "256x4096"}
