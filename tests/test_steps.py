"""Which step it is and which tensor of the step, found out from nothing but the order of the calls."""

from __future__ import annotations

import gc
import zlib

import pytest
from support import ALONE, arrive, compressor, go, leave, named

from hvd_qsgd import QSGDError
from hvd_qsgd.compressor import Ranks
from hvd_qsgd.steps import operation_prefix, tensor_id


def test_a_step_ends_when_all_have_arrived() -> None:
    core = compressor()
    assert core.state()["step"] == 0
    assert go(core, "a", "b") == [("a", 0), ("b", 0)]
    assert core.state()["step"] == 1
    assert go(core, "b", "a", "c") == [("b", 1), ("a", 1), ("c", 1)]
    first, second = leave(core, "a"), leave(core, "b")
    arrive(core, second)
    third = leave(core, "c")  # while a is still on its way
    assert core.state()["step"] == 2
    assert [named(t) for t in (first, second, third)] == [("a", 2), ("b", 2), ("c", 2)]
    arrive(core, first)
    assert core.state()["step"] == 2
    arrive(core, third)
    assert core.state()["step"] == 3
    assert core.stats.steps == 3


def test_tensors_without_names_are_numbered() -> None:
    core = compressor()
    assert go(core, None, None, None) == [("#0", 0), ("#1", 0), ("#2", 0)]
    assert go(core, None) == [("#0", 1)]
    assert go(core, None, "named", None) == [("#0", 2), ("named", 2), ("#2", 2)]


def test_one_after_the_other_are_steps_of_their_own() -> None:
    core = compressor()
    assert [named_step for _ in range(3) for named_step in go(core, None)] == [("#0", 0), ("#0", 1), ("#0", 2)]


def test_the_same_number_with_another_size() -> None:
    """Steps may differ in what they reduce: the id is the same, the expectation is not."""
    core = compressor()
    first, other = leave(core, None, 8), leave(core, None, 9)
    ids = first.slot.spec.tensor, other.slot.spec.tensor
    arrive(core, first)
    arrive(core, other)
    again = leave(core, None, 9)
    assert (again.slot.spec.count, again.slot.spec.tensor, again.slot.spec.step) == (9, ids[0], 1)
    assert ids[0] != ids[1]


def test_a_new_step_after_an_exception() -> None:
    """What is thrown away counts as arrived."""
    core = compressor()
    lost, other = leave(core, "a"), leave(core, "b")
    assert arrive(core, other) == 1
    del lost, other
    gc.collect()
    assert core.state()["step"] == 1
    assert go(core, "a", "b") == [("a", 1), ("b", 1)]


def test_a_new_step_although_an_exception_is_still_held() -> None:
    """A traceback keeps the ticket alive; its tensor sets out again, so the old journey is over."""
    core = compressor()
    held, other = leave(core, "a"), leave(core, "b")
    again = leave(core, "a")
    assert named(again) == ("a", 1)
    with pytest.raises(QSGDError, match=r"tensor 'a' .* is decompressed twice, or after"):
        arrive(core, held)
    with pytest.raises(QSGDError, match="decompressed twice"):
        arrive(core, other)
    assert core.state()["step"] == 1
    assert arrive(core, again) == 1
    del held, other  # neither closes what is not its own
    assert go(core, "a") == [("a", 2)]


def test_an_old_ticket_does_not_end_the_new_journey() -> None:
    core = compressor()
    old = leave(core, "a")
    new = leave(core, "a")
    del old
    gc.collect()
    assert core.state()["step"] == 1
    assert named(leave(core, "b")) == ("b", 1)
    assert arrive(core, new) == 1


def test_decompressed_twice() -> None:
    core = compressor()
    ticket = leave(core, "w", 1000)
    arrive(core, ticket)
    with pytest.raises(QSGDError, match=r"tensor 'w' \(1000 x float32, step 0\) is decompressed twice"):
        arrive(core, ticket)


def test_the_last_step_is_followed_by_the_first() -> None:
    core = compressor()
    core.load({**core.state(), "step": 2**32 - 1})
    assert go(core, "a") == [("a", 2**32 - 1)]
    assert core.state()["step"] == 0
    ticket = leave(core, "a")
    assert named(ticket) == ("a", 0)
    assert core.state()["step"] == 0


def test_the_ranks_are_asked_once_a_step() -> None:
    """They may change between steps, as with Horovod elastic."""
    core, answers = compressor(), [Ranks(1, 4, "g"), Ranks(0, 3, "g")]
    asked: list[Ranks] = []

    def ranks() -> Ranks:
        asked.append(answers[min(len(asked), 1)])
        return asked[-1]

    for expected in answers:
        tickets = [core.open(name, (8,), "float32", ranks) for name in "ab"]
        assert {(t.slot.spec.rank, t.slot.size) for t in tickets} == {expected[:2]}
        for ticket in tickets:
            arrive(core, ticket)
    assert asked == answers


# ---- names and ids ----


def test_ids_are_the_same_everywhere() -> None:
    assert tensor_id("", "layer.weight") == zlib.crc32(b"/layer.weight")
    assert tensor_id("opt", "layer.weight") == zlib.crc32(b"opt/layer.weight")
    assert leave(compressor(), "w").slot.spec.tensor == tensor_id("", "w")
    assert leave(compressor(name="opt"), "w").slot.spec.tensor == tensor_id("opt", "w")
    assert leave(compressor()).slot.spec.tensor == tensor_id("", "#0")


def test_operations_are_named_after_the_order_of_first_use() -> None:
    group = object()
    unused, first, second = (compressor() for _ in range(3))
    ranks = Ranks(0, 1, group)
    assert leave(first, "w", ranks=ranks).slot.operation == "qsgd:1.w"
    assert leave(second, "w", ranks=ranks).slot.operation == "qsgd:2.w"
    assert leave(first, "v", ranks=ranks).slot.operation == "qsgd:1.v"
    assert operation_prefix(object(), None, object()) == "qsgd:1"  # another group counts for itself
    assert leave(unused, "w", ranks=ranks).slot.operation == "qsgd:3.w"


def test_given_names_must_be_unique_while_in_use() -> None:
    ranks, others = Ranks(0, 1, object()), Ranks(0, 1, object())
    core = compressor(name="opt")
    assert leave(core, "w", ranks=ranks).slot.operation == "qsgd.opt.w"
    with pytest.raises(QSGDError, match="another compressor in use has name='opt'"):
        leave(compressor(name="opt"), "w", ranks=ranks)
    assert leave(compressor(name="opt"), "w", ranks=others).slot.operation == "qsgd.opt.w"
    del core
    gc.collect()
    assert leave(compressor(name="opt"), "w", ranks=ranks).slot.operation == "qsgd.opt.w"


def test_signatures_tell_tensors_apart() -> None:
    core = compressor()
    tickets = [leave(core, "w"), leave(core, "v"), leave(core, "w", 9), core.open("w", (8,), "float16", lambda: ALONE)]
    assert len({ticket.slot.signature for ticket in tickets}) == 4
