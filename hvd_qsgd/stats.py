"""What a compressor has done so far."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Stats:
    """Counts since the compressor was made, or since ``reset_stats()``; of this rank alone.

    All stay zero in a job of one rank, where Horovod's optimizers never call a compressor.

    Attributes:
        steps: steps in which something was compressed.
        tensors_compressed, tensors_skipped: gradients seen, by what was done with them.
        frames_resized: frames that were not as long as the tensor's last one, for which Horovod negotiates anew.
        coordinates: elements compressed.
        bytes_raw: their size as they are encoded: float64 as float32; with error feedback all as float32.
        bytes_sent: the size of the frames made of them: what this rank hands to the allgather, which carries it to each
            of the other ranks.
        bytes_received: the size of all ranks' frames but its own.
        bytes_uncompressed: the size of the skipped tensors.
        seconds_encode, seconds_wait, seconds_decode: time spent in each.
        squared_error, squared_norm: sums over the compressed tensors; 0 unless ``measure_error`` is set.
    """

    steps: int = 0
    tensors_compressed: int = 0
    tensors_skipped: int = 0
    frames_resized: int = 0
    coordinates: int = 0
    bytes_raw: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    bytes_uncompressed: int = 0
    seconds_encode: float = 0.0
    seconds_wait: float = 0.0
    seconds_decode: float = 0.0
    squared_error: float = 0.0
    squared_norm: float = 0.0

    def copy(self) -> Stats:
        """The counts as they are now."""
        return dataclasses.replace(self)

    @property
    def bits_per_coordinate(self) -> float:
        """Bits sent for each compressed element, headers and scales included."""
        return 8 * self.bytes_sent / self.coordinates if self.coordinates else 0.0

    @property
    def compression_ratio(self) -> float:
        """Bytes of the gradients for each byte of their frames."""
        return self.bytes_raw / self.bytes_sent if self.bytes_sent else 0.0

    @property
    def relative_error(self) -> float:
        """Sum of squared errors over sum of squares: the relative variance E‖Q(v)-v‖²/‖v‖² of QSGD's theorem 3.1."""
        return self.squared_error / self.squared_norm if self.squared_norm else 0.0
