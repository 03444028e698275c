"""The compressor without a framework: what to compress, how, under which id and step, and what came of it.

A frontend gives it addresses and dtypes, and moves the frames and the token that it makes.
"""

from __future__ import annotations

import ctypes
import dataclasses
import time
from typing import Any, Callable, Hashable, Sequence, TypeVar

from hvd_qsgd import frames, native, token, wire
from hvd_qsgd.config import DEFAULT_MIN_SIZE, Quantization, whole_number
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.stats import Stats
from hvd_qsgd.steps import Steps, Ticket, operation_prefix, tensor_id

Buffer = TypeVar("Buffer")
STATE_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything about a compressor that is not the quantization.

    Attributes:
        min_size: gradients with fewer elements stay uncompressed, and so do one-dimensional ones unless it is 0.
        seed: of the random rounding, 0 .. 2^64 - 1.
        name: part of the tensors' ids and of the operations' names.
        measure_error: add up the quantization error in the statistics (decodes every own frame once more).
    """

    min_size: int = DEFAULT_MIN_SIZE
    seed: int = 0
    name: str | None = None
    measure_error: bool = False

    def __post_init__(self) -> None:
        whole_number("min_size", self.min_size, 0, 2**63)
        whole_number("seed", self.seed, 0, 2**64 - 1)
        if self.name is not None and (not isinstance(self.name, str) or not self.name):
            raise QSGDError(
                f"name={self.name!r} is not a text: give a name that is the same on all ranks, or None"
            )
        if not isinstance(self.measure_error, bool):
            raise QSGDError(f"measure_error={self.measure_error!r} is neither True nor False")


class Compressor:
    """State and decisions of one compressor on one rank."""

    def __init__(self, quantization: Quantization, options: Options) -> None:
        self.quantization = quantization
        self.options = options
        self.stats = Stats()
        self.steps = Steps()
        self._prefix: str | None = None
        self._seed = options.seed

    def wants(self, count: int, dimensions: int) -> bool:
        """Whether a floating-point gradient of this size is compressed."""
        return count >= self.options.min_size and (dimensions > 1 or self.options.min_size == 0)

    def skipped(self, size: int) -> None:
        """Count a gradient of ``size`` bytes that goes uncompressed."""
        self.stats.tensors_skipped += 1
        self.stats.bytes_uncompressed += size

    def open(self, name: str | None, count: int, dtype: str, rank: int, size: int, group: Hashable) -> Ticket:
        """A gradient of ``count`` elements sets out from ``rank`` of the ``size`` ranks of ``group``.

        ``name`` is the parameter's, or None if it is not known: then the tensor's number in the step is its name.
        """
        with self.steps.lock:
            if self._prefix is None:
                self._prefix = operation_prefix(self, self.options.name, group)
            name = self.steps.begin(name)
            spec = frames.make_spec(
                self.quantization,
                count=count,
                dtype=dtype,
                seed=self._seed,
                rank=rank,
                tensor=tensor_id(self.options.name or "", name),
                step=self.steps.step,
            )
            operation = f"{self._prefix}.{name}"
            signature = token.signature(operation, spec.tensor, count, dtype, spec.step)
            ticket = Ticket(name, operation, spec, dtype, rank, size, signature)
            self.steps.add(ticket)
            self.stats.steps += self.steps.opened == 1
        return ticket

    def encode(self, ticket: Ticket, gradient: int, allocate: Callable[[int], tuple[Buffer, int]]) -> Buffer:
        """The frame of the gradient at address ``gradient``, in a buffer from ``allocate(bytes) -> (buffer, address)``.

        If it cannot be made, the buffer holds an error frame, so that all ranks learn of it.
        """
        start = time.perf_counter()
        try:
            ticket.frame_bytes = native.frame_bytes(ticket.spec)
            buffer, address = allocate(ticket.frame_bytes)
            native.encode(ticket.spec, gradient, address, ticket.frame_bytes)
        except (QSGDError, MemoryError) as error:
            buffer = self._error_frame(ticket, str(error), allocate)
        stats = self.stats
        stats.tensors_compressed += 1
        stats.coordinates += ticket.spec.count
        stats.bytes_raw += ticket.spec.count * wire.ITEM_BYTES[ticket.dtype]
        stats.bytes_sent += ticket.frame_bytes
        stats.seconds_encode += time.perf_counter() - start
        return buffer

    def _error_frame(
        self, ticket: Ticket, text: str, allocate: Callable[[int], tuple[Buffer, int]]
    ) -> Buffer:
        spec = ticket.spec
        frame = frames.sealed_error_frame(
            text, count=spec.count, dtype=ticket.dtype, rank=spec.rank, tensor=spec.tensor, step=spec.step
        )
        ticket.frame_bytes = len(frame)
        buffer, address = allocate(len(frame))
        ctypes.memmove(address, bytes(frame), len(frame))
        return buffer

    def token(self, ticket: Ticket) -> list[float]:
        """What Horovod reduces in place of the gradient."""
        return token.make(ticket.rank, ticket.signature)

    def factor(self, ticket: Ticket, reduced: Sequence[float]) -> float:
        """The reduced token's factor; raises if the reduction or the ranks' meaning is wrong. Ends the ticket."""
        if not self.steps.close(ticket):
            raise QSGDError(
                f"{ticket} is decompressed twice, or after the compressor's state was loaded: every compress() is for "
                "one decompress()"
            )
        return token.factor(reduced, ticket.size, ticket.signature, str(ticket))

    def decode(self, ticket: Ticket, address: int, size: int, factor: float, out: int) -> None:
        """Write the sum of all ranks' frames, ``size`` bytes at ``address``, times ``factor`` to ``out``."""
        start = time.perf_counter()
        frames.decode_sum(address, size, ticket.size, frames.expect(ticket.spec), factor, out, str(ticket))
        self.stats.bytes_received += size - ticket.frame_bytes
        self.stats.seconds_decode += time.perf_counter() - start

    def decode_own(self, ticket: Ticket, address: int, out: int) -> None:
        """Write what this rank's own frame at ``address`` stands for to ``out``: for measuring the error."""
        expected = frames.expect(ticket.spec, first_rank=ticket.rank)
        frames.decode_sum(address, ticket.frame_bytes, 1, expected, 1.0, out, str(ticket))

    def change(self, **changes: Any) -> None:
        """Change ``bits``, ``levels``, ``bucket_size``, ``norm`` or ``codec`` from the next tensor on."""
        self.quantization = self.quantization.changed(**changes)

    def state(self) -> dict[str, Any]:
        """What continues a run: plain values that can be saved and broadcast."""
        return {
            "version": STATE_VERSION,
            "step": self.steps.current,
            "seed": self._seed,
            **dataclasses.asdict(self.quantization),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue where ``state()`` was taken; tensors that are on their way are forgotten."""
        try:
            if state["version"] != STATE_VERSION:
                raise QSGDError(
                    f"this state is of version {state['version']}, this hvd_qsgd knows {STATE_VERSION}"
                )
            step = whole_number("step", state["step"], 0, 2**32 - 1)
            seed = whole_number("seed", state["seed"], 0, 2**64 - 1)
            fields = {name: state[name] for name in ("levels", "bucket_size", "norm", "codec")}
        except (KeyError, TypeError) as error:
            raise QSGDError(
                f"this is not a state of a QSGD compressor: {error!r}; pass what state_dict() returned"
            ) from error
        self.quantization = Quantization.create(**fields)
        self._seed = seed
        self.steps.settle(step)
