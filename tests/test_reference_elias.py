"""The Elias payloads of the reference: known words, every number, and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference_elias as elias
from reference_rans import PayloadError

KNOWN = {
    1: "0",
    2: "100",
    3: "110",
    4: "101000",
    7: "101110",
    8: "1110000",
    15: "1111110",
    16: "10100100000",
    100: "1011011001000",
    32768: "11111110000000000000000",
}
LEVELS = (1, 2, 7, 8, 100, 1805, 32767)


def some_codes(levels: int, n: int, density: float = 1.0) -> elias.Array:
    rng = np.random.default_rng([levels, n])
    return rng.integers(-levels, levels, n, endpoint=True) * (rng.random(n) < density)


def block(string: str) -> bytes:
    """As the page orders its bits."""
    padded = string + "0" * (-len(string) % 8)
    return bytes(int(padded[k : k + 8], 2) for k in range(0, len(padded), 8))


def payload(*strings: str, size: int = 512) -> bytes:
    blocks = [block(string) for string in strings]
    lengths = b"".join(len(b).to_bytes(2, "little") for b in blocks)
    return size.to_bytes(4, "little") + bytes(4) + lengths + b"".join(blocks)


def test_known_words() -> None:
    assert {k: elias.elias(k) for k in KNOWN} == KNOWN


def test_every_number_is_read_again_and_none_begins_another() -> None:
    words = [elias.elias(k) for k in range(1, 2**17 + 2)]
    assert sorted(map(len, words)) == list(map(len, words))  # the longer the larger: bounds rely on it
    words.sort()
    assert not any(after.startswith(before) for before, after in itertools.pairwise(words))
    for k in (*range(1, 300), 32767, 32768, 65535, 65536, 2**17 + 1):
        assert elias.Reader(block(elias.elias(k))).elias(2**17 + 1) == k


def test_payloads_by_hand() -> None:
    codes = np.array([0, -1, 2, 0, 0, 1])
    assert elias.pack(codes, False, 512) == payload("0" + "1001" + "1100" + "0" + "0" + "1000")
    assert elias.pack(codes, True, 512) == payload("101000" + "100" + "1" + "0" + "0" + "0" + "100" + "110" + "0" + "0")
    two = np.zeros(513, int)
    two[[511, 512]] = 1
    assert elias.pack(two, True, 512) == payload("100" + elias.elias(512) + "0" + "0", "100" + "0" + "0" + "0")
    assert elias.pack(two, False, 512) == payload("0" * 511 + "1000", "1000")
    assert elias.pack(two[:0], True, 512) == b""


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("levels", LEVELS)
def test_round_trip(levels: int, sparse: bool) -> None:
    for n, density in itertools.product((0, 1, 511, 512, 513, 3000), (0, 0.01, 0.3, 1)):
        codes = some_codes(levels, n, density)
        for size in (512, 1024, 2048) if sparse else (512,):
            packed = elias.pack(codes, sparse, size)
            assert np.array_equal(elias.unpack(packed, sparse, levels, n), codes)
            assert len(packed) <= elias.payload_bound(sparse, levels, n, size)
    largest = np.full(1000, -levels)
    assert len(elias.pack(largest, sparse, 512)) == elias.payload_bound(sparse, levels, 1000, 512)


def test_block_sizes() -> None:
    assert elias.block_size(False, 1, 10**9, 10**9, "l2") == 512
    assert elias.block_size(True, 1, 10**9, 10**9, "max") == 512
    assert elias.block_size(True, 1, 10**9, 512, "l2") == 1024  # 512 (1 + 22) < 32 * 512 <= 1024 * 23
    assert elias.block_size(True, 1, 2**24, 2**48, "l2") == 2**17
    for levels, exponent in itertools.product((*LEVELS, 3, 4, 127, 128, 255), range(49)):
        size = elias.block_size(True, levels, 2**exponent, 2**48, "l2")
        assert size <= elias.LARGEST_BLOCK
        bits = len(elias.elias(size + 1)) + size * (2 + len(elias.elias(levels)))
        assert size == 512 or -(-bits // 8) <= 65535  # a length is 16 bits


REFUSED = {
    "a payload of nothing": (b"\0", 0),
    "cut in the head": (b"\0\2\0\0\0\0\0", 1),
    "reserved bytes": (b"\0\2\0\0\1\0\0\0\1\0\0", 1),
    "no power of two": (payload("0", size=513), 1),
    "small blocks": (payload("0", size=256), 1),
    "large blocks": (payload("0", size=2**18), 1),
    "no lengths": (payload("0")[:9], 1),
    "too few bytes": (payload("0" * 20)[:-1], 20),
    "too many bytes": (payload("0" * 20) + b"\0", 20),
    "a number beyond the levels": (payload("1110000" + "0"), 1),
    "a number beyond all": (payload("1" * 60), 1),
    "it goes on": (payload("0" * 17), 9),
    "bits after its end": (payload("00000001"), 7),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    data, n = REFUSED[name]
    for sparse in (False, True):
        with pytest.raises(PayloadError):
            elias.unpack(data, sparse, 6, n)


def test_refused_by_one_of_them() -> None:
    for string, n in (("100" + "100" + "0" + "0", 1), ("110" + "000" + "100" + "0" + "0", 2)):
        with pytest.raises(PayloadError, match="beyond"):
            elias.unpack(payload(string), True, 6, n)
    with pytest.raises(PayloadError, match="too early"):
        elias.unpack(payload("110" + "000"), True, 6, 9)
    with pytest.raises(PayloadError, match="too early"):
        elias.unpack(payload("0" * 8), False, 6, 9)
    with pytest.raises(PayloadError, match="another size"):
        elias.unpack(payload("0" * 1024, size=1024), False, 6, 1024)
    assert elias.unpack(payload("0", size=1024), True, 6, 1024).sum() == 0


@pytest.mark.parametrize("sparse", [False, True])
def test_what_is_accepted_is_what_an_encoder_writes(sparse: bool) -> None:
    """No two payloads with blocks of one size hold the same codes."""
    rng = np.random.default_rng(1)
    good = elias.pack(some_codes(3, 30, 0.7), sparse, 512)
    accepted = 0
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(10, len(data))] ^= 1 << int(rng.integers(8))
        try:
            codes = elias.unpack(bytes(data), sparse, 3, 30)
        except PayloadError:
            continue
        accepted += 1
        assert elias.pack(codes, sparse, 512) == data
    assert accepted > 100
