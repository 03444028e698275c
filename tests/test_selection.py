"""Which parameter a gradient belongs to, and which gradients go uncompressed."""

from __future__ import annotations

from typing import Any

import pytest

from hvd_qsgd import QSGDError
from hvd_qsgd.selection import ParameterNames, make_skip


class Parameter:
    """All that is asked of one."""

    def __init__(self) -> None:
        self.grad: Any = object()


def model(*names: str) -> dict[str, Parameter]:
    return {name: Parameter() for name in names}


NAMES = ("embed.weight", "block.0.norm.weight", "block.0.mlp.weight", "block.1.norm.bias", "head.weight")


def test_names_are_found_by_identity_in_any_order() -> None:
    parameters = model(*NAMES)
    names = ParameterNames(parameters.items())
    for order in (NAMES, NAMES, NAMES[::-1], NAMES[::-1], NAMES[::2], NAMES[::2], (NAMES[3], *NAMES), NAMES[1:2] * 3):
        assert [names.find(parameters[name].grad) for name in order] == list(order)
        assert names.find(object()) is None


def test_gradients_that_compare_equal_are_not_confused() -> None:
    """Tensors compare by value; a gradient is one object."""
    parameters = model("a", "b")
    parameters["a"].grad, parameters["b"].grad = [1.0], [1.0]
    names = ParameterNames(parameters.items())
    assert names.find(parameters["b"].grad) == "b"
    assert names.find([1.0]) is None


def test_new_gradients_every_step() -> None:
    """As after zero_grad(set_to_none=True)."""
    parameters = model(*NAMES)
    names = ParameterNames(parameters.items())
    for _ in range(3):
        old = [parameter.grad for parameter in parameters.values()]
        for parameter in parameters.values():
            parameter.grad = None
        assert [names.find(gradient) for gradient in old] == [None] * len(NAMES)
        for parameter in parameters.values():
            parameter.grad = object()
        assert [names.find(parameter.grad) for parameter in parameters.values()] == list(NAMES)


def test_the_usual_order_is_not_searched() -> None:
    looked = []

    class Watched:
        def __init__(self) -> None:
            self.gradient = object()

        @property
        def grad(self) -> object:
            looked.append(self)
            return self.gradient

    parameters = {str(k): Watched() for k in range(100)}
    names = ParameterNames(parameters.items())
    for step in range(3):
        looked.clear()
        for name, parameter in reversed(parameters.items()):
            assert names.find(parameter.gradient) == name
        assert len(looked) == 100 if step > 1 else len(looked) >= 100


def test_an_iterator_will_do() -> None:
    parameters = model("a", "b")
    names = ParameterNames(iter(parameters.items()))
    assert [names.find(parameters[name].grad) for name in "aba"] == ["a", "b", "a"]
    assert ParameterNames([]).find(object()) is None
    assert ParameterNames([(5, parameters["a"])]).find(parameters["a"].grad) == "5"  # type: ignore[list-item]


@pytest.mark.parametrize("wrong", [5, None, [5], ["abc"], [("a",)], [("a", Parameter(), 1)], model("a")], ids=repr)
def test_what_is_not_named_parameters(wrong: Any) -> None:
    if isinstance(wrong, dict):
        wrong = list(wrong.values())  # model.parameters()
    with pytest.raises(QSGDError, match=r"named_parameters= takes pairs .* pass model\.named_parameters\(\)"):
        ParameterNames(wrong)


def test_names_must_be_unique() -> None:
    with pytest.raises(QSGDError, match="named_parameters= has the name 'b' more than once"):
        ParameterNames([("a", Parameter()), ("b", Parameter()), ("c", Parameter()), ("b", Parameter())])


# ---- skip ----


@pytest.mark.parametrize(
    ("skip", "skipped"),
    [
        ("*.norm.*", {1, 3}), ("*.bias", {3}), ("head.weight", {4}), ("block.[0]*", {1, 2}), ("*", {0, 1, 2, 3, 4}),
        ("", set()), ("norm", set()), ("Head.*", set()), (["embed.*", "head.*"], {0, 4}), (("*.norm.*",), {1, 3}),
        ([], set()),
        ({"block.?.mlp.weight"}, {2}), (iter(["*.bias", "embed.*"]), {0, 3}), (None, set()),
    ],
    ids=str,
)  # fmt: skip
def test_patterns(skip: Any, skipped: set[int]) -> None:
    predicate = make_skip(skip, have_names=True)
    for _ in range(2):  # an iterator is not used up
        assert {k for k, name in enumerate(NAMES) if predicate(name, None)} == skipped
    assert not predicate(None, None)  # a gradient of no known parameter


def test_a_function_decides_for_itself() -> None:
    seen = []

    def skip(name: str | None, gradient: Any) -> bool:
        seen.append((name, gradient))
        return gradient == "large"

    for have_names in (True, False):
        predicate = make_skip(skip, have_names)
        assert predicate(None, "large")
        assert not predicate("w", "small")
    assert seen == [(None, "large"), ("w", "small")] * 2


def test_patterns_need_names() -> None:
    assert not make_skip(None, have_names=False)(None, None)
    for skip in ("*", ["*"], ["a", "b"]):
        with pytest.raises(QSGDError, match=r"skip= by name needs the names: pass named_parameters="):
            make_skip(skip, have_names=False)


@pytest.mark.parametrize("skip", [5, 1.5, True, [5], ["a", None], b"ab", object()], ids=repr)
def test_what_is_not_skip(skip: Any) -> None:
    for have_names in (True, False):
        with pytest.raises(QSGDError, match=r"skip=.* is none of: a name pattern"):
            make_skip(skip, have_names)


@pytest.mark.parametrize("wrong", [["ab", "cd"], [("a", 3)], [("a", None)], [("\ud800", Parameter())]])
def test_what_is_no_parameter(wrong: Any) -> None:
    with pytest.raises(QSGDError, match=r"model\.named_parameters\(\)"):
        ParameterNames(wrong)
