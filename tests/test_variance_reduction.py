"""QSVRG beside QSGD and SVRG: the problem, the methods with simulated workers, and the command."""

import argparse

import numpy as np
import pytest
from test_examples import mnist_data, write_idx
from test_experiments import run_and_continue

from experiments import variance_reduction
from experiments.problems import LogisticRegression, mnist_3_or_8


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 30)) + 0.3
    signs = np.where(features @ rng.normal(size=30) + rng.normal(size=200) > 0, 1.0, -1.0)
    return LogisticRegression(features, signs, 0.05)


def test_the_gradient_and_the_minimum(problem):
    rng = np.random.default_rng(1)
    x, direction = rng.normal(size=(2, problem.size))
    slope = (problem.value(x + 1e-6 * direction) - problem.value(x - 1e-6 * direction)) / 2e-6
    assert problem.gradient(x) @ direction == pytest.approx(slope, rel=1e-6)
    parts = [problem.gradient(x, np.array([row])) for row in range(problem.examples)]
    np.testing.assert_allclose(np.mean(parts, axis=0), problem.gradient(x), atol=1e-12)
    for _ in range(3000):
        x = x - 3 * problem.gradient(x)
    assert 0 <= problem.value(x) - problem.minimum + 1e-15 < 1e-12


def test_qsvrg_converges_where_qsgd_does_not(problem):
    ends = {}
    for method in variance_reduction.QUANTIZATIONS:
        *_, ends[method] = variance_reduction.descend(problem, method, workers=4, epochs=20, steps=60, seed=0)
    gaps = {method: end["gap"] for method, end in ends.items()}
    assert gaps["QSGD, s = √n"] > 1e-3
    assert max(gap for method, gap in gaps.items() if method != "QSGD, s = √n") < 1e-12
    assert ends["SVRG, float32"]["bits"] == 20 * (64 + 60 * 32)


def test_the_command(problem, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(variance_reduction, "mnist_3_or_8", lambda *_: problem)
    monkeypatch.setitem(variance_reduction.QUICK, "epochs", 3)
    options = argparse.Namespace(data_dir=None, output_dir=tmp_path, quick=True, seeds=2)
    printed, lines = run_and_continue(variance_reduction, options, 8, capsys)
    assert len(lines) == 1 + 2 * 4 * 3
    assert "not reached" in printed


def test_too_few_images(tmp_path):
    write_idx(tmp_path)
    with pytest.raises(mnist_data.DataError, match="400 images of a 3 or an 8 are needed, and there are"):
        mnist_3_or_8(tmp_path, 400, 0.01)
