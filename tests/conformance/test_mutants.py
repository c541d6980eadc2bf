"""Planted mistakes: with each FF_MUTANT of the kernels switched on, its family's cases must turn red.

Needs the instrumented test module (`python -m tests.run_sanitized`). Eight mutants, one a family as far as there are so
many; all of them with FRCNN_LONG=1.
"""

from __future__ import annotations

import functools
import os
import resource
import tempfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.simt.backend import missing_reason
from tests.simt.build import mutants

from .backends import BACKENDS, Backend
from .edge_cases import EDGE_CASES
from .harness import Arrays, Op, assert_conforms, expected, inputs, poisoned_memory, run
from .suite import FAMILIES, OPS

MUTANTS = mutants()
CHOSEN = 8
CPU_LIMIT_S = 120  # of processor time: a busy machine changes no verdict
# A wrong result; an error that a launcher or the harness reports. Anything else is a mistake in the suite.
CAUGHT_BY = (AssertionError, RuntimeError, ValueError)
BROKEN = 77

# A child process would not survive a mutant that hangs or writes where it should not.
pytestmark = pytest.mark.skipif(bool(missing_reason()), reason=missing_reason())


def family(files: list[Path]) -> str:
    return files[0].parts[1]


def ops_of(name: str) -> list[Op]:
    """The ops whose cases must catch the mutants of kernels/<name>: the family's own, then those composed of it."""
    modules = [module for module in FAMILIES if module.__name__.endswith(f"cases_{name}")]
    own = [op for module in modules for op in module.OPS]
    composed = [op for op in OPS if op.name in ("rpn_proposals", "detections") and op not in own]
    return own + composed if own or name == "proposals" else list(OPS)


def sides(files: list[Path]) -> list[tuple[str, ...]]:
    """Which backends must notice. A mutant in a CUDA source shows on "simt" and one in a CPU source on "cpu", each for
    itself ("simt80" goes where "simt" has clusters); one that is in a shared header alone, on either."""
    suffixes = {path.suffix for path in files}
    if suffixes == {".h"}:
        return [("cpu", "simt")]
    cpu: list[tuple[str, ...]] = [("cpu",)] if suffixes & {".h", ".cpp"} else []
    cuda: list[tuple[str, ...]] = [("simt", "simt80")] if suffixes & {".cu", ".cuh"} else []
    return cpu + cuda


def ranked() -> list[str]:
    """The mutants' names, so that any first few are of as many families as there are."""
    place: dict[str, tuple[int, int]] = {}
    seen: dict[str, int] = {}
    for name in sorted(MUTANTS, key=lambda n: zlib.crc32(n.encode())):
        home = family(MUTANTS[name])
        place[name] = (seen.get(home, 0), zlib.crc32(name.encode()))
        seen[home] = seen.get(home, 0) + 1
    return sorted(MUTANTS, key=place.__getitem__)


def chosen() -> list[object]:
    names = sorted(MUTANTS) if os.environ.get("FRCNN_LONG") else sorted(ranked()[:CHOSEN])
    return [
        pytest.param(name, backends, id=f"{name}-{backends[0]}") for name in names for backends in sides(MUTANTS[name])
    ]


@functools.cache
def prepared(op: Op) -> list[tuple[Any, Arrays, bool]]:
    """(case, what is wanted, to the bit) of the op's hand-worked and small cases."""
    by_hand: list[tuple[Any, Arrays, bool]] = [(case, case.answer(), True) for case in EDGE_CASES if case.op == op.name]
    return by_hand + [(case, expected(op, case), False) for case in op.cases if case.small]


def run_cases(files: list[Path], backends: tuple[str, ...]) -> None:
    """Runs one case after the other; raises at the first that is red."""

    def check(op: Op, backend: Backend, case: Any, want: Arrays, exactly: bool) -> None:
        label = f"{op.name}-{backend.name}-{case.name}"
        assert_conforms(op, run(op, backend, case), want, inputs(case), label, exactly=exactly)

    def served_by(backend: Backend) -> list[Op]:
        return [op for op in ops_of(family(files)) if backend.serves(op.name)]

    here = [backend for name in backends for backend in BACKENDS if backend.name == name]
    for backend in here:
        for op in served_by(backend):
            for case, want, exactly in prepared(op):
                if case.refused_by(backend):  # type: ignore[attr-defined]
                    continue
                check(op, backend, case, want, exactly)
    for backend in here:
        for op in served_by(backend):
            for case in op.cases:
                if not (case.small or backend.slow):
                    check(op, backend, case, expected(op, case), False)


def turns_red(mutant: str | None, files: list[Path], backends: tuple[str, ...]) -> str:
    """Runs the cases in a child process, which a wild mutant may kill or hang. How it failed, or ""."""
    from frcnn_fast import _C  # type: ignore[attr-defined]

    # Here, so that every child has it.
    for op in ops_of(family(files)):
        prepared(op)
    with poisoned_memory():  # imports much the first time
        pass
    with tempfile.TemporaryFile() as log:
        child = os.fork()
        if child == 0:
            code = 0
            try:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S))
                torch.set_num_threads(1)  # the parent's threads are not here
                _C.set_mutant(mutant)
                run_cases(files, backends)
            except BaseException as error:
                os.write(1, f"{type(error).__name__}: {error}"[:1000].encode())
                code = 1 if isinstance(error, CAUGHT_BY) else BROKEN
            os._exit(code)
        _, status = os.waitpid(child, 0)
        log.seek(0)
        how = log.read().decode(errors="replace") or f"the process ended with {status}"
        assert os.waitstatus_to_exitcode(status) != BROKEN, f"the cases could not run: {how}"
        return how if status else ""


def test_there_are_mutants() -> None:
    assert len(MUTANTS) >= 30, f"only {len(MUTANTS)} planted mutants: {sorted(MUTANTS)}"


@pytest.mark.parametrize(("mutant", "backends"), chosen())
def test_mutant_is_caught(mutant: str, backends: tuple[str, ...]) -> None:
    files = MUTANTS[mutant]
    how = turns_red(mutant, files, backends)
    where = ", ".join(map(str, files))
    assert how, f"no case of {family(files)} on {' or '.join(backends)} notices the mutant {mutant} (in {where})"
    print(how)


@pytest.mark.parametrize("side", ["cpu", "simt", "simt80"])
def test_without_a_mutant_all_is_green(side: str) -> None:
    """The control: the child processes by themselves turn nothing red."""
    assert not turns_red(None, [Path("kernels/top_n/top_n.h")], (side,))
