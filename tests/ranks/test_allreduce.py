"""`hvd.allreduce` and `hvd.grouped_allreduce` with QSGD."""

from __future__ import annotations

import zlib
from typing import Any

import horovod.torch as hvd
import numpy as np
import pytest
import ranktools as rt
import reference as ref
import torch

from hvd_qsgd.torch import QSGD

DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float64: "float32"}
CONFIGURATIONS: list[dict[str, Any]] = [
    {"bits": 2},
    {"bits": 4, "norm": "l2"},
    {"bits": 8, "bucket_size": None},
    {"levels": 5, "bucket_size": 100},
    {"levels": 1, "codec": "ternary", "norm": "l2", "bucket_size": 64},
    {"bits": 3, "dither": "subtractive"},
]


def bits_of(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """What `reference` takes and gives: bfloat16 as uint16."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.float().numpy() if tensor.dtype is torch.float64 else tensor.numpy()


@pytest.mark.parametrize("transport", ["horovod", "mpi"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_is_the_reference_s_to_the_last_bit(dtype: torch.dtype, transport: str) -> None:
    for k, configuration in enumerate(CONFIGURATIONS):
        compressor = QSGD(seed=k, name=f"exact{k}{dtype}{transport}", transport=transport, **configuration)
        how = {"bucket_size": 512, "norm": "max", "codec": "packed", **configuration}
        levels = how.get("levels") or 2 ** (how["bits"] - 1) - 1
        for step, op in enumerate((hvd.Average, hvd.Sum)):
            gradient = rt.randn(37, 41, seed=step, dtype=dtype)
            result = rt.reduced(gradient, compressor, op=op)
            name = DTYPES[dtype]
            place = {"count": gradient.numel(), "tensor": zlib.crc32(f"exact{k}{dtype}{transport}/#0".encode())}
            frames = [
                ref.encode(
                    values, codec=how["codec"], levels=levels, bucket_size=how["bucket_size"], norm=how["norm"],
                    seed=k, rank=rank, tensor=place["tensor"], step=step, dtype=name, subtractive="dither" in how,
                )
                for rank, values in enumerate(rt.from_all_ranks(bits_of(gradient)))
            ]  # fmt: skip
            factor = 1 / rt.SIZE if op == hvd.Average else 1.0
            expected = ref.decode_sum(frames, dtype=name, step=step, factor=factor, **place)
            assert result.dtype is dtype
            assert result.shape == gradient.shape
            assert np.array_equal(bits_of(result).ravel().view(np.uint8), expected.view(np.uint8)), configuration


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", [hvd.Average, hvd.Sum])
def test_within_the_grid(op: Any, dtype: torch.dtype) -> None:
    for how in ({"bits": 2}, {"bits": 8, "bucket_size": 64}, {"bits": 3, "norm": "l2", "bucket_size": None}):
        gradient = rt.randn(60, 50, dtype=dtype)
        result = rt.reduced(gradient, QSGD(**how), op=op)
        error = rt.assert_within_grid(result, gradient, average=op == hvd.Average, **how)
        rt.assert_replicas_equal([result])
        assert how["bits"] != 8 or error < 0.02


def test_scale_factors_apply() -> None:
    gradient = rt.randn(50, 50)
    once = rt.reduced(gradient, QSGD(), op=hvd.Sum)
    scaled = rt.reduced(gradient, QSGD(), op=hvd.Sum, prescale_factor=0.5, postscale_factor=8.0)
    assert torch.equal(scaled, 4 * once)
    nothing = rt.reduced(gradient, QSGD(), op=hvd.Sum, prescale_factor=0.0)
    assert torch.equal(nothing, torch.zeros_like(once))


def test_the_class_itself() -> None:
    gradient = rt.randn(50, 50)
    result = rt.reduced(gradient, QSGD)
    rt.assert_within_grid(result, gradient)
    assert QSGD.stats().tensors_compressed >= 1
    again = rt.reduced(gradient, QSGD)
    assert not torch.equal(result, again), "another step, other random numbers"


def test_mixed_sizes_and_dtypes_in_a_group() -> None:
    tensors = [
        rt.randn(40, 50),
        rt.randn(40, 50, dtype=torch.float64),
        rt.randn(40, 50, dtype=torch.float16),
        rt.randn(40, 50, dtype=torch.bfloat16),
        rt.randn(3000),
        rt.randn(3, 4),
        rt.randn(3, 4, dtype=torch.bfloat16),
        rt.randn(3, 4, dtype=torch.float16),
        rt.randn(1, 1024, 1),
    ]
    compressor = QSGD(8)
    for tensors_now in (tensors, list(reversed(tensors))):
        results = rt.reduced(tensors_now, compressor)
        for tensor, result in zip(tensors_now, results):
            rt.assert_within_grid(result, tensor, bits=8 if tensor.numel() >= 1024 and tensor.dim() > 1 else 60)
            rt.assert_replicas_equal([result])
    stats = compressor.stats()
    assert (stats.steps, stats.tensors_compressed, stats.tensors_skipped) == (2, 10, 8)
    with torch.no_grad():
        results = rt.reduced(tensors[:3], compressor, op=hvd.Sum)
    for tensor, result in zip(tensors, results):
        rt.assert_within_grid(result, tensor, bits=8, average=False)


def test_integers_pass_through_exactly() -> None:
    for dtype in (torch.int32, torch.int64):
        tensor = torch.randint(0, 20, (50, 50), generator=rt.rng(5)).to(dtype)
        total = rt.reduced(tensor, QSGD(), op=hvd.Sum)
        assert total.dtype is dtype
        assert torch.equal(total, torch.stack(rt.from_all_ranks(tensor)).sum(0).to(dtype))


def test_small_and_one_dimensional_ones_pass_through_exactly() -> None:
    compressor = QSGD()
    for shape in ((5000,), (1023,), (31, 33), (), (1,), (2, 3)):
        tensor = rt.randn(*shape)
        result = rt.reduced(tensor, compressor, op=hvd.Sum)
        expected = rt.reduced(tensor, hvd.Compression.none, op=hvd.Sum)
        assert torch.equal(result, expected)
    assert compressor.stats().tensors_compressed == 0
    assert compressor.stats().bytes_sent == 0


@pytest.mark.parametrize("bits", [2, 8])
def test_every_size_can_be_compressed(bits: int) -> None:
    compressor = QSGD(bits, min_size=0, bucket_size=16)
    for shape in ((), (1,), (2, 3), (15,), (17,), (511,), (513,), (1, 1, 1, 1)):
        tensor = rt.randn(*shape)
        result = rt.reduced(tensor, compressor)
        rt.assert_within_grid(result, tensor, bits=bits, bucket_size=16)
        rt.assert_replicas_equal([result])
    assert compressor.stats().tensors_compressed == 8


def test_empty_tensors() -> None:
    for compressor in (QSGD(), QSGD(min_size=0), QSGD(min_size=0, bucket_size=None, norm="l2")):
        for shape in ((0,), (0, 5), (3, 0, 2)):
            result = rt.reduced(torch.empty(shape), compressor)
            assert result.shape == shape
        mixed = rt.reduced([torch.empty(0, 4), rt.randn(40, 40)], compressor)
        assert mixed[0].shape == (0, 4)
        rt.assert_replicas_equal(mixed)


def test_layouts() -> None:
    base = rt.randn(60, 50)
    tensors = {
        "transposed": rt.randn(50, 60).t(),
        "sliced": rt.randn(60, 100)[:, ::2],
        "offset": rt.randn(61, 50)[1:],
        "expanded": rt.randn(1, 50).expand(60, 50),
        "channels_last": rt.randn(8, 6, 7, 9).contiguous(memory_format=torch.channels_last),
        "float64 transposed": rt.randn(50, 60, dtype=torch.float64).t(),
        "inner view": base[3:, 7:40],
    }
    for what, tensor in tensors.items():
        assert tensor.numel() >= 1024
        before = tensor.clone()
        result = rt.reduced(tensor, QSGD(8))
        rt.assert_within_grid(result, tensor, bits=8, what=what)
        rt.assert_replicas_equal([result], what)
        assert torch.equal(tensor, before), f"{what}: the caller's tensor was written"
        small = tensor.flatten(0)[:20].view(4, 5).t()
        exact = rt.reduced(small.contiguous(), hvd.Compression.none, op=hvd.Sum)
        assert torch.equal(rt.reduced(small, QSGD(), op=hvd.Sum), exact)


def test_nothing_is_shared() -> None:
    """The caller's tensor is not written, and no two results share memory, nor with what they were made from."""
    compressor = QSGD()
    inputs = [rt.randn(40, 40), rt.randn(40, 40), rt.randn(5), rt.randn(40, 40, dtype=torch.float64)]
    before = [tensor.clone() for tensor in inputs]
    results: list[torch.Tensor] = []
    for _ in range(3):
        results += rt.reduced(inputs, compressor)
        results += [rt.reduced(tensor, compressor) for tensor in inputs]
    kept = [result.clone() for result in results]
    pointers = [tensor.untyped_storage().data_ptr() for tensor in (*inputs, *results)]
    assert len(set(pointers)) == len(pointers)
    for result in results[: len(results) // 2]:
        result.fill_(float("nan"))
    for _ in range(3):
        rt.reduced(inputs, compressor)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before))
    assert all(torch.equal(a, b) for a, b in zip(results[len(results) // 2 :], kept[len(results) // 2 :]))


def test_gradients_do_not_flow() -> None:
    tensor = rt.randn(40, 40).requires_grad_()
    rt.assert_all_raise(lambda: rt.reduced(tensor, QSGD()), "detach()", "no_grad")
    rt.assert_all_raise(lambda: rt.reduced([tensor, tensor], QSGD()), "detach()")
    with torch.no_grad():
        result = rt.reduced(tensor, QSGD())
    rt.assert_within_grid(result, tensor)
    assert not result.requires_grad
    small = rt.randn(4, 4).requires_grad_()  # uncompressed: as without compression
    rt.reduced(small, QSGD(), op=hvd.Sum).backward(torch.ones(4, 4))
    assert torch.equal(small.grad, torch.full((4, 4), float(rt.SIZE)))


def test_special_values() -> None:
    gradient = rt.randn(64, 64)
    flat = gradient.view(-1)
    if rt.RANK == 0:
        flat[700] = float("nan")  # bucket 1
    if rt.RANK == rt.SIZE - 1:
        flat[1300] = float("inf")  # bucket 2
        flat[4095] = float("-inf")  # bucket 7
    result = rt.reduced(gradient, QSGD()).view(-1)
    rt.assert_replicas_equal([result])
    bad = torch.zeros(8, 512, dtype=torch.bool)
    bad[[1, 2, 7]] = True
    assert torch.equal(result.isnan().view(8, 512), bad)
    assert not result.isinf().any()
    zeros = rt.reduced(torch.zeros(64, 64), QSGD(2))
    assert torch.equal(zeros, torch.zeros(64, 64))
    huge = rt.reduced(torch.full((64, 64), 1e300, dtype=torch.float64), QSGD())
    assert huge.isnan().all(), "float64 travels as float32"
    top = rt.reduced(torch.full((64, 64), 3e38), QSGD())
    assert top.isinf().all() or torch.allclose(top, torch.full((64, 64), 3e38))
    rt.assert_replicas_equal([top])


@pytest.mark.parametrize("function", ["reducescatter", "grouped_reducescatter"])
def test_reducescatter_is_refused(function: str) -> None:
    compressor = QSGD()
    tensor = rt.randn(40, 40)
    arguments = [tensor, tensor] if function.startswith("grouped") else tensor
    for _ in range(2):
        rt.assert_all_raise(lambda: rt.reduced(arguments, compressor, function=function), "reducescatter")
    rt.assert_within_grid(rt.reduced(tensor, compressor), tensor)  # and goes on working


def test_process_sets() -> None:
    for k, process_set in enumerate(rt.PROCESS_SETS):
        if process_set.included():
            compressor = QSGD(process_set=process_set)
            for op in (hvd.Average, hvd.Sum):
                gradient = rt.randn(50, 50, seed=9)
                result = rt.reduced(gradient, compressor, name=f"set{k}", op=op, process_set=process_set)
                everyone = [rt.randn(50, 50, seed=9, rank=rank) for rank in process_set.ranks]
                rt.assert_within_grid(result, gradient, average=op == hvd.Average, everyone=everyone)
            mine = rt.digest([result])
        else:
            mine = ""
        digests = rt.from_all_ranks(mine)
        assert len({digests[rank] for rank in process_set.ranks}) == 1


def test_a_rank_outside_the_process_set_is_told() -> None:
    compressor = QSGD(process_set=rt.ODD)
    found = rt.outcomes(lambda: rt.reduced(rt.randn(50, 50), compressor, name="odd", process_set=rt.ODD))
    for rank, (kind, text) in enumerate(found):
        if rank in rt.ODD.ranks:
            assert not kind, text
        else:
            assert kind == "QSGDError"
            assert "not in" in text
    unregistered = QSGD(process_set=hvd.ProcessSet([0, rt.SIZE - 1]))
    rt.assert_all_raise(lambda: rt.reduced(rt.randn(50, 50), unregistered), "not registered", "add_process_set")


def test_many_names_for_one_compressor_and_one_name_for_many_calls() -> None:
    compressor = QSGD(8)
    for k in range(5):
        tensors = [rt.randn(40, 40 + k, seed=i) for i in range(k + 1)]
        handles = rt.reduced(tensors, compressor, name=f"same{k % 2}")
        for tensor, result in zip(tensors, handles):
            rt.assert_within_grid(result, tensor, bits=8)
