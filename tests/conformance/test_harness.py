"""The suite's own teeth: what it must not let pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
import torch

from . import test_conformance
from .backends import Backend
from .build import strided, transposed
from .harness import Case, Op, assert_conforms, expected, inputs, near, poisoned_memory, run, same, to_device

HERE = Backend("here", contextlib.nullcontext)
CASE = Case("plain", lambda: {"x": torch.tensor([1.0, -0.0, float("nan"), 3.0])}, small=True)


def doubled(call: Callable, *, precise: bool = False) -> Op:
    """An op that should return 2x and the index of the largest, computed by `call`."""

    def oracle(args: dict) -> tuple[np.ndarray, ...]:
        x = args["x"]
        values = x + x, np.asarray([3])
        if not precise:
            return values
        wide = x.astype(np.float64) * 2, np.asarray([3])
        return (*wide, np.abs(wide[0]), wide[1])

    return Op("doubled", ("y:input", "where:int64"), (CASE,), "x", call=call, oracle=oracle, precise=precise)


def right(args: dict) -> tuple[torch.Tensor, torch.Tensor]:
    return args["x"] * 2, torch.tensor([3])


def judge(call: Callable) -> None:
    op = doubled(call)
    assert_conforms(op, run(op, HERE, CASE), expected(op, CASE), inputs(CASE), "here")


def test_the_right_answer_passes() -> None:
    judge(right)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda y, i: (y.double(), i), "dtype"),
        (lambda y, i: (y, i.int()), "dtype"),
        (lambda y, i: (y[None], i), "shape"),
        (lambda y, i: (y[:3], i), "shape"),
        (lambda y, i: (y, i - 1), "got 2, expected 3"),
        (lambda y, i: (y.abs(), i), r"first at \[1\]: got 0.0, expected -0.0"),
        (lambda y, i: (y.nan_to_num(0.0), i), r"first at \[2\]: got 0.0, expected nan"),
        (lambda y, i: (torch.nextafter(y, y + 1), i), "expected 2.0"),
        (lambda y, i: (y,), "1 results, expected 2"),
        (lambda y, i: (torch.empty_like(y), i), "elements differ"),
    ],
)
def test_a_wrong_answer_is_named(wrong: Callable, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        judge(lambda args: wrong(*right(args)))


def test_an_op_that_writes_to_its_input_fails() -> None:
    def call(args: dict) -> tuple[torch.Tensor, torch.Tensor]:
        result = right(args)
        args["x"][3] = 4.0
        return result

    with pytest.raises(AssertionError, match="wrote to x"):
        run(doubled(call), HERE, Case("writes", CASE.make))


@pytest.mark.parametrize("missing", [0.0, float("nan"), float("inf"), 3.001])
def test_a_bound_admits_rounding_alone(missing: float) -> None:
    want, magnitude = np.asarray([3.0, np.nan, np.inf]), np.asarray([3.0, np.nan, np.inf])
    ok = near(np.float32([3.0000002, np.nan, np.inf]), want, magnitude, torch.float32, torch.float32)
    assert ok.all()
    for place in range(3):
        got = np.float32([3, np.nan, np.inf])
        got[place] = missing
        if not same(got.astype(np.float64), want)[place]:
            assert not near(got, want, magnitude, torch.float32, torch.float32)[place]


def test_a_half_may_round_once_more() -> None:
    want = np.asarray([1.0 + 2**-12])  # nearest halves: 1 and 1 + 2**-10
    assert near(np.float32([1.0]), want, want, torch.float16, torch.float32).all()
    assert not near(np.float32([1.0 + 2**-10]), want, want, torch.float16, torch.float32).any()


def test_a_missing_backend_fails_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Backend("gone", contextlib.nullcontext, missing="no such machine")
    op = doubled(right)
    assert [mark.name for mark in test_conformance.conditions(gone)] == ["skip"]
    monkeypatch.setattr(test_conformance, "REQUIRED", {"gone"})
    assert not test_conformance.conditions(gone)
    with pytest.raises(AssertionError, match="no such machine"):
        test_conformance.test_conforms(op, gone, CASE)


@pytest.mark.parametrize("layout", [strided, transposed, lambda t: t[:, 1:], lambda t: t.t()[1:].expand(3, 3, 4)])
def test_strides_survive_the_way_to_a_device(layout: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A device without memory stands in for one that is not here."""
    t = layout(torch.arange(16.0).reshape(4, 4))
    there = to_device([t], "meta")[0]
    assert there.device.type == "meta"
    assert (there.shape, there.stride(), there.storage_offset()) == (t.shape, t.stride(), t.storage_offset())
    assert to_device(t, "cpu") is t


def test_memory_is_poisoned_unless_a_tool_looks_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on, warn_only: seen.append(on))
    with poisoned_memory():
        pass
    assert seen == [True, False]
    monkeypatch.setenv("FRCNN_POISON", "0")
    with poisoned_memory():
        pass
    assert seen == [True, False]
