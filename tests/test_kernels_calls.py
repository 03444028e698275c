"""How the kernels may be called: any alignment, any number of threads, any floating-point mode of the caller, wrong
arguments. The bytes are the same, or nothing is written."""

from __future__ import annotations

import ctypes
import ctypes.util
import itertools
import platform
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import reference as ref
from support import DTYPES, ISAS, NORMS, SOME_CODERS, Array, Kernels, all_kernels, make_input, make_spec, same_bits

from hvd_qsgd.errors import QSGDError

Case = dict[str, Any]


def test_this_machine_has_what_it_should() -> None:
    """The environment variable lowers the instruction set; `baseline` runs everywhere."""
    names = [kernels.isa for kernels in all_kernels()]
    assert "baseline" in names
    assert names == [isa for isa in ISAS if isa in names]
    best = names[0]
    for isa in (*ISAS, ""):
        assert Kernels(isa).isa == (isa if isa in names else best)
    with pytest.raises(QSGDError, match=r"HVD_QSGD_ISA='AVX2' is unknown"):
        Kernels("AVX2")


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_alignment(dtype: str) -> None:
    for (codec, levels), bucket_size, n in itertools.product(SOME_CODERS, (16, 100, 512), (17, 2560, 6000)):
        how: Case = {"codec": codec, "levels": levels, "bucket_size": bucket_size, "dtype": dtype}
        array = make_input("patchwork", n, dtype)
        frames = [ref.encode(array, **how, rank=rank) for rank in range(2)]
        values = ref.decode_sum(frames, count=n, dtype=dtype, tensor=0, step=0)
        for kernels, offset in itertools.product(all_kernels(), (1, 2, 3, 5, 8, 31)):
            assert kernels.encode(array, **how, offset=offset) == frames[0], (kernels.isa, how, offset)
            decoded = kernels.decode_sum(frames, count=n, dtype=dtype, offset=offset)
            assert same_bits(decoded, values), (kernels.isa, how, offset)


LARGE = 2**21 + 12345  # enough for two threads, and for writing around the caches
LARGER = 2**22 + 12345  # enough for four


@pytest.mark.parametrize(
    ("codec", "levels", "bucket_size", "norm", "dtype", "n", "kind", "factor"),
    [
        ("packed", 7, 512, "max", "float32", LARGER, "patchwork", 0.5),
        ("packed", 7, 65536, "l2", "float32", LARGE, "gaussian", 0.5),
        ("packed", 127, 100, "l2", "bfloat16", LARGE, "special", 0.5),
        ("packed", 1, None, "l2", "float32", LARGER, "mixed", 0.5),
        ("packed", 2, None, "max", "float16", LARGE, "sparse", 0.5),
        ("packed", 5, 1024, "max", "float32", LARGE, "huge", 0.0),  # infinity times 0
        ("ternary", 1, 3001, "l2", "float32", LARGE, "gaussian", 0.5),
        ("ternary", 1, None, "max", "bfloat16", LARGE, "gaussian", 0.5),
    ],
)
def test_threads(
    codec: str, levels: int, bucket_size: int | None, norm: str, dtype: str, n: int, kind: str, factor: float
) -> None:
    how: Case = {"codec": codec, "levels": levels, "bucket_size": bucket_size, "norm": norm, "dtype": dtype}
    array = make_input(kind, n, dtype)
    frames = [ref.encode(array, **how, squared_norm=True, rank=rank) for rank in range(2)]
    where = {"count": n, "dtype": dtype, "factor": factor}
    values = ref.decode_sum(frames, tensor=0, step=0, **where)
    assert factor != 0 or (np.isnan(values).any() and not np.isnan(values).all())
    for kernels, threads in itertools.product(all_kernels(), (1, 4)):
        assert kernels.encode(array, **how, squared_norm=True, threads=threads) == frames[0], (kernels.isa, threads)
        for offset in (0, 4):
            decoded = kernels.decode_sum(frames, **where, threads=threads, offset=offset)
            assert same_bits(decoded, values), (kernels.isa, threads, offset)


def test_flush_to_zero_does_not_matter() -> None:
    """PyTorch users set it for speed; frames and sums keep their subnormals, and the caller keeps the setting."""
    torch = pytest.importorskip("torch")
    array = make_input("subnormal", 12000)[:6000]
    large = make_input("patchwork", LARGE)
    cases: list[tuple[Array, Case]] = [(large, {"levels": 7, "bucket_size": None, "norm": "l2"})]
    for (codec, levels), bucket_size, norm in itertools.product(SOME_CODERS, (3, 64, 512), NORMS):
        cases.append((array, {"codec": codec, "levels": levels, "bucket_size": bucket_size, "norm": norm}))
    frames = [ref.encode(values, **how) for values, how in cases]
    sums = [
        ref.decode_sum([frame], count=a.size, dtype="float32", tensor=0, step=0) for (a, _), frame in zip(cases, frames)
    ]
    assert np.abs(array).max() < 2.0**-126
    assert all(values.any() for values in sums)
    all_kernels()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        results = [
            (k.isa, k.encode(a, **how, threads=4), k.decode_sum([frame], count=a.size, threads=4))
            for (a, how), frame in zip(cases, frames)
            for k in all_kernels()
        ]
        assert float(torch.tensor(1e-39) * torch.tensor(0.5)) == 0
    finally:
        torch.set_flush_denormal(False)
    for k, (isa, frame, values) in enumerate(results):
        which = k // len(all_kernels())
        assert frame == frames[which], (isa, cases[which][1])
        assert same_bits(values, sums[which]), (isa, cases[which][1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"codec": 0}, {"codec": 6}, {"norm": 0}, {"norm": 3}, {"dtype": 0}, {"dtype": 4}, {"flags": 4},
        {"levels": 0}, {"levels": 128}, {"codec": 2, "levels": 2}, {"bucket_size": 0}, {"bucket_size": 2**48 + 1},
        {"count": 2**48 + 1},
    ],
)  # fmt: skip
def test_wrong_arguments(wrong: dict[str, int]) -> None:
    for kernels in all_kernels():
        spec = make_spec(16, levels=7, bucket_size=16)
        for name, value in wrong.items():
            setattr(spec, name, value)
        room = np.zeros(1024, np.uint8)
        size = ctypes.c_uint64()
        assert kernels.c.qsgd_frame_bytes(ctypes.byref(spec), ctypes.byref(size)) == 1
        address = room.ctypes.data
        assert kernels.c.qsgd_encode(ctypes.byref(spec), address, address, room.size, 1, size) == 1
        assert not room.any()


def test_a_buffer_that_is_too_small() -> None:
    values = np.ones(100, np.float32)
    spec = make_spec(100, levels=7, bucket_size=16)
    for kernels in all_kernels():
        room = np.zeros(len(kernels.encode(values, levels=7, bucket_size=16)) - 1, np.uint8)
        size = ctypes.c_uint64()
        status = kernels.c.qsgd_encode(ctypes.byref(spec), values.ctypes.data, room.ctypes.data, room.size, 1, size)
        assert status == 2
        assert not room.any()


@pytest.mark.parametrize("mode", [0x400, 0x800, 0xC00])  # of x86's fenv.h: down, up, toward zero
def test_rounding_mode_does_not_matter(mode: int) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("rounding modes are numbered otherwise here")
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    array = make_input("mixed", 6000)
    frames = {norm: ref.encode(array, levels=7, bucket_size=512, norm=norm, squared_norm=True) for norm in NORMS}
    values = {n: ref.decode_sum([f], count=6000, dtype="float32", tensor=0, step=0) for n, f in frames.items()}
    for kernels, norm in itertools.product(all_kernels(), NORMS):
        assert libm.fesetround(mode) == 0
        try:
            frame = kernels.encode(array, levels=7, bucket_size=512, norm=norm, squared_norm=True)
            decoded = kernels.decode_sum([frames[norm]], count=6000)
            kept = libm.fegetround()
        finally:
            libm.fesetround(0)
        assert (frame == frames[norm], same_bits(decoded, values[norm]), kept) == (True, True, mode), kernels.isa


def test_calls_from_many_threads_at_once() -> None:
    """ctypes lets go of the interpreter's lock: encoders and decoders share nothing."""
    arrays = [make_input("gaussian", 100_000 + k) for k in range(4)]
    frames = [ref.encode(array, levels=7, bucket_size=512) for array in arrays]
    sums = [ref.decode_sum([f], count=a.size, dtype="float32", tensor=0, step=0) for a, f in zip(arrays, frames)]
    kernels = all_kernels()[0]

    def work(k: int) -> bool:
        right = [kernels.encode(arrays[k], levels=7, bucket_size=512, threads=2) == frames[k] for _ in range(20)]
        right += [same_bits(kernels.decode_sum(frames[k : k + 1], count=arrays[k].size), sums[k]) for _ in range(20)]
        return all(right)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [True] * 4
