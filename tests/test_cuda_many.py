"""Many gradients encoded, and many sums decoded, by one call of the CUDA kernels: the single calls' bytes and bits."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference as ref
from cuda_support import ELEMENTS, Buffer, CudaKernels, cuda_kernels
from support import DTYPES, KINDS, Array, all_kernels, make_input, make_spec, same_bits
from test_cuda_decode import outcome

from hvd_qsgd import native
from hvd_qsgd.native_cuda import Draw, Encoding, Late, Summation, Verdict

SIZES = (0, 1, 511, 513, 5000, 30_001, 64, 8192, 8193)
# Some are encoded by kernels for all, others by kernels of their own.
CODINGS: list[dict[str, Any]] = [
    {"levels": 7, "bucket_size": 512},
    {"levels": 100, "bucket_size": 4096},
    {"codec": "ternary", "levels": 1, "bucket_size": 512},
    {"levels": 3, "bucket_size": 100},
    {"levels": 1, "bucket_size": 512, "norm": "l2"},
    {"codec": "ternary", "levels": 1, "bucket_size": 2560},
    {"levels": 20, "bucket_size": 512, "squared_norm": True},
    {"codec": "ternary", "levels": 1, "bucket_size": None, "norm": "l2"},
]
Tensors = list[tuple[Array, dict[str, Any]]]


def tensors(count: int, seed: int = 0, same: int | None = None, rank: int = 0) -> Tensors:
    """Of mixed sizes, dtypes and settings; or all with setting number ``same``."""
    found = []
    for k in range(count):
        dtype = DTYPES[k % 3]
        how = {"dtype": dtype, "tensor": k, "rank": rank, "seed": seed, "step": 5}
        array = make_input(KINDS[(k + seed) % len(KINDS)], SIZES[(k + seed) % len(SIZES)], dtype, seed=rank)
        found.append((array, {**CODINGS[k % len(CODINGS) if same is None else same], **how}))
    return found


def room_for(kernels: CudaKernels, function: str, table: Any) -> Buffer:
    size = ctypes.c_uint64()
    assert getattr(kernels.c, function)(table, len(table), size) == native.OK
    return Buffer(size.value)


def encode_many(kernels: CudaKernels, given: Tensors, draw: Draw | None = None) -> list[bytes]:
    specs = [make_spec(array.size, **how) for array, how in given]
    gradients = [Buffer(array.tobytes(), array.itemsize * (k % 3)) for k, (array, _) in enumerate(given)]
    frames = [Buffer(native.frame_bytes(spec), 8 * (k % 2)) for k, spec in enumerate(specs)]
    table = (Encoding * len(given))(
        *(
            Encoding(ctypes.addressof(spec), gradient.address, frame.address, native.frame_bytes(spec))
            for spec, gradient, frame in zip(specs, gradients, frames)
        )
    )
    work = room_for(kernels, "qsgd_cuda_encode_many_scratch", table)
    drawn = Buffer(bytes(draw)) if draw else None
    size = len(work.read())
    status = kernels.c.qsgd_cuda_encode_many(
        table, len(table), drawn.address if drawn else None, work.address, size, None
    )
    assert status == native.OK, kernels.c.qsgd_cuda_error()
    work.read()
    return [frame.read() for frame in frames]


def decode_many(
    kernels: CudaKernels, sums: list[tuple[list[bytes], dict[str, Any]]], late: Late | None = None
) -> list[Any]:
    """The values of each sum, or status and frame of what is wrong with it."""
    sent = [Buffer(b"".join(frames), 8 * (k % 2)) for k, (frames, _) in enumerate(sums)]
    elements = [ELEMENTS[how["dtype"]] for _, how in sums]
    outs = [
        Buffer(how["count"] * element.itemsize, element.itemsize * (k % 3))
        for k, ((_, how), element) in enumerate(zip(sums, elements))
    ]
    verdicts = [Buffer(ctypes.sizeof(Verdict)) for _ in sums]
    table = (Summation * len(sums))()
    expectations = [
        native.Expectation(how["count"], how["tensor"], how["step"], ref.DTYPES[how["dtype"]], 0) for _, how in sums
    ]
    for k, (frames, how) in enumerate(sums):
        expected, size = ctypes.addressof(expectations[k]), sum(map(len, frames))
        table[k] = Summation(
            sent[k].address, size, expected, len(frames), how["factor"], outs[k].address, verdicts[k].address
        )
    work = room_for(kernels, "qsgd_cuda_decode_sum_many_scratch", table)
    status = kernels.c.qsgd_cuda_decode_sum_many(table, len(table), late, work.address, len(work.read()), None)
    assert status == native.OK, kernels.c.qsgd_cuda_error()
    work.read()
    results: list[Any] = []
    for out, element, verdict, (_, how) in zip(outs, elements, verdicts, sums):
        values, ended = np.frombuffer(out.read(), element), Verdict.from_buffer_copy(verdict.read())
        if ended.status != native.OK:
            assert np.isnan(ref.widen(values, how["dtype"])).all()
        results.append(values if ended.status == native.OK else (ended.status, ended.bad_frame))
    return results


def encode_each(given: Tensors) -> list[bytes]:
    return [all_kernels()[0].encode(array, **how) for array, how in given]


def sums_of(ranks: int, count: int) -> list[tuple[list[bytes], dict[str, Any]]]:
    """Of frames of ``ranks`` ranks, or of one where the number is odd, which makes sizes differ."""
    of_rank = [encode_each(tensors(count, rank=rank)) for rank in range(ranks)]
    found = []
    for k, (array, how) in enumerate(tensors(count)):
        frames = [frames[k] for frames in of_rank[: 1 if k % 2 else ranks]]
        where = {"count": array.size, "dtype": how["dtype"], "tensor": k, "step": 5, "factor": 0.5 + k % 3}
        found.append((frames, where))
    return found


@pytest.mark.parametrize("count", [1, 2, 9, 40])
def test_mixed_gradients(count: int) -> None:
    """More of them than a page of the list has room for."""
    given = tensors(count, seed=count)
    assert encode_many(cuda_kernels(), given) == encode_each(given)


@pytest.mark.parametrize("same", range(len(CODINGS)))
def test_gradients_of_one_setting(same: int) -> None:
    for count in (1, 9):
        given = tensors(count, same=same)
        assert encode_many(cuda_kernels(), given) == encode_each(given)


def test_seed_and_step_from_memory() -> None:
    given = tensors(5)
    expected = encode_each([(array, {**how, "seed": 2**63 + 9, "step": 77}) for array, how in given])
    assert encode_many(cuda_kernels(), given, Draw(2**63 + 9, 77, 0)) == expected


@pytest.mark.parametrize(("ranks", "count"), [(1, 1), (2, 2), (3, 30), (20, 4), (40, 3)])
def test_sums(ranks: int, count: int) -> None:
    sums = sums_of(ranks, count)
    for (frames, how), values in zip(sums, decode_many(cuda_kernels(), sums)):
        assert same_bits(values, all_kernels()[0].decode_sum(frames, **how)), how


def test_factor_and_step_from_memory() -> None:
    sums = sums_of(2, 5)
    number, draw = Buffer(np.float32(0.25).tobytes()), Buffer(bytes(Draw(0, 5, 0)))
    late = [(frames, {**how, "factor": 9.0, "step": 6}) for frames, how in sums]
    found = decode_many(cuda_kernels(), late, Late(number.address, draw.address))
    for (frames, how), values in zip(sums, found):
        assert same_bits(values, all_kernels()[0].decode_sum(frames, **{**how, "factor": 0.25}))


def test_frames_that_are_wrong_spoil_their_own_sum_alone() -> None:
    coded = ref.encode(make_input("gaussian", 600), codec="rans", levels=7, bucket_size=512)
    spoiled: dict[int, Callable[[bytes, bytes], list[bytes]]] = {
        2: lambda one, two: [one, two[:70] + bytes([two[70] ^ 1]) + two[71:]],
        4: lambda one, two: [one[:50]],
        6: lambda one, two: [one, two + bytes(96)],
        8: lambda one, two: [coded, two],
        10: lambda one, two: [two, one],
    }
    sums = [(spoiled[k](*frames) if k in spoiled else frames, how) for k, (frames, how) in enumerate(sums_of(2, 12))]
    found = decode_many(cuda_kernels(), sums)
    for (frames, how), result in zip(sums, found):
        alone = outcome(cuda_kernels(), frames, **how)
        assert alone == (result if isinstance(result, tuple) else result.tobytes())
    assert [k for k, result in enumerate(found) if isinstance(result, tuple)] == list(spoiled)


def some_encodings(memory: Buffer, spec: native.Spec, count: int) -> ctypes.Array[Encoding]:
    """Each with memory of its own, 8192 bytes."""
    return (Encoding * count)(
        *(
            Encoding(ctypes.addressof(spec), at, at + 4096, 4096)
            for at in range(memory.address, memory.address + 8192 * count, 8192)
        )
    )


def some_summations(memory: Buffer, expected: native.Expectation, count: int) -> ctypes.Array[Summation]:
    """The same."""
    return (Summation * count)(
        *(
            Summation(at, 4096, ctypes.addressof(expected), 1, 1.0, at + 4096, at + 8184)
            for at in range(memory.address, memory.address + 8192 * count, 8192)
        )
    )


@pytest.mark.parametrize("k", [0, 2])
def test_wrong_arguments(k: int) -> None:
    """Of any of the list; what else is on it does not matter."""
    c, size = cuda_kernels().c, ctypes.c_uint64()
    spec, memory, work = make_spec(600, levels=7, bucket_size=512), Buffer(3 * 8192), Buffer(1 << 20)
    others = [make_spec(600, codec="rans", levels=7, bucket_size=512), native.Spec()]
    refused = [
        {"gradient": None}, {"gradient": memory.address + 2}, {"frame": None}, {"frame": memory.address + 4},
        {"spec": None}, *({"spec": ctypes.addressof(other)} for other in others),
    ]  # fmt: skip
    for status, wrong in [(0, {}), *((1, wrong) for wrong in refused), (2, {"capacity": 300})]:
        table = some_encodings(memory, spec, 3)
        for name, value in wrong.items():
            setattr(table[k], name, value)
        found = c.qsgd_cuda_encode_many_scratch(table, 3, size)
        assert found == (1 if "spec" in wrong else 0)
        assert c.qsgd_cuda_encode_many(table, 3, None, work.address, 1 << 20, None) == status, wrong
    expected, of_no_dtype = native.Expectation(600, 0, 0, 1, 0), native.Expectation(600, 0, 0, 9, 0)
    refused = [
        {"frames": None}, {"frames": memory.address + 4}, {"expected": None},
        {"expected": ctypes.addressof(of_no_dtype)},
        {"frame_count": 0}, {"out": None}, {"out": memory.address + 2}, {"verdict": None},
        {"verdict": memory.address + 2},
    ]  # fmt: skip
    for status, wrong in [(0, {}), *((1, wrong) for wrong in refused)]:
        table = some_summations(memory, expected, 3)
        for name, value in wrong.items():
            setattr(table[k], name, value)
        found = c.qsgd_cuda_decode_sum_many_scratch(table, 3, size)
        assert found == (1 if "frame_count" in wrong else 0)
        assert c.qsgd_cuda_decode_sum_many(table, 3, None, work.address, 1 << 20, None) == status, wrong


@pytest.mark.parametrize("what", ["encode", "decode_sum"])
def test_wrong_arguments_of_a_whole_list(what: str) -> None:
    c, size = cuda_kernels().c, ctypes.c_uint64()
    memory, work = Buffer(2 * 8192), Buffer(1 << 20)
    spec, expected = make_spec(600, levels=7, bucket_size=512), native.Expectation(600, 0, 0, 1, 0)
    table: Any = some_encodings(memory, spec, 2) if what == "encode" else some_summations(memory, expected, 2)
    call, ask = getattr(c, f"qsgd_cuda_{what}_many"), getattr(c, f"qsgd_cuda_{what}_many_scratch")
    assert ask(table, 2, size) == 0
    right = {"table": table, "count": 2, "late": None, "scratch": work.address, "room": size.value}
    wrong = [
        {"table": None}, {"count": 0}, {"scratch": None}, {"scratch": work.address + 4}, {"room": size.value - 1},
        *([{"late": work.address + 4}] if what == "encode" else []),
    ]  # fmt: skip
    for status, changed in [(0, {}), *((1, each) for each in wrong)]:
        assert call(*{**right, **changed}.values(), None) == status, changed
    assert [ask(None, 2, size), ask(table, 0, size), ask(table, 2, None)] == [1, 1, 1]
