"""The experiments' commands, made so small that they take seconds; their numbers are in docs/results.md."""

import argparse

import pytest
from test_examples import write_idx

from experiments import bits, bucket_sizes, effective_floats

SMALL_NET = {"hidden": 16, "images": 600, "steps": 2, "points": 1}
CASES = [
    (bucket_sizes, SMALL_NET, 4),
    (bits, {"channels": 2, "images": 600, "tests": 16, "steps": 1, "points": 1}, 7),
    (effective_floats, SMALL_NET, 1),
]


def run_and_continue(experiment, options, runs, capsys):
    """Run the command, as if stopped in the last of its runs, go on, and ask for it once more.

    Returns what it printed at first, and the lines of its CSV file.
    """
    experiment.main(options)
    printed = capsys.readouterr().out
    assert f"run {runs} of {runs}" in printed
    (csv,) = options.output_dir.glob("*.csv")
    first = csv.read_text()
    lines = first.splitlines(keepends=True)
    assert csv.with_suffix(".png").stat().st_size > 0

    csv.write_text("".join(lines[: -(len(lines) // runs)]))
    experiment.main(options)
    assert csv.read_text() == first
    capsys.readouterr()
    experiment.main(options)
    assert f"{runs} of {runs} runs are" in capsys.readouterr().out
    assert csv.read_text() == first
    return printed, lines


@pytest.mark.parametrize(("experiment", "smaller", "runs"), CASES, ids=[case[0].__name__ for case in CASES])
def test_the_command_and_its_continuation(experiment, smaller, runs, tmp_path, monkeypatch, capsys):
    for name, value in smaller.items():
        monkeypatch.setitem(experiment.QUICK, name, value)
    write_idx(tmp_path, images=600, tests=16)
    options = argparse.Namespace(data_dir=tmp_path, images_dir=None, output_dir=tmp_path / "out", quick=True, seeds=1)
    run_and_continue(experiment, options, runs, capsys)
