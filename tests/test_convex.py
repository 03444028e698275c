"""Schedules on strongly convex problems: what is compared, and the command."""

import argparse

import numpy as np
import pytest
from test_experiments import run_and_continue

from experiments import convex
from experiments.problems import LogisticRegression


def test_schedules_beat_fixed_levels_at_the_same_bits():
    problem = convex.quadratic(1024)
    found = {
        method: convex.compare(problem, method, levels=2, workers=2, steps=120, seed=0) for method in convex.METHODS
    }
    bits = [row["bits"] for row in found.values()]
    assert max(bits) - min(bits) < 0.01 * max(bits)
    assert len({row["exact_gap"] for row in found.values()}) == 1
    assert found["fixed"]["excess"] > 0.2
    assert all(abs(found[method]["excess"]) < found["fixed"]["excess"] / 10 for method in ("DQSGD", "Budget"))


def test_the_contraction():
    """Of gradient descent on the least curved coordinate; the formula bounds it."""
    assert convex.contraction(1, 10, 0.1) == pytest.approx(0.9)
    assert convex.contraction(1, 10, 0.1) >= (1 - 0.1) ** 2


def test_the_command(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(100, 40))
    signs = np.sign(features[:, 0] + rng.normal(size=100))
    monkeypatch.setattr(convex, "mnist_3_or_8", lambda _, __, value: LogisticRegression(features, signs, value))
    for name, value in {"size": 64, "steps": 10, "workers": 2}.items():
        monkeypatch.setitem(convex.QUICK, name, value)
    options = argparse.Namespace(data_dir=None, output_dir=tmp_path, quick=True, seeds=1)
    printed, lines = run_and_continue(convex, options, 27, capsys)
    assert len(lines) == 1 + 3 * 3 * 3
    assert "logistic, λ = 0.01, at the bits of s = 3:" in printed
