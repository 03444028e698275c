"""English text as numbers of words: the CMake manual, which the PyPI package cmake brings along."""

from __future__ import annotations

import collections
import importlib.metadata
import re

import numpy as np
from mnist_data import DataError
from numpy.typing import NDArray

PACKAGE, FOLDER = "cmake", "/Help/"  # some 500,000 words
WORD = re.compile(r"\w+|[^\w\s]")


def read_manual() -> str:
    """All pages, one after the other, in the order of their names."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    pages = sorted(file for file in files if FOLDER in str(file) and file.suffix == ".rst")
    if not pages:
        raise DataError(f"the text is not here: run `pip install '{PACKAGE}<4'`, which has CMake's manual")
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def load_words(vocabulary: int) -> NDArray[np.int64]:
    """The text's words and punctuation marks in order: 1, 2, ... by frequency, 0 for those that are rarer."""
    words = WORD.findall(read_manual().lower())
    frequent = collections.Counter(words).most_common(vocabulary - 1)
    numbers = {word: number for number, (word, _) in enumerate(frequent, 1)}
    return np.array([numbers.get(word, 0) for word in words], np.int64)


def load_rows(vocabulary: int, length: int, words: int | None = None) -> NDArray[np.int64]:
    """The same, all or the first so many, in rows of ``length``."""
    text = load_words(vocabulary)[:words]
    return text[: len(text) // length * length].reshape(-1, length)
