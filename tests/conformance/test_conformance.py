"""Every op, on every backend, on every case, against the oracle; and against answers worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import frcnn_fast.ops

from .backends import BACKENDS, REQUIRED, Backend
from .edge_cases import EDGE_CASES, EdgeCase
from .harness import Case, Op, as_tuple, assert_conforms, expected, inputs, run, same, to_numpy
from .suite import BY_NAME, OPS


def conditions(backend: Backend) -> tuple[pytest.MarkDecorator, ...]:
    """A missing backend is skipped with its reason, or fails where it was asked for."""
    if backend.missing and backend.name not in REQUIRED:
        return (pytest.mark.skip(reason=f"{backend.name}: {backend.missing}"),)
    return ()


def combinations() -> Iterator[Any]:
    """Case by case, so that the oracle's answer is worked out once for all backends. A missing backend has one row an
    op, which says why."""
    for op in OPS:
        for number, case in enumerate(op.cases):
            for backend in BACKENDS:
                alone = backend.missing and case is not op.cases[0]
                # The oracle is not asked what it thinks of data that is out of range.
                idle = case.as_if is not None and backend.name == "reference"
                fits = case.small or backend.missing or not backend.slow
                fits = fits and number % backend.one_in == 0
                if backend.serves(op.name) and fits and not alone and not idle:
                    marks = (*conditions(backend), *([pytest.mark.small] if case.small else []))
                    yield pytest.param(op, backend, case, id=f"{op.name}-{backend.name}-{case.name}", marks=marks)


def edge_combinations() -> Iterator[object]:
    for case in EDGE_CASES:
        for backend in BACKENDS:
            if backend.serves(case.op) and not backend.missing:
                yield pytest.param(backend, case, id=f"{case.op}-{backend.name}-{case.name}", marks=pytest.mark.small)


COMBINATIONS = list(combinations())


@pytest.mark.parametrize(("op", "backend", "case"), COMBINATIONS)
def test_conforms(op: Op, backend: Backend, case: Case) -> None:
    assert not backend.missing, f"{backend.name} was asked for, but is missing: {backend.missing}"
    label = f"{op.name} on {backend.name}, case {case.name}"
    if case.refused_by(backend):
        with pytest.raises(ValueError, match=r"\d"):
            run(op, backend, case)
        return
    results = run(op, backend, case)
    assert_conforms(op, results, expected(op, case), inputs(case), label)
    if case.small and not backend.slow:
        for first, second in zip(results, run(op, backend, case)):
            assert same(to_numpy(first), to_numpy(second)).all(), f"{label}: two runs differ"


@pytest.mark.parametrize("case", EDGE_CASES, ids=lambda case: f"{case.op}-{case.name}")
def test_oracle_gives_the_table(case: EdgeCase) -> None:
    op = BY_NAME[case.op]
    want = case.answer()
    results = as_tuple(op.oracle({name: to_numpy(value) for name, value in case.make().items()}))
    for i, (got, answer) in enumerate(zip(results, want)):
        assert got.shape == answer.shape, f"result {i}: shape {got.shape}, expected {answer.shape}"
        assert same(got.astype(answer.dtype), answer).all(), f"result {i}: got {got!r}, expected {answer!r}"


@pytest.mark.parametrize(("backend", "case"), list(edge_combinations()))
def test_backend_gives_the_table(backend: Backend, case: EdgeCase) -> None:
    op = BY_NAME[case.op]
    label = f"{case.op} on {backend.name}, {case.name}"
    assert_conforms(op, run(op, backend, case), case.answer(), case.make(), label, exactly=True)


def test_every_op_is_covered() -> None:
    """No public op without cases, for fast and for slow backends, and without a hand-worked answer."""
    public = {name for name in frcnn_fast.ops.__all__ if name.islower()} - {"use_backend"}
    assert public <= set(BY_NAME), f"ops without conformance cases: {sorted(public - set(BY_NAME))}"
    for op in OPS:
        assert any(case.small for case in op.cases), f"{op.name} has no case for slow backends"
        names = [case.name for case in op.cases]
        assert len(names) == len(set(names)), f"{op.name} has two cases of one name"
    without = set(BY_NAME) - {case.op for case in EDGE_CASES}
    assert not without, f"ops without a hand-worked answer: {sorted(without)}"


def test_every_backend_runs_every_op() -> None:
    """Nothing passes by running nothing: each backend that is here has rows for each op that it serves."""
    rows = {(op.name, backend.name) for op, backend, _ in (row.values for row in COMBINATIONS)}
    for backend in BACKENDS:
        for op in OPS:
            if backend.serves(op.name):
                assert (op.name, backend.name) in rows, f"{op.name} has no rows on {backend.name}"
