"""Frames of variable length that the CUDA kernels make in more or less room than they need."""

from __future__ import annotations

from typing import Any

import pytest
import reference as ref
from cuda_support import cuda_kernels
from support import make_input

HOW: dict[str, Any] = {"levels": 7, "bucket_size": 512}


@pytest.mark.parametrize(("codec", "n"), [("elias-sparse", 0), ("elias-sparse", 700), ("rans", 700)])
def test_padding(codec: str, n: int) -> None:
    array = make_input("gaussian", n)
    frame = ref.encode(array, codec=codec, **HOW)
    padded = cuda_kernels().encode(array, padding=4096, codec=codec, **HOW)
    assert padded == ref.seal(ref.parse(frame), frame[96 : ref.parse(frame).coded_bytes], len(frame) + 4096)


@pytest.mark.parametrize("codec", ["elias-dense", "rans"])
def test_a_frame_that_is_cut_off_is_refused(codec: str) -> None:
    array = make_input("gaussian", 700)
    whole = len(ref.encode(array, codec=codec, **HOW))
    for padding in (-16, 112 - whole):  # within what is coded; and before it
        cut = cuda_kernels().encode(array, padding=padding, codec=codec, **HOW)
        assert len(cut) == whole + padding
        with pytest.raises(ref.FrameError, match="2"):
            ref.decode_sum([cut], count=700, dtype="float32", tensor=0, step=0)
