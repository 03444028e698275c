"""`hvd_qsgd.mpi.allreduce`: NumPy arrays over mpi4py, no framework."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import ranktools as rt
from mpi4py import MPI
from rankcommon import on_two_ranks

from hvd_qsgd import mpi

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]
EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


def values(*shape: int, seed: int = 0, rank: int = rt.RANK) -> np.ndarray[Any, Any]:
    return np.random.default_rng([seed, rank]).standard_normal(shape)


def assert_close(
    result: np.ndarray[Any, Any], mine: np.ndarray[Any, Any], comm: Any, levels: int, average: bool = True
) -> None:
    everyone = [array.astype(np.float64) for array in comm.allgather(mine)]
    factor = 1 / len(everyone) if average else 1.0
    bound = factor * sum(rt.unit_of(array, levels, 512, "max") for array in everyone)
    magnitude = factor * sum(np.abs(array) for array in everyone) + bound
    error = np.abs(result.astype(np.float64) - factor * sum(everyone))
    assert (error <= bound + EPSILON.get(mine.dtype.name, 2.0**-21) * magnitude + 1e-7).all()
    assert result.dtype == mine.dtype
    assert result.shape == mine.shape
    assert len(set(comm.allgather(result.tobytes()))) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["average", "sum"])
def test_within_the_grid_and_the_same_everywhere(op: str, dtype: Any) -> None:
    for shape in ((50, 60), (), (7,), (0, 3), (5, 1, 211)):
        array = values(*shape).astype(dtype) if shape else np.asarray(values(1)[0], dtype)
        before = array.copy()
        result = mpi.allreduce(array, op=op, bits=6)
        assert_close(result, array, MPI.COMM_WORLD, 31, op == "average")
        assert np.array_equal(array, before)
        assert not np.shares_memory(array, result)
        result[...] = 0  # it is ours


def test_layouts_and_lists() -> None:
    array = values(60, 50)
    for view in (array.T, array[::2], array[:, 7:9], np.asfortranarray(array), array[::-1]):
        assert_close(mpi.allreduce(view, bits=8), view, MPI.COMM_WORLD, 127)
    result = mpi.allreduce([[1.0, 2.0], [3.0, -4.0]], op="sum", bits=8, bucket_size=1)
    assert np.array_equal(result, rt.SIZE * np.array([[1.0, 2.0], [3.0, -4.0]]))


def test_settings_may_differ_between_ranks() -> None:
    array = values(3000).astype(np.float32)
    how: dict[str, Any] = [{"bits": 2}, {"codec": "ternary"}, {"levels": 3, "norm": "l2"}, {"bits": 8, "seed": 5}][
        rt.RANK
    ]
    result = mpi.allreduce(array, **how, bucket_size=100)
    assert len(set(rt.from_all_ranks(result.tobytes()))) == 1


def test_communicators() -> None:
    halves = MPI.COMM_WORLD.Split(rt.RANK % 2, -rt.RANK)  # in reverse order
    array = values(2000)
    for _ in range(3):
        assert_close(mpi.allreduce(array, halves, bits=8), array, halves, 127)
        assert_close(mpi.allreduce(array, bits=8), array, MPI.COMM_WORLD, 127)
        assert_close(mpi.allreduce(array, MPI.COMM_SELF, bits=8), array, MPI.COMM_SELF, 127)
    halves.Free()
    for _ in range(20):  # communicators come and go
        other = MPI.COMM_WORLD.Dup()
        mpi.allreduce(array[:10], other)
        other.Free()


def test_every_call_draws_anew_and_every_run_the_same() -> None:
    def run() -> list[bytes]:
        comm = MPI.COMM_WORLD.Dup()
        results = [mpi.allreduce(np.linspace(-1, 1, 999), comm, bits=3).tobytes() for _ in range(4)]
        comm.Free()
        return results

    first = run()
    assert len(set(first)) == 4
    assert run() == first


def test_many_calls() -> None:
    array = values(100).astype(np.float32)
    total = np.zeros(100)
    calls = 300
    for _ in range(calls):
        total += mpi.allreduce(array, bits=2)
    exact = sum(values(100, rank=rank).astype(np.float32).astype(float) for rank in range(rt.SIZE)) / rt.SIZE
    deviation = np.sqrt(sum(np.abs(values(100, rank=rank)).max() ** 2 for rank in range(rt.SIZE))) / rt.SIZE / 2
    assert np.abs(total / calls - exact).max() < 6 * deviation / np.sqrt(calls), "unbiased, so the mean converges"


def test_disagreements_are_told_to_all() -> None:
    small, large = values(100), values(1 + 100 * (1 + rt.RANK))
    rt.assert_all_raise(lambda: mpi.allreduce(large), "same tensors")
    rt.assert_all_raise(lambda: mpi.allreduce(small.astype(np.float32 if rt.RANK else np.float16)), "dtype")
    one_late = MPI.COMM_WORLD.Dup()
    mpi.allreduce(small, one_late)
    assert_close(mpi.allreduce(small, bits=8), small, MPI.COMM_WORLD, 127)


def test_wrong_arguments() -> None:
    array = values(10)
    for arguments, word in [
        ({"op": "max"}, "op='max'"),
        ({"bits": 9}, "bits=9"),
        ({"bits": 4, "levels": 7}, "bits=4"),
        ({"norm": "l1"}, "norm='l1'"),
        ({"codec": "zip"}, "codec='zip'"),
        ({"seed": -1}, "seed=-1"),
        ({"bucket_size": 0}, "bucket_size=0"),
        ({"comm": 3}, "comm=3"),
        ({"comm": MPI.COMM_NULL}, "comm="),
    ]:
        rt.assert_all_raise(lambda: mpi.allreduce(array, **arguments), word)  # noqa: B023
    for wrong in (np.arange(10), np.array(["a"]), np.zeros(3, complex), np.zeros(3, ">f4")):
        rt.assert_all_raise(lambda: mpi.allreduce(wrong), "cannot be encoded")  # noqa: B023
    assert_close(mpi.allreduce(array, bits=8), array, MPI.COMM_WORLD, 127)


@pytest.mark.parametrize("wrong", [{"bits": 9}, {"op": "max"}, {"array": np.arange(10)}], ids=str)
def test_a_wrong_argument_on_one_rank_is_told_to_all(wrong: dict[str, Any]) -> None:
    """And is a call like any other: the next ones of all ranks belong together."""
    arguments = {"array": values(10), **(wrong if rt.RANK == 1 else {})}
    word = str(wrong.get("bits", wrong.get("op", "cannot be encoded")))
    rt.assert_all_raise(lambda: mpi.allreduce(**arguments), word)
    assert_close(mpi.allreduce(values(10), bits=8), values(10), MPI.COMM_WORLD, 127)


@on_two_ranks
def test_communicators_take_their_duplicates_along() -> None:
    """MPI has some thousands of them at most."""
    for _ in range(3000):
        comm = MPI.COMM_WORLD.Dup()
        mpi.allreduce(values(10), comm)
        comm.Free()
