"""Error feedback: what encoding left out of a tensor is added to its next gradient."""

from __future__ import annotations

import copy
import io
from typing import Any

import horovod.torch as hvd
import numpy as np
import pytest
import ranktools as rt
import torch
from rankcommon import on_two_ranks

import hvd_qsgd
from hvd_qsgd import QSGDError
from hvd_qsgd.steps import tensor_id
from hvd_qsgd.torch import QSGD

CODECS: list[dict[str, Any]] = [
    {"codec": "onebit"}, {"bits": 2, "bucket_size": None}, {"variance": 0.5},
    {"codec": "ternary", "dither": "subtractive"},
]  # fmt: skip
Array = np.ndarray[Any, Any]


class Expected:
    """What the ranks must get, from `hvd_qsgd.encode` and `decode` alone."""

    def __init__(self, name: str, **how: Any) -> None:
        self.tensor, self.how = tensor_id(name, "#0"), how
        self.residual: Array | None = None

    def next(self, gradient: torch.Tensor, step: int, factor: float = 1 / rt.SIZE) -> Array:
        mine = gradient.detach().float().contiguous().numpy()
        before = self.residual if self.residual is not None and self.residual.shape == mine.shape else 0
        total = np.float32(mine + before)
        frame = hvd_qsgd.encode(total, rank=rt.RANK, tensor=self.tensor, step=step, **self.how)
        rest = total - hvd_qsgd.decode(frame).reshape(total.shape)
        self.residual = np.where(np.isfinite(rest), rest, np.float32(0))
        return hvd_qsgd.decode_sum(rt.from_all_ranks(frame), factor).reshape(total.shape)


@pytest.mark.parametrize("transport", ["horovod", "mpi"])
@pytest.mark.parametrize(
    ("how", "dtype"),
    [*zip(CODECS, [torch.float32, torch.float16, torch.bfloat16, torch.float64])],
    ids=str,
)
def test_every_step_is_what_it_must_be(how: dict[str, Any], dtype: torch.dtype, transport: str) -> None:
    name = f"feedback {how} {dtype} {transport}"
    compressor, expected = QSGD(name=name, error_feedback=True, transport=transport, **how), Expected(name, **how)
    for step in range(4):
        gradient = rt.randn(60, 70, seed=step, dtype=dtype)
        given = (gradient if step % 2 else gradient.t().contiguous().t()).clone()
        op = hvd.Sum if step == 2 else hvd.Average
        result = rt.reduced(given, compressor, op=op)
        exact = expected.next(gradient, step, 1.0 if step == 2 else 1 / rt.SIZE)
        assert torch.equal(result, torch.from_numpy(exact).to(dtype))
        assert result.dtype is dtype
        assert torch.equal(given, gradient)
        (residual,) = compressor.state_dict()["residuals"]["tensors"].values()
        assert residual.dtype is torch.float32
        assert np.array_equal(residual.numpy(), expected.residual)
    assert "residuals" not in QSGD(**how).state_dict()


def test_it_removes_the_bias() -> None:
    """The mean of 50 results comes near the gradient; without error feedback it stays where it is."""
    gradient = rt.randn(40, 50)
    exact = np.mean(rt.from_all_ranks(gradient.numpy()), axis=0)
    errors = []
    for error_feedback in (True, False):
        compressor = QSGD(codec="onebit", error_feedback=error_feedback)
        mean = sum(rt.reduced(gradient, compressor).numpy() for _ in range(50)) / 50
        errors.append(np.square(mean - exact).sum() / np.square(exact).sum())
    assert errors[0] < 0.06 < 0.2 < errors[1]


@pytest.mark.parametrize("how", CODECS[:3], ids=str)
def test_what_is_not_finite_does_not_stay(how: dict[str, Any]) -> None:
    """Its bucket's residual is zero again; the next step is well."""
    name = f"not finite {how}"
    compressor, expected = QSGD(name=name, error_feedback=True, **how), Expected(name, **how)
    for step in range(5):
        gradient = rt.randn(40, 50, seed=step)
        if step in (1, 3) and rt.RANK == rt.SIZE - 1:
            gradient[0, 0] = float("inf" if step == 1 else "nan")
        result = rt.reduced(gradient, compressor)
        exact = expected.next(gradient, step)
        assert np.array_equal(result.numpy(), exact, equal_nan=True)
        assert result.isnan().any() == (step in (1, 3))
        (residual,) = compressor.state_dict()["residuals"]["tensors"].values()
        assert residual.isfinite().all()
        assert np.array_equal(residual.numpy(), expected.residual)


def test_a_tensor_of_another_shape_starts_at_zero() -> None:
    compressor, expected = QSGD(name="shapes", codec="onebit", error_feedback=True), Expected("shapes", codec="onebit")
    for step, shape in enumerate([(40, 50), (40, 50), (50, 40), (60, 50), (60, 50)]):
        gradient = rt.randn(*shape, seed=step)
        assert np.array_equal(rt.reduced(gradient, compressor).numpy(), expected.next(gradient, step))
        (residual,) = compressor.state_dict()["residuals"]["tensors"].values()
        assert residual.shape == shape


def test_measuring_the_error() -> None:
    compressor = QSGD(codec="onebit", error_feedback=True, measure_error=True)
    rt.reduced(rt.randn(40, 50), compressor)
    (residual,) = compressor.state_dict()["residuals"]["tensors"].values()
    assert compressor.stats().squared_error == pytest.approx(float(residual.double().square().sum()))


@on_two_ranks
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("error_feedback", [False, True])
def test_clipping(dtype: torch.dtype, error_feedback: bool) -> None:
    """As TernGrad has it, before the residual is added."""
    name = f"clipping {dtype} {error_feedback}"
    compressor = QSGD.preset("terngrad", name=name, error_feedback=error_feedback)
    expected = Expected(name, codec="ternary", bucket_size=None)
    for step in range(3):
        gradient = rt.randn(40, 50, seed=step, dtype=dtype) if step < 2 else torch.full((40, 50), 3.0, dtype=dtype)
        values = gradient.double().numpy() if dtype is not torch.float64 else gradient.float().double().numpy()
        limit = 2.5 * values.std() or np.inf
        exact = np.clip(values, *((-limit, limit) if step < 2 else (-np.inf, np.inf)))
        if not error_feedback:
            expected.residual = None
        mean = expected.next(
            torch.from_numpy(exact).to(torch.float16 if dtype is torch.float16 else torch.float32), step
        )
        assert torch.equal(rt.reduced(gradient, compressor), torch.from_numpy(mean).to(dtype))


# ---- training ----


def make(**how: Any) -> tuple[torch.nn.Module, QSGD, Any]:
    passes = how.pop("backward_passes_per_step", 1)
    model = rt.mlp()
    compressor = QSGD(min_size=0, named_parameters=model.named_parameters(), **how)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return model, compressor, rt.wrap(model, compressor, sgd, backward_passes_per_step=passes)


def train(model: torch.nn.Module, optimizer: Any, steps: range, passes: int = 1) -> str:
    for step in steps:
        for part in range(passes):
            rt.loss_of(model, step, part).backward()
        optimizer.step()
        optimizer.zero_grad()
    return rt.assert_replicas_equal(model.parameters())


@on_two_ranks
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("how", [{"codec": "onebit"}, {"bits": 2}, {"variance": 1.0}], ids=str)
def test_resumed_at_any_step(how: dict[str, Any], passes: int) -> None:
    """Every rank loads what it saved itself: the weights are those of the uninterrupted run."""
    how = {**how, "error_feedback": True, "backward_passes_per_step": passes}
    model, compressor, optimizer = make(**how)
    saved = []
    for step in range(5):
        file = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict(), compressor.state_dict()], file)
        saved.append(file.getvalue())
        end = train(model, optimizer, range(step, step + 1), passes)
    for step in range(5):
        again, its_compressor, its_optimizer = make(**{**how, "seed": 99})
        states = torch.load(io.BytesIO(saved[step]), weights_only=True)
        for what, state in zip((again, its_optimizer, its_compressor), states):
            what.load_state_dict(state)
        assert train(again, its_optimizer, range(step, 5), passes) == end, step
        if step > 0:
            del states[2]["residuals"]
            its_compressor.load_state_dict(states[2])  # begins with zeros
            again.load_state_dict(states[0])
            its_optimizer.load_state_dict(states[1])
            assert train(again, its_optimizer, range(step, 5), passes) != end, step


def test_one_residual_a_compressed_tensor_and_a_copy_in_the_state() -> None:
    model, compressor, optimizer = make(codec="onebit", error_feedback=True)
    train(model, optimizer, range(3))
    state = compressor.state_dict()["residuals"]
    assert state["rank"] == rt.RANK
    assert {name: t.shape for name, t in state["tensors"].items()} == {n: p.shape for n, p in model.named_parameters()}
    before = rt.digest(state["tensors"].values())
    twin = copy.deepcopy(compressor)
    assert rt.digest(twin.state_dict()["residuals"]["tensors"].values()) == before
    train(model, optimizer, range(3, 4))
    assert rt.digest(state["tensors"].values()) == before
    assert rt.digest(compressor.state_dict()["residuals"]["tensors"].values()) != before


def test_a_state_that_is_broadcast() -> None:
    """Its residuals are one rank's: the others begin with zeros."""
    gradient = rt.randn(40, 50)
    compressor = QSGD(name="broadcast", codec="onebit", error_feedback=True)
    rt.reduced(gradient, compressor)
    state = hvd.broadcast_object(compressor.state_dict(), root_rank=0)
    assert state["residuals"]["rank"] == 0
    compressor.load_state_dict(state)
    expected = Expected("broadcast", codec="onebit")
    if rt.RANK == 0:
        (residual,) = state["residuals"]["tensors"].values()
        expected.residual = residual.numpy()
    assert np.array_equal(rt.reduced(gradient, compressor).numpy(), expected.next(gradient, 1))


@on_two_ranks
def test_states_that_are_refused() -> None:
    compressor = QSGD(codec="onebit", error_feedback=True)
    rt.reduced(rt.randn(40, 50), compressor)
    state = compressor.state_dict()
    with pytest.raises(
        QSGDError, match=r"make the compressor with error_feedback=True, or delete state\['residuals'\]"
    ):
        QSGD(codec="onebit").load_state_dict(state)
    for no_state in (None, [], "state", 5):
        with pytest.raises(QSGDError, match="this is not a state of a QSGD compressor"):
            compressor.load_state_dict(no_state)  # type: ignore[arg-type]
    for wrong in (5, {}, {"rank": 0, "tensors": {"#0": [1.0]}}, {"rank": -1, "tensors": {}}, {"rank": 0, "tensors": 3}):
        with pytest.raises(QSGDError, match="residual"):
            compressor.load_state_dict({**state, "residuals": wrong})
    assert rt.digest(compressor.state_dict()["residuals"]["tensors"].values()) == rt.digest(
        state["residuals"]["tensors"].values()
    )
    with pytest.raises(QSGDError, match="error_feedback=1 is neither True nor False"):
        QSGD(error_feedback=1)  # type: ignore[arg-type]
    with pytest.raises(QSGDError, match=r"preset 'qsgd' is unknown: use one of 'qsgd-2bit-64', .*'onebit'"):
        QSGD.preset("qsgd")
