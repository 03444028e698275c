"""The rans payload of docs/wire_format.md once more, written from the page's sections 6 and 11 alone, with NumPy alone.

The lanes of all streams are one NumPy array, for no stream knows of another; rows and steps are plain loops.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
ESCAPE = 16  # the symbol; numbers are symbols modulo 32


class PayloadError(ValueError):
    """A payload that no encoder writes."""


def require(condition: Any, what: str) -> None:
    if not condition:
        raise PayloadError(what)


# ---- classes and tables ----


@dataclass(frozen=True)
class Table:
    shift: int = 0
    frequencies: tuple[int, ...] = ()  # f_1 ... f_t
    escape: int = 1

    def __post_init__(self) -> None:
        require(self.zero >= 0, "frequencies beyond 1024")

    @property
    def zero(self) -> int:
        return 1024 - 2 * sum(self.frequencies) - self.escape

    def of_symbols(self) -> Array:
        f = np.zeros(32, np.int64)
        f[0], f[ESCAPE] = self.zero, self.escape
        for m, frequency in enumerate(self.frequencies, start=1):
            f[m] = f[32 - m] = frequency
        return f

    def pack(self) -> bytes:
        top = len(self.frequencies)
        return struct.pack(f"<2B{top + 1}H", self.shift, top, *self.frequencies, self.escape)


@dataclass(frozen=True)
class Model:
    mode: int
    tables: list[Table]
    units: Array = field(default_factory=lambda: np.zeros(0, np.uint8))  # a_u
    columns: Array = field(default_factory=lambda: np.zeros(0, np.uint8))  # b_c

    def __post_init__(self) -> None:
        f = np.array([table.of_symbols() for table in self.tables])
        object.__setattr__(self, "f", f)
        object.__setattr__(self, "start", np.cumsum(f, axis=1) - f)
        object.__setattr__(self, "symbol", np.array([np.repeat(np.arange(32), row) for row in f]))
        object.__setattr__(self, "h", np.array([table.shift for table in self.tables]))

    f: Array = field(init=False)
    start: Array = field(init=False)
    symbol: Array = field(init=False)
    h: Array = field(init=False)

    def classes_of(self, unit: int) -> Array:
        """Of the unit's elements."""
        if self.mode == 0:
            return np.zeros(512, np.int64)
        b = 7 if self.mode == 1 else self.columns[np.arange(512 * unit, 512 * unit + 512) % self.columns.size]
        return np.clip(np.full(512, int(self.units[unit])) + b - 8, 0, len(self.tables) - 1)

    def left_out(self, unit: int) -> bool:
        return self.mode > 0 and self.units[unit] == 0

    def classes_of_units(self, units: Array) -> Array:
        """Unit, row, lane."""
        return np.stack([self.classes_of(unit) for unit in units]).reshape(-1, 32, 16)

    def streams(self, units: int) -> list[list[int]]:
        """The units that each stream knows of."""
        return [[u for u in stream if not self.left_out(u)] for stream in streams_of(units)]


def streams_of(units: int) -> Iterator[list[int]]:
    """The units of each stream."""
    for first in range(0, units, 256):
        last = min(first + 256, units)
        step = 4 if last - first >= 128 else 1
        for k in range(step):
            yield list(range(first + k, last, step))


def rounds(streams: list[list[int]]) -> Iterator[tuple[Array, Array]]:
    """The numbers of the streams that have a k-th unit, and these units, for each k."""
    for k in range(max(map(len, streams))):
        having = [s for s, stream in enumerate(streams) if len(stream) > k]
        yield np.array(having), np.array([streams[s][k] for s in having])


# ---- encoding: x and what is taken in have a row for each stream, and a column for each lane ----


class Writer:
    """Each stream's sixteen states, that take in what the decoder gets last."""

    def __init__(self, streams: int) -> None:
        self.x = np.full((streams, 16), 2**15, np.int64)
        self.words = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]  # the streams they are for, and the words

    def make_room(self, streams: Array, x: Array, lanes: Array, limit: Array) -> Array:
        stream, lane = np.nonzero(lanes & (x >= limit))
        if stream.size:
            self.words.append((streams[stream], x[stream, lane] % 2**16))
            x[stream, lane] >>= 16
        return x

    def push(self, streams: Array, x: Array, lanes: Array, value: Array, bits: Array) -> Array:
        if not lanes.any():
            return x
        x = self.make_room(streams, x, lanes, 2 ** (31 - bits))
        return np.where(lanes, (x << bits) + value, x)

    def units(self, streams: Array, codes: Array, classes: Array, model: Model) -> None:
        """One unit each of these streams: stream, row, lane."""
        h = model.h[classes]
        moved = codes + 2**h // 2
        number, low = moved >> h, moved % 2**h
        escaped = (np.abs(number) > 15) | (model.f[classes, number % 32] == 0)
        symbol = np.where(escaped, ESCAPE, number % 32)
        f, start, eight = model.f[classes, symbol], model.start[classes, symbol], np.full_like(h, 8)
        parts = (escaped, codes % 2**16 // 256, eight), (escaped, codes % 256, eight), (~escaped & (h > 0), low, h)
        x, every = self.x[streams], np.full((streams.size, 16), True)
        for row in range(32):
            for lanes, value, bits in parts:
                x = self.push(streams, x, lanes[:, row], value[:, row], bits[:, row])
            x = self.make_room(streams, x, every, f[:, row] * 2**21)
            x = x // f[:, row] * 1024 + x % f[:, row] + start[:, row]
        self.x[streams] = x

    def end(self) -> list[tuple[Array, Array]]:
        """Each stream's words and states."""
        owners, words = (np.concatenate(arrays) for arrays in zip(*self.words))
        return [(words[owners == s], states) for s, states in enumerate(self.x)]


def pack(codes: Array, levels: int, columns: int) -> bytes:
    """The payload for these codes of a matrix with `columns` columns (0: none)."""
    n, units = codes.size, -(-codes.size // 512)
    if n == 0:
        return b""
    whole = np.pad(codes.astype(np.int64), (0, -n % 512)).reshape(units, 512)
    model = Chooser(whole, n, levels, columns).best()
    streams = model.streams(units)
    writer = Writer(len(streams))
    for numbers, mine in rounds(streams):
        writer.units(numbers, whole[mine].reshape(-1, 32, 16), model.classes_of_units(mine), model)
    ends = writer.end()
    lengths = struct.pack(f"<{len(ends)}I", *(words.size for words, _ in ends))
    data = b"".join(words.astype("<u2").tobytes() + states.astype("<u4").tobytes() for words, states in ends)
    return head(model) + lengths + data


def head(model: Model) -> bytes:
    nibbles = np.pad(model.units, (0, model.units.size % 2)).astype(np.uint8)
    return (
        struct.pack("<4BI", model.mode, len(model.tables), 0, 0, model.columns.size)
        + b"".join(table.pack() for table in model.tables)
        + (nibbles[0::2] | nibbles[1::2] << 4).tobytes()
        + model.columns.astype(np.uint8).tobytes()
    )


# ---- decoding ----


class Reader:
    """Each stream's words, that are taken from their end, and its states."""

    def __init__(self, words: Array, lengths: Array, states: Array, model: Model) -> None:
        require((states >= 2**15).all() and (states < 2**31).all(), "a state out of bounds")
        self.x, self.words = states, words
        self.at = np.cumsum(lengths)
        self.begin = self.at - lengths
        classes, h = np.arange(len(model.h))[:, None], model.h[:, None]  # what the slots of the classes stand for:
        self.f = model.f[classes, model.symbol].ravel()
        self.above = (np.arange(1024) - model.start[classes, model.symbol]).ravel()
        self.escape = (model.symbol == ESCAPE).ravel()
        self.h = np.where(model.symbol == ESCAPE, 0, h).ravel()
        self.code = (((model.symbol ^ 16) - 16) * 2**h - 2**h // 2).ravel()

    def refill(self, streams: Array, x: Array) -> Array:
        lanes = np.flatnonzero(x < 2**15)
        if lanes.size == 0:
            return x
        stream, flat = lanes // 16, x.ravel()
        counts = np.bincount(stream, minlength=streams.size)
        self.at[streams] -= counts
        require((self.at >= self.begin).all(), "a word is missing")
        first = self.at[streams] - np.cumsum(counts) + counts  # less the words of the streams before
        flat[lanes] = flat[lanes] * 2**16 + self.words[first[stream] + np.arange(lanes.size)]
        return flat.reshape(x.shape)

    def pop(self, streams: Array, x: Array, bits: Array) -> tuple[Array, Array]:
        """The states, and what they gave."""
        if not bits.any():
            return x, np.zeros_like(x)
        return self.refill(streams, x >> bits), x & ((1 << bits) - 1)

    def units(self, streams: Array, classes: Array) -> Array:
        """One unit each of these streams: stream, row, lane."""
        codes, x = np.zeros_like(classes), self.x[streams]
        for row in reversed(range(32)):
            slot = classes[:, row] * 1024 + x % 1024
            x = self.refill(streams, self.f[slot] * (x // 1024) + self.above[slot])
            x, low = self.pop(streams, x, self.h[slot])
            escaped = self.escape[slot]
            x, byte = self.pop(streams, x, 8 * escaped)
            x, other = self.pop(streams, x, 8 * escaped)
            codes[:, row] = np.where(escaped, byte + 256 * other, self.code[slot] + low).astype(np.int16)
        self.x[streams] = x
        return codes

    def end(self) -> None:
        require((self.at == self.begin).all() and (self.x == 2**15).all(), "a stream that does not end as it should")


def unpack(payload: bytes, n: int) -> Array:
    units = -(-n // 512)
    if n == 0:
        require(payload == b"", "a payload of nothing")
        return np.zeros(0, np.int64)
    model, rest = open_head(payload, n, units)
    streams = [stream[::-1] for stream in model.streams(units)]
    require(len(rest) >= 4 * len(streams), "no room for the lengths")
    lengths = np.frombuffer(rest, "<u4", len(streams)).astype(np.int64)
    rest = rest[4 * len(streams) :]
    require(len(rest) == (2 * lengths + 64).sum(), "streams that do not fill the payload")
    begins = np.cumsum(2 * lengths + 64) - (2 * lengths + 64)
    words = [np.frombuffer(rest, "<u2", length, at) for length, at in zip(lengths, begins)]
    states = [np.frombuffer(rest, "<u4", 16, at) for at in begins + 2 * lengths]
    reader = Reader(np.concatenate(words).astype(np.int64), lengths, np.stack(states).astype(np.int64), model)
    codes = np.zeros((units, 32, 16), np.int64)
    for numbers, mine in rounds(streams):
        codes[mine] = reader.units(numbers, model.classes_of_units(mine))
    reader.end()
    return codes.ravel()[:n]


def open_head(payload: bytes, n: int, units: int) -> tuple[Model, bytes]:
    """The model, and what follows it."""
    require(len(payload) >= 8, "no room for the head")
    mode, classes, *zeros, columns = struct.unpack_from("<4BI", payload)
    require(mode <= 2 and 1 <= classes <= 32 and zeros == [0, 0], "mode, classes or zeros")
    require(16 <= columns <= n if mode == 2 else columns == 0, "columns")
    rest, tables = payload[8:], []
    for _ in range(classes):
        require(len(rest) >= 4, "no room for a table")
        shift, top = rest[0], rest[1]
        require(shift <= 11 and top <= 15 and len(rest) >= 4 + 2 * top, "shift or top of a table")
        *frequencies, escape = struct.unpack_from(f"<{top + 1}H", rest, 2)
        tables.append(Table(shift, tuple(frequencies), escape))
        rest = rest[4 + 2 * top :]
    nibbles = -(-units // 2) if mode else 0
    require(len(rest) >= nibbles + columns, "no room for the classes")
    data = np.frombuffer(rest, np.uint8, nibbles)
    a = np.stack([data & 15, data >> 4], axis=-1).ravel()[: units if mode else 0]
    b = np.frombuffer(rest, np.uint8, columns, nibbles)
    return Model(mode, tables, a, b), rest[nibbles + columns :]


# ---- 11. How the encoder chooses ----


def half_octaves(x: int) -> int:
    """floor(2 * log2(x)): x >= 2^(k / 2) if x^2 >= 2^k."""
    return (x * x).bit_length() - 1


def log2_256(x: int) -> int:
    o = x.bit_length() - 1
    result, m = o, x << (31 - o)
    for _ in range(8):
        m = m * m >> 31
        result = 2 * result + (m >= 2**32)
        m >>= int(m >= 2**32)
    return result


def limit(x: int, low: int, high: int) -> int:
    return min(max(x, low), high)


class Chooser:
    def __init__(self, units: Array, n: int, levels: int, columns: int) -> None:
        self.codes, self.n, self.levels, self.columns = units, n, levels, columns
        count = len(units)
        size = min(count, min(512, max(64, count // 8)))
        self.sample = []
        for k in range(size):
            begin, length = k * (count // size) + min(k, count % size), count // size + (k < count % size)
            self.sample.append(begin + k * 0x9E3779B1 % 2**32 % length)
        self.complete = size == count
        self.sums = [int(t) for t in np.abs(units).sum(axis=1)]

    def best(self) -> Model:
        cost, model = self.fit(Model(0, [Table()] * 32))
        unit_cost, by_units = self.fit(self.by_units())
        if unit_cost < cost:
            cost, model = unit_cost, by_units
        if 16 <= self.columns <= min(self.n // 64, 32 * len(self.sample)):
            column_cost, by_columns = self.fit(self.by_columns())
            if column_cost < cost - cost // 64:
                model = by_columns
        return model

    def by_units(self) -> Model:
        largest = max(self.sums[u] for u in self.sample)
        base = half_octaves(largest) - 15 if largest else 0
        units = [limit(half_octaves(t) - base, 1, 15) if t else 0 for t in self.sums]
        return Model(1, [Table()] * 32, np.array(units, np.uint8))

    def by_columns(self) -> Model:
        where = np.concatenate([np.arange(512 * u, min(512 * u + 512, self.n)) for u in self.sample])
        magnitudes = np.abs(self.codes).ravel()[where]
        sums = np.bincount(where % self.columns, magnitudes, self.columns).astype(np.int64)
        counts = np.bincount(where % self.columns, minlength=self.columns)
        total = (1024 * int(magnitudes.sum()) + 256) // where.size
        q = np.maximum(1, np.where(counts > 0, (1024 * sums + 256) // np.maximum(counts, 1), total))
        largest = half_octaves(int(q.max()))
        numbers = [limit(half_octaves(int(mean)) - largest + 24, 0, 31) for mean in q]
        units = []
        for u, t in enumerate(self.sums):
            elements = np.arange(512 * u, min(512 * u + 512, self.n))
            r = 19 * t * 2**26 // int(q[elements % self.columns].sum())
            units.append(0 if t == 0 else limit(half_octaves(r) - 32, 1, 15) if r else 1)
        return Model(2, [Table()] * 32, np.array(units, np.uint8), np.array(numbers, np.uint8))

    def fit(self, model: Model) -> tuple[int, Model]:
        """The cost, and the model with its tables."""
        used = [u for u in self.sample if not model.left_out(u)]
        codes = self.codes[used].ravel()
        classes = np.concatenate([model.classes_of(u) for u in used]) if used else np.zeros(0, np.int64)
        count = int(classes.max()) + 1 if used else 1
        tables, cost = [Table()] * count, 0
        for c in reversed(range(count)):
            mine = codes[classes == c]
            if mine.size:
                tables[c], bits = self.table(mine)
                cost += bits
            elif c + 1 < count and not self.complete:
                tables[c] = tables[c + 1]
        fitted = Model(model.mode, tables, model.units, model.columns)
        return cost + 2048 * len(head(fitted)) // len(self.codes) * len(self.sample), fitted

    def table(self, codes: Array) -> tuple[Table, int]:
        """Of a class with these codes, and the cost of coding them with it."""
        size, sum_of_magnitudes = codes.size, int(np.abs(codes).sum())
        h = next((h for h in range(12) if sum_of_magnitudes < 4 * size * 2**h), 11)
        n = np.bincount(np.minimum(np.abs((codes + 2**h // 2) >> h), 16), minlength=17).tolist()
        largest = (self.levels + 2**h // 2) >> h
        t = max(m for m in range(16) if n[m] or m == 0)
        if not self.complete:
            t = min(t + 1, 15, largest)
        f = [0] + [(2 * 1024 * n[m] + 2 * size) // (4 * size) for m in range(1, t + 1)]
        f = [max(x, 1) if m and (not self.complete or n[m]) else x for m, x in enumerate(f)]
        escape = (2 * 1024 * n[16] + size) // (2 * size)
        if n[16] if self.complete else t < largest:
            escape = max(escape, 1)
        while 2 * sum(f) + escape >= 1024:
            if escape > max(f):
                escape -= 1
            else:
                f[f.index(max(f))] -= 1
        while len(f) > 1 and f[-1] == 0:
            f.pop()
        table = Table(h, tuple(f[1:]), escape)
        cost = 256 * h * size + sum(n[m] * (2560 - log2_256(x)) for m, x in enumerate([table.zero, *f[1:]]) if n[m])
        return table, cost + (n[16] * (2560 - log2_256(escape) + 256 * (16 - h)) if n[16] else 0)
