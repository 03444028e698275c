"""The token: Horovod's sum or average of it is accepted for any number of ranks, everything else is not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from support import Array

from hvd_qsgd import QSGDError, native

SIZES = [1, 2, 3, 4, 5, 7, 8, 10, 16, 31, 33, 64, 100, 127, 255, 500, 512, 999, 1000]
SIGNATURE_BITS = native.TOKEN_LENGTH - 2
SIGNATURES = [0, 1, 0x2AAA, 0x1555, 2**SIGNATURE_BITS - 1, 0x1234]


def tokens(size: int, bits: int | Sequence[int]) -> Array:
    """What the ranks send, as Horovod carries it: float32."""
    each = np.resize(np.array(bits), size)
    sent = np.zeros((size, native.TOKEN_LENGTH), np.float32)
    for value in np.unique(each):
        sent[each == value] = native.token(1, int(value))
    sent[0] = native.token(0, int(each[0]))
    return sent


def add(sent: Array) -> Array:
    """A sum in float32, rounded after each rank."""
    return np.add.accumulate(sent, axis=0, dtype=np.float32)[-1]


def accepted(reduced: Array, size: int, bits: int) -> float:
    return native.token_factor(reduced.tolist(), size, bits, "tensor 'w'")


def refused(reduced: Array, size: int, bits: int) -> str:
    with pytest.raises(QSGDError, match="tensor 'w'") as caught:
        accepted(reduced, size, bits)
    return str(caught.value)


def test_what_is_sent() -> None:
    assert native.token(0, 0b101) == [1, 1, 1, 0, 1, *[0] * 11]
    assert native.token(3, 2**14 - 1) == [0, 1, *[1] * 14]
    assert len(native.token(0, 0)) == native.TOKEN_LENGTH == 16


def test_the_sums_here_are_rounded() -> None:
    """Else nothing below would show that rounding is allowed for."""
    assert add(tokens(1000, 0) * np.float32(1 / 1000))[1] != 1


def test_sum_and_average() -> None:
    """The factor is exact, although the other entries are rounded on their way round the ranks."""
    f32 = np.float32
    for size in range(1, 1001):
        bits = SIGNATURES[size % len(SIGNATURES)]
        sent = tokens(size, bits)
        assert accepted(add(sent), size, bits) == 1  # Sum
        assert accepted(add(sent) / f32(size), size, bits) == f32(1) / f32(size)  # Average, divided afterwards
        assert accepted(add(sent * f32(1 / size)), size, bits) == f32(1 / size)  # or before
        assert accepted(add(sent[::-1] * f32(1 / size)), size, bits) == f32(1 / size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("predivide", [0.3, 2.0, 7.0, 1000.0])
def test_gradient_predivide_factor(size: int, predivide: float) -> None:
    """Horovod scales by 1 / f before the sum and by f / N after it."""
    for bits in SIGNATURES:
        reduced = add(tokens(size, bits) * np.float32(1 / predivide)) * np.float32(predivide / size)
        assert accepted(reduced, size, bits) == pytest.approx(1 / size, rel=2e-7)


@pytest.mark.parametrize("factor", [1e-30, 1 / 3, -2.0, 65536.0, 1e30])
def test_any_pre_and_postscale_factor(factor: float) -> None:
    for size, bits in itertools.product(SIZES, SIGNATURES):
        assert accepted(add(tokens(size, bits)) * np.float32(factor), size, bits) == np.float32(factor)


def adasum(a: Array, b: Array) -> Array:
    """Maleki et al., "Scaling distributed training with adaptive summation", equation 4: of two gradients."""
    dot = float(a @ b)
    return (1 - dot / (2 * float(a @ a))) * a + (1 - dot / (2 * float(b @ b))) * b


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32, 64, 128, 256, 512])
@pytest.mark.parametrize("scale", [1.0, 0.5, 1 / 512])
def test_adasum_is_refused(size: int, scale: float) -> None:
    """Whichever signature, and in the halving order of Horovod or one after the other."""
    for ones in range(SIGNATURE_BITS + 1):
        bits = 2**ones - 1
        level = list(tokens(size, bits).astype(np.float64))
        while len(level) > 1:
            level = [adasum(a, b) for a, b in zip(level[0::2], level[1::2])]
        chain = tokens(size, bits).astype(np.float64)
        total = chain[0]
        for other in chain[1:]:
            total = adasum(total, other)
        for reduced in (level[0], total):
            assert "is not a sum or an average" in refused((reduced * scale).astype(np.float32), size, bits)


@pytest.mark.parametrize("size", [s for s in SIZES if s > 1])
@pytest.mark.parametrize("reduction", [np.minimum, np.maximum, np.multiply])
def test_other_reductions_are_refused(reduction: np.ufunc, size: int) -> None:
    for bits in SIGNATURES:
        text = refused(reduction.reduce(tokens(size, bits)), size, bits)
        assert "is not a sum or an average over the" in text
        assert "Adasum, Min, Max and Product do not work" in text


@pytest.mark.parametrize("size", [s for s in SIZES if s <= 512])
def test_other_process_sets_are_refused(size: int) -> None:
    """More ranks, fewer, or not the same: in the reduction and in the compressor."""
    bits = SIGNATURES[-1]
    for other in (1, size - 1, size + 1, 2 * size, 1000):
        if other in (0, size):
            continue
        for scale in (1, 1 / other, 1 / size):
            reduced = add(tokens(other, bits)) * np.float32(scale)
            assert f"over the {size} ranks" in refused(reduced, size, bits)
            assert "process_set=" in refused(reduced, size, bits)
    without_the_first = tokens(size + 1, bits)[1:]
    refused(add(without_the_first), size, bits)
    twice_the_first = np.concatenate([tokens(size, bits)[:1], tokens(size, bits)])
    refused(add(twice_the_first), size + 1, bits)


@pytest.mark.parametrize("size", [s for s in SIZES if s > 1])
def test_a_rank_that_means_something_else(size: int) -> None:
    """One bit of one rank is enough, and every rank learns of it."""
    for right, k in itertools.product(SIGNATURES, (0, 5, SIGNATURE_BITS - 1)):
        wrong = right ^ 1 << k
        for where in {0, size // 2, size - 1}:
            each = [right] * size
            each[where] = wrong
            for scale in (1, 1 / size):
                reduced = add(tokens(size, each) * np.float32(scale))
                assert "do not mean the same" in refused(reduced, size, right)
                assert "do not mean the same" in refused(reduced, size, wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(value: float) -> None:
    for k in range(native.TOKEN_LENGTH):
        reduced = add(tokens(4, 3))
        reduced[k] = value
        refused(reduced, 4, 3)
    refused(np.full(native.TOKEN_LENGTH, value, np.float32), 4, 3)


@pytest.mark.parametrize("length", [0, 1, 8, 15, 17])
def test_parts_of_a_token(length: int) -> None:
    """What reducescatter would return."""
    reduced = np.resize(add(tokens(2, 3)), length)
    assert f"returned {length} token entries instead of 16" in refused(reduced, 2, 3)
    assert "reducescatter" in refused(reduced, 2, 3)


def test_signatures_differ() -> None:
    base = ("qsgd.x", 5, 100, 1)
    changed = [("qsgd.y", *base[1:]), (base[0], 6, *base[2:]), (*base[:2], 101, base[3]), (*base[:3], 2)]
    signatures = [native.signature(*meaning) for meaning in (base, *changed)]
    assert len(set(signatures)) == 5
    assert all(0 <= signature < 2**SIGNATURE_BITS for signature in signatures)
    for many in (
        {native.signature("qsgd", k, 100, 1) for k in range(2000)},
        {native.signature("qsgd", 5, k, 1) for k in range(2000)},
        {native.signature("qsgd", 5, k << 40, 1) for k in range(2000)},
        {native.signature(f"qsgd.{k}", 5, 100, 1) for k in range(2000)},
    ):
        assert len(many) > 1800  # 2000 random ones of 14 bits are some 1880 different ones
