"""The edits without which Horovod 0.28.1 does not build against current PyTorch and TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Edit(NamedTuple):
    """Replace one line of one file; an empty replacement removes the line."""

    path: str
    line: str
    replacement: str
    why: str


EDITS = (
    Edit(
        "CMakeLists.txt",
        "set(CMAKE_CXX_STANDARD 14)",
        "set(CMAKE_CXX_STANDARD 17)",
        "the common sources include framework headers, which need C++17",
    ),
    Edit(
        "horovod/torch/CMakeLists.txt",
        "    set(CMAKE_CXX_STANDARD 14)",
        "    set(CMAKE_CXX_STANDARD 17)",
        "PyTorch's headers have needed C++17 since 2.1",
    ),
    Edit(
        "horovod/tensorflow/CMakeLists.txt",
        'list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")',
        "",
        "TensorFlow no longer ships the XLA headers this optional file includes",
    ),
)


def apply_edits(root: Path) -> None:
    """Edit the unpacked sources under root; ValueError if an edit does not fit exactly once."""
    for edit in EDITS:
        path = root / edit.path
        lines = path.read_text(encoding="utf-8").splitlines()
        if lines.count(edit.line) != 1:
            raise ValueError(
                f"{edit.path}: expected the line {edit.line.strip()!r} exactly once, "
                f"found it {lines.count(edit.line)} times: not the Horovod release these edits are for"
            )
        at = lines.index(edit.line)
        lines[at : at + 1] = [edit.replacement] if edit.replacement else []
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
