"""The compressor without a framework: the frames and statistics it makes, and the state that continues a run."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest
import reference as ref
from support import Array, arrive, compressor, go, leave, make_input, same_bits, token_bytes

import hvd_qsgd
from hvd_qsgd import QSGDError
from hvd_qsgd.compressor import Compressor, Ranks
from hvd_qsgd.steps import Ticket, tensor_id


def encode(core: Compressor, ticket: Ticket, values: Array, fail: bool = False) -> Array:
    left = [MemoryError("no room")] if fail else []

    def allocate(size: int) -> tuple[Array, int]:
        if left:
            raise left.pop()
        frame = np.empty(size, np.uint8)
        return frame, frame.ctypes.data

    return core.encode(ticket, values.ctypes.data, allocate)


def test_frames_are_made_for_the_step_and_tensor() -> None:
    values = make_input("gaussian", 1000)
    core, ranks = compressor(seed=5, name="opt"), Ranks(2, 4, object())
    go(core, "w", ranks=ranks)
    ticket = leave(core, "w", 1000, ranks)
    where = {"seed": 5, "rank": 2, "tensor": tensor_id("opt", "w"), "step": 1}
    assert encode(core, ticket, values).tobytes() == ref.encode(values, levels=7, bucket_size=512, **where)
    arrive(core, ticket)
    core.change(bits=2, bucket_size=None, norm="l2")
    ticket = leave(core, "w", 1000, ranks)
    frame = ref.encode(values, levels=1, bucket_size=None, norm="l2", **{**where, "step": 2})
    assert encode(core, ticket, values).tobytes() == frame
    decoded = np.empty_like(values)
    core.decode_own(ticket, np.frombuffer(frame, np.uint8).ctypes.data, decoded.ctypes.data)
    assert same_bits(decoded, hvd_qsgd.decode(frame))


def test_every_reduced_token_is_checked() -> None:
    """One that was found right need not be looked at again, another one must."""
    core, ranks = compressor(), Ranks(1, 4, object())
    for scale in (1, 1, 0.25, 1, 0.25):
        ticket = leave(core, "w", ranks=ranks)
        reduced = [scale, *(4 * scale * entry for entry in core.token(ticket.slot)[1:])]
        assert core.factor(ticket, token_bytes(reduced)) == scale
    for wrong in ([0.5, *reduced[1:]], [*reduced[:-1], 0.5], [float("nan")] * 16, reduced[:-1]):
        with pytest.raises(QSGDError):
            core.factor(leave(core, "w", ranks=ranks), token_bytes(wrong))
    assert core.factor(leave(core, "w", ranks=ranks), token_bytes(reduced)) == 0.25


def test_what_cannot_be_encoded_is_told() -> None:
    core = compressor()
    ticket = leave(core, "w", 1000)
    frame = encode(core, ticket, make_input("gaussian", 1000), fail=True)
    assert frame.tobytes() == ref.error_frame(
        "no room", count=1000, dtype="float32", rank=0, tensor=tensor_id("", "w"), step=0
    )
    out = np.empty(1000, np.float32)
    with pytest.raises(QSGDError, match=r"rank 0 could not encode tensor 'w' \(1000 x float32, step 0\): no room"):
        core.decode(ticket, frame.ctypes.data, frame.size, 1.0, out.ctypes.data)


def test_statistics() -> None:
    core = compressor()
    core.skipped(400)
    values = make_input("gaussian", 1000)
    mine = leave(core, "w", 1000, Ranks(0, 2, "g"))
    other = leave(compressor(), "w", 1000, Ranks(1, 2, "g"))
    both = np.concatenate([encode(core, mine, values), encode(compressor(), other, values)])
    out = np.empty_like(values)
    core.decode(mine, both.ctypes.data, both.size, 0.5, out.ctypes.data)
    expected = hvd_qsgd.decode_sum([both[: both.size // 2].tobytes(), both[both.size // 2 :].tobytes()], 0.5)
    assert same_bits(out, expected)
    stats = core.stats.copy()
    core.skipped(1)
    assert (stats.steps, stats.tensors_compressed, stats.tensors_skipped) == (1, 1, 1)
    assert (stats.coordinates, stats.bytes_raw, stats.bytes_uncompressed) == (1000, 4000, 400)
    assert stats.bytes_sent == stats.bytes_received == both.size // 2
    assert stats.bits_per_coordinate == 8 * stats.bytes_sent / 1000
    assert stats.compression_ratio == 4000 / stats.bytes_sent
    empty = compressor().stats
    assert (empty.bits_per_coordinate, empty.compression_ratio, empty.relative_error) == (0, 0, 0)


# ---- state ----


def test_state_continues_a_run() -> None:
    core = compressor(seed=11)
    core.change(levels=5, bucket_size=None, norm="l2")
    go(core, "a", "b")
    state = core.state()
    assert state == {
        "version": 1, "step": 1, "seed": 11, "levels": 5, "bucket_size": None, "norm": "l2", "codec": "packed",
        "variance": None, "dither": "nonsubtractive",
    }  # fmt: skip
    for stored in (json.loads(json.dumps(state)), pickle.loads(pickle.dumps(state)), copy.deepcopy(state)):
        other = compressor(seed=99)
        arrive(other, leave(other, "a", 600))  # what is kept from step to step is of the old state
        other.load(stored)
        assert other.state() == state
        ticket = leave(other, "a", 600)
        values = make_input("gaussian", 600)
        where = {"seed": 11, "tensor": tensor_id("", "a"), "step": 1}
        expected = ref.encode(values, levels=5, bucket_size=None, norm="l2", **where)
        assert encode(other, ticket, values).tobytes() == expected
    for codec in ("ternary", "packed"):
        core.change(codec=codec)
        other.load(core.state())
        assert other.quantization == core.quantization


def test_loading_forgets_what_is_on_its_way() -> None:
    core = compressor()
    state = core.state()
    ticket = leave(core, "a")
    assert core.state()["step"] == 0  # this step is not over
    core.load({**state, "step": 7})
    with pytest.raises(QSGDError, match="after the compressor's state was loaded"):
        arrive(core, ticket)
    assert go(core, "a") == [("a", 7)]


GOOD = {
    "version": 1, "step": 3, "seed": 4, "levels": 7, "bucket_size": 512, "norm": "max", "codec": "packed",
    "variance": None, "dither": "nonsubtractive",
}  # fmt: skip
BAD: list[tuple[Any, str]] = [
    *((bad, "not a state of a QSGD compressor") for bad in (None, 5, "state", [], {})),
    *(({k: v for k, v in GOOD.items() if k != name}, name) for name in GOOD),
    ({**GOOD, "version": 2}, "is of version 2, this hvd_qsgd knows 1"),
    *(({**GOOD, "step": bad}, "step=") for bad in (-1, 2**32, 1.0, None)),
    *(({**GOOD, "seed": bad}, "seed=") for bad in (-1, 2**64, "0")),
    *(({**GOOD, "levels": bad}, "levels=") for bad in (0, 128, 7.0)),
    *(({**GOOD, "bucket_size": bad}, "bucket_size=") for bad in (0, "512")),
    ({**GOOD, "norm": "l1"}, "norm='l1'"),
    ({**GOOD, "codec": "elias"}, "codec='elias'"),
    ({**GOOD, "codec": "ternary"}, "levels=7"),
    ({**GOOD, "dither": "none"}, "dither='none'"),
    ({**GOOD, "variance": 0.1}, "levels=7 and variance=0.1"),
    ({**GOOD, "levels": None, "variance": -1.0}, "variance=-1.0"),
]


@pytest.mark.parametrize(("bad", "words"), BAD, ids=[str(k) for k in range(len(BAD))])
def test_bad_states(bad: Any, words: str) -> None:
    """Refused as a whole: nothing of it is kept."""
    core = compressor(seed=1)
    before = core.state()
    with pytest.raises(QSGDError) as caught:
        core.load(bad)
    assert words in str(caught.value)
    assert core.state() == before
    core.load(GOOD)
    assert core.state() == GOOD


@pytest.mark.parametrize(("field", "value"), [("levels", None), ("norm", [])])
def test_bad_states_that_pass_or_leak(field: str, value: Any) -> None:
    with pytest.raises(QSGDError, match=field):
        compressor().load({**GOOD, field: value})
