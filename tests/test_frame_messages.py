"""What is said about a frame that cannot be decoded: the rank, the tensor, the values, and what to do."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import pytest
import reference as ref
from support import forge, make_input, make_spec, reseal

import hvd_qsgd
from hvd_qsgd import frames, native

WHERE = {"tensor": 6, "step": 7}


def small(n: int = 3, **how: Any) -> bytes:
    how = {"levels": 7, "bucket_size": 2, **WHERE, **how}
    return ref.encode(make_input("gaussian", n, how.get("dtype", "float32")), **how)


def explained(sent: list[bytes], first_rank: int = 0, **expected: Any) -> str:
    """What the compressor's user reads: frames of a float32 tensor of 3 elements, unless told otherwise."""
    where = {"count": 3, "dtype": "float32", **WHERE, **expected}
    expectation = native.Expectation(
        where["count"], where["tensor"], where["step"], ref.DTYPES[where["dtype"]], first_rank
    )
    data = np.frombuffer(b"".join(sent), np.uint8)
    out = np.empty(where["count"], np.float32)
    with pytest.raises(hvd_qsgd.QSGDError) as caught:
        frames.decode_sum(data.ctypes.data, data.size, len(sent), expectation, 1.0, out.ctypes.data, "tensor 'w'")
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": 4}, ["another number of elements", "(4 there, 3 here)", "same tensors in the same order"]),
        ({"dtype": "bfloat16"}, ["another dtype", "(bfloat16 there, float32 here)"]),
        ({"tensor": 0xABCDE}, ["another tensor", "0x000abcde there", "0x00000006 here", "named_parameters="]),
        ({"step": 123}, ["another step", "(123 there, 7 here)", "state_dict()"]),
        ({"rank": 5}, ["another rank", "5 there"]),
    ],
)
def test_a_frame_that_does_not_belong(change: dict[str, Any], words: list[str]) -> None:
    other = small(**{"rank": 1, **change})
    text = explained([small(), other, small(rank=2)])
    for word in ("tensor 'w' from rank 1", *words):
        assert word in text, text
    assert "from rank 4 " in explained([small(rank=3), small(**{"rank": 4, **change})], first_rank=3)
    with pytest.raises(hvd_qsgd.QSGDError, match="from rank 1 "):
        hvd_qsgd.decode_sum([small(), other])


def test_a_damaged_or_unknown_frame_among_others() -> None:
    good = [small(rank=rank) for rank in range(3)]
    damaged = bytearray(good[1])
    damaged[-1] ^= 1
    text = explained([good[0], bytes(damaged), good[2]])
    assert "tensor 'w' from rank 1 is damaged: its checksum does not match" in text
    newer = forge(good[2], version=2)
    assert "from rank 2 is of a format version that this hvd_qsgd does not know; install the same" in explained(
        [*good[:2], newer]
    )
    impossible = reseal(good[0][:96] + b"\0\0\x80\xff" + good[0][100:])
    assert "from rank 0 has a scale that no encoder writes" in explained([impossible, *good[1:]])
    assert "from rank 2 is cut short" in explained([*good[:2], good[2][:-1]])
    assert "from rank 2 is followed by bytes" in explained([*good[:2], good[2] + bytes(16)])
    assert "from rank 0 does not begin with the bytes 'QSGD'" in explained([b"HTTP" + good[0][4:]])


@pytest.mark.parametrize("rank", [0, 2])
def test_error_frames_raise_with_their_message(rank: int) -> None:
    failed = ref.error_frame("out of mémoire", count=3, dtype="float32", rank=rank, **WHERE)
    sent = [failed if r == rank else small(rank=r) for r in range(3)]
    assert f"rank {rank} could not encode tensor 'w': out of mémoire" in explained(sent)
    disagreeing = [*sent[:2], small(4, rank=2)] if rank == 0 else [small(4), *sent[1:]]
    assert "could not encode tensor 'w': out of mémoire" in explained(disagreeing)  # it is the cause
    damaged = bytearray(failed)
    damaged[96] ^= 1
    assert f"from rank {rank} is damaged" in explained([*sent[:rank], bytes(damaged), *sent[rank + 1 :]])
    assert hvd_qsgd.inspect(failed).codec == "error"
    with pytest.raises(hvd_qsgd.QSGDError, match=f"rank {rank} could not encode .*: out of mémoire"):
        hvd_qsgd.decode_sum(sent)
    not_utf8 = reseal(failed[:96] + b"\xff\xfe" + failed[98:])
    with pytest.raises(hvd_qsgd.QSGDError, match="could not encode"):
        hvd_qsgd.decode(not_utf8)


def test_an_error_frame_is_decoded_without_room_for_its_tensor() -> None:
    for count in (10**12, 2**48):
        with pytest.raises(hvd_qsgd.QSGDError, match="no memory"):
            hvd_qsgd.decode(ref.error_frame("no memory", count=count, dtype="float32", rank=0, **WHERE))


@pytest.mark.parametrize("text", ["", "no", "x" * 1024, "x" * 5000, "é" * 511, "x" + "é" * 999, "€" * 999])
def test_sealed_error_frames_are_the_references(text: str) -> None:
    frame = native.error_frame(make_spec(3, levels=7, bucket_size=2, dtype="float16", rank=4, seed=5, **WHERE), text)
    assert frame == ref.error_frame(text, count=3, dtype="float16", rank=4, **WHERE)
    assert hvd_qsgd.inspect(frame).coded_bytes <= 96 + 1024


def test_texts_and_error_frames_that_do_not_fit() -> None:
    """A text is cut, a frame is not written."""
    library, spec = native.library(), make_spec(3, levels=7, bucket_size=2)
    frame, size = np.full(112, 7, np.uint8), native.c_uint64()
    write = functools.partial(library.qsgd_error_frame, ctypes.byref(spec), b"no")
    assert native.status_text(write(frame.ctypes.data, 111, ctypes.byref(size))) == "the frame's buffer is too small"
    assert (frame == 7).all()
    assert write(frame.ctypes.data, 112, ctypes.byref(size)) == native.OK
    assert size.value == 112
    text = ctypes.create_string_buffer(b"x" * 30)
    library.qsgd_explain_token(40, 8, 2, b"tensor 'w'", text, 20)
    assert text.value == b"the reduction of te"
    assert text.raw[20:30] == b"x" * 10
