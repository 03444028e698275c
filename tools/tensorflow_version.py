"""Print the version of the TensorFlow that this interpreter imports, without importing it where possible.

Exits with status 1 if there is none.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import sys

# Under which names it is installed, most often.
DISTRIBUTIONS = ("tensorflow", "tensorflow-cpu", "tensorflow-rocm", "tf-nightly", "tf-nightly-cpu")


def tensorflow_version() -> str | None:
    """What ``tensorflow.__version__`` will be, or None."""
    if importlib.util.find_spec("tensorflow") is None:
        return None
    for distribution in DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    import tensorflow

    return str(tensorflow.__version__)


if __name__ == "__main__":
    found = tensorflow_version()
    print(found or "")
    sys.exit(not found)
