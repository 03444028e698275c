"""Images for the experiments, by folder: MNIST, what comes in files like MNIST's, and CIFAR-10."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mnist_data import CLASSES, DataError, load_mnist
from numpy.typing import NDArray

MNIST_SHAPE = (1, 28, 28)
CIFAR_SHAPE = (3, 32, 32)
CIFAR_TRAIN, CIFAR_TEST = tuple(f"data_batch_{number}.bin" for number in range(1, 6)), ("test_batch.bin",)


class Images(NamedTuple):
    """Images as float32, channels x height x width, in 0 .. 1; labels as int64, 0 .. 9."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


@functools.lru_cache(maxsize=1)  # all runs of an experiment have the same
def load_images(data_dir: Path | None, train_images: int | None = None, test_images: int | None = None) -> Images:
    """The data set in ``data_dir`` (default: MNIST from its package), or the first so many images of it.

    Raises:
        DataError: the folder holds no data set that is known.
    """
    if data_dir is not None and (data_dir / CIFAR_TRAIN[0]).exists():
        images = Images(*_load_cifar(data_dir, CIFAR_TRAIN), *_load_cifar(data_dir, CIFAR_TEST))
    else:
        images = Images(*map(torch.from_numpy, load_mnist(data_dir)))
        train, test = (some.reshape(-1, *MNIST_SHAPE) for some in (images.train_images, images.test_images))
        images = images._replace(train_images=train, test_images=test)
    return Images(*(part[:train_images] for part in images[:2]), *(part[:test_images] for part in images[2:]))


def _load_cifar(data_dir: Path, names: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of CIFAR-10's binary files: records of a label and the image's bytes."""
    records = np.concatenate([_read_cifar(data_dir / name) for name in names])
    images = (records[:, 1:].astype(np.float32) / 255).reshape(-1, *CIFAR_SHAPE)
    return torch.from_numpy(images), torch.from_numpy(records[:, 0].astype(np.int64))


def _read_cifar(path: Path) -> NDArray[np.uint8]:
    record = 1 + int(np.prod(CIFAR_SHAPE))
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not content.size or content.size % record or content[::record].max() >= CLASSES:
        raise DataError(f"{path} is not one of the binary version of CIFAR-10, or cut short: get it again")
    return content.reshape(-1, record)
