"""Finished runs in a CSV file: a run is some settings and its points, a row each. Who resumes reads them back."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Callable, Union

Value = Union[str, int, float, None]
Row = dict[str, Value]


class ExperimentError(Exception):
    """What went wrong, in words for the user."""


class Runs:
    """The runs in one file. It is written anew, and takes the old one's place, whenever a run has ended: a run that was
    stopped has left nothing, and its numbers are the same when it is run again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = _read(path) if path.exists() else []

    def find(self, settings: Mapping[str, Value]) -> list[Row]:
        """The points of the run with these settings, in order; none if it has not ended yet."""
        if self._rows and not settings.keys() <= self._rows[0].keys():
            raise self._other_columns()
        return [row for row in self._rows if settings.items() <= row.items()]

    def add(self, settings: Mapping[str, Value], points: Iterable[Mapping[str, Value]]) -> list[Row]:
        """Keep the points of a run that has ended."""
        new = [{**settings, **point} for point in points]
        columns = list((self._rows or new)[0])
        if any(list(row) != columns for row in new):
            raise self._other_columns()
        self._rows += new
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_suffix(".csv.tmp")
        with unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self._rows)
        unfinished.replace(self._path)
        return new

    def _other_columns(self) -> ExperimentError:
        return ExperimentError(
            f"{self._path} is of another version of this experiment: delete it, or name another --output-dir"
        )


def run_all(
    path: Path, plan: Sequence[Mapping[str, Value]], run: Callable[..., Iterable[Mapping[str, Value]]]
) -> list[Row]:
    """Run what is not in the file yet, with progress. Returns the points of the whole plan.

    Args:
        path: the CSV file.
        plan: the settings of each run; equal settings are equal runs, so they name all that matters.
        run: called with the settings as arguments; its points come with the same columns in every run.
    """
    runs = Runs(path)
    todo = [settings for settings in plan if not runs.find(settings)]
    if len(todo) < len(plan):
        print(f"{len(plan) - len(todo)} of {len(plan)} runs are in {path} already", flush=True)
    start = time.monotonic()
    for number, settings in enumerate(todo, 1):
        print(f"run {number} of {len(todo)}: {words(settings)}{_left(start, number, len(todo))}", flush=True)
        points = []
        for point in run(**settings):
            print(f"    {words(point)}", flush=True)
            points.append(point)
        runs.add(settings, points)
    return [row for settings in plan for row in runs.find(settings)]


def words(values: Mapping[str, Value]) -> str:
    """``name=value`` of each, in as many digits as one reads."""
    texts = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    return ", ".join(f"{name}={text}" for name, text in texts.items())


def _left(start: float, number: int, runs: int) -> str:
    """How long it will take if the other runs take as long as those that have ended."""
    if number == 1:
        return ""
    minutes = (time.monotonic() - start) / (number - 1) * (runs - number + 1) / 60
    return f" (about {minutes:.0f} minutes left)" if minutes >= 1 else " (less than a minute left)"


def _read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> Value:
    """What ``csv`` wrote as this text: it writes floats so that they come back exactly, and None as nothing."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None
