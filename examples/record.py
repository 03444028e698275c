"""What a training run shows while it runs, and what it leaves in its JSON file."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from options import quantization
from tqdm import tqdm

from hvd_qsgd.stats import Stats

SECONDS_BETWEEN_LINES = 10.0
BYTES_PER_VALUE = {"none": 4, "fp16": 2}


def digest(weights: Iterable[NDArray[np.float32]]) -> str:
    """SHA-256 of all weights' bytes."""
    return hashlib.sha256(b"".join(array.tobytes() for array in weights)).hexdigest()


class Record:
    """Progress on rank 0: a bar on a terminal, else a line now and then. Losses, accuracies, seconds."""

    def __init__(self, framework: str, options: argparse.Namespace, rank: int, ranks: int) -> None:
        self._options = options
        self._speaks = rank == 0
        self._losses: list[float] = []
        self._epoch = 0
        self.values: dict[str, Any] = {
            "framework": framework,
            "compression": options.compression,
            "quantization": quantization(options) if options.compression == "qsgd" else {},
            "ranks": ranks,
            "batch_size": options.batch_size,
            "loss": [],  # of each step, the mean of all ranks
            "test_accuracy": [],  # after each epoch
            "seconds": [],  # of training, until then
            "seconds_training": 0.0,
        }

    def steps(self, batches: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """The batches of an epoch, with progress."""
        self._epoch += 1
        self._losses = []
        title = f"epoch {self._epoch}/{self._options.epochs}"
        with tqdm(
            desc=title, total=len(batches), unit="step", disable=not (self._speaks and sys.stderr.isatty())
        ) as bar:
            start = said = time.perf_counter()
            for number, batch in enumerate(batches, 1):
                yield batch
                bar.set_postfix_str(f"training loss {self._losses[-1]:.3f}", refresh=False)
                bar.update()
                now = time.perf_counter()
                if bar.disable and now - said > SECONDS_BETWEEN_LINES and number < len(batches):
                    said = now
                    self.say(f"{title}: step {number} of {len(batches)}, training loss {self._losses[-1]:.3f}")
        self.values["seconds_training"] += time.perf_counter() - start
        self.values["steps_per_epoch"] = len(batches)

    def add_loss(self, loss: float) -> None:
        """This rank's loss in the step."""
        self._losses.append(loss)

    @property
    def epoch_losses(self) -> list[float]:
        """This rank's losses in the last epoch, to be averaged over the ranks."""
        return self._losses

    def end_epoch(self, losses: list[float], accuracy: float) -> None:
        """The ranks' mean losses, and the test accuracy."""
        self.values["loss"] += losses
        self.values["test_accuracy"].append(accuracy)
        self.values["seconds"].append(self.values["seconds_training"])
        mean = sum(losses) / len(losses)
        self.say(
            f"epoch {self._epoch}/{self._options.epochs}: training loss {mean:.3f}, "
            f"test accuracy {accuracy:.2%}, {self.values['seconds_training']:.0f} s of training so far"
        )

    def compare_replicas(self, digests: list[str]) -> None:
        """Every rank's ``digest`` of its weights: they must be equal bit for bit."""
        self.values["weights_sha256"] = digests[0]
        if len(set(digests)) != 1:
            raise RuntimeError(f"the ranks' weights differ: {digests}")
        self.say(f"the weights of all {len(digests)} ranks are equal bit for bit: sha256 {digests[0][:16]}...")

    def finish(self, parameters: int, stats: Stats | None) -> None:
        """Add what was sent; on rank 0 say it, and write the file. ``stats``: of QSGD, else None."""
        values = self.values
        steps = len(values["loss"])
        if stats is None:
            sent: float = BYTES_PER_VALUE[self._options.compression] * parameters
        else:
            uncompressed = parameters - stats.coordinates / steps
            sent = stats.bytes_sent / steps + BYTES_PER_VALUE["none"] * uncompressed
            values["stats"] = dataclasses.asdict(stats)
        if values["ranks"] == 1:
            sent = 0  # to whom?
        values["parameters"] = parameters
        values["bytes_per_step"] = sent
        values["bits_per_coordinate"] = 8 * sent / parameters
        values["compression_ratio"] = BYTES_PER_VALUE["none"] * parameters / sent if sent else 0.0
        values["seconds_per_step"] = values["seconds_training"] / steps
        self.say(
            f"each rank sent {sent / 1e6:.2f} MB a step: {values['bits_per_coordinate']:.2f} bits a coordinate, "
            f"compression ratio {values['compression_ratio']:.2f}; {values['seconds_per_step']:.3f} s a step"
        )
        if self._options.output and self._speaks:
            self._options.output.parent.mkdir(parents=True, exist_ok=True)
            self._options.output.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    def say(self, line: str) -> None:
        """Print on rank 0."""
        if self._speaks:
            print(line, flush=True)
