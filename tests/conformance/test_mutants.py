"""Planted mistakes: with each FF_MUTANT of the kernels switched on, its family's cases must turn red.

Needs the instrumented test module (`python -m tests.run_sanitized`). Eight mutants, one a family as far as there are so
many; all of them with FRCNN_LONG=1.
"""

from __future__ import annotations

import functools
import os
import signal
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.simt.backend import missing_reason
from tests.simt.build import mutants

from .backends import BACKENDS, Backend
from .edge_cases import EDGE_CASES
from .harness import Arrays, Op, assert_conforms, expected, inputs, poisoned_memory, run
from .test_conformance import FAMILIES, OPS

MUTANTS = mutants()
CHOSEN = 8
TIME_LIMIT_S = 120
# A wrong result; an error that a launcher or the harness reports. Anything else is a mistake in the suite.
CAUGHT_BY = (AssertionError, RuntimeError, ValueError)
BROKEN = 77

# A child process would not survive a mutant that hangs or writes where it should not.
pytestmark = pytest.mark.skipif(bool(missing_reason()), reason=missing_reason())


def family(files: list[Path]) -> str:
    return files[0].parts[1]


def ops_of(name: str) -> list[Op]:
    """The ops whose cases must catch the mutants of kernels/<name>."""
    for module in FAMILIES:
        if module.__name__.endswith(f"cases_{name}"):
            return list(module.OPS)
    by_op = {"proposals": "rpn_proposals"}
    return [op for op in OPS if op.name == by_op.get(name, op.name)]


def backends_of(files: list[Path]) -> list[Backend]:
    """Those that run the mutant's code: a header's is shared, the CPU's is quicker to run."""
    on_cpu = any(path.suffix in (".h", ".cpp") for path in files)
    on_cuda = any(path.suffix in (".h", ".cuh", ".cu") for path in files)
    names = ["cpu"] * on_cpu + ["simt"] * on_cuda
    return [backend for name in names for backend in BACKENDS if backend.name == name]


def chosen() -> list[str]:
    if os.environ.get("FRCNN_LONG"):
        return sorted(MUTANTS)
    rank: dict[str, tuple[int, int]] = {}
    seen: dict[str, int] = {}
    for name in sorted(MUTANTS, key=lambda n: zlib.crc32(n.encode())):
        home = family(MUTANTS[name])
        rank[name] = (seen.get(home, 0), zlib.crc32(name.encode()))
        seen[home] = seen.get(home, 0) + 1
    return sorted(sorted(MUTANTS, key=rank.__getitem__)[:CHOSEN])


@functools.cache
def prepared(op: Op) -> list[tuple[object, Arrays, bool]]:
    """(case, what is wanted, to the bit) of the op's hand-worked and small cases."""
    by_hand = [(case, case.answer(), True) for case in EDGE_CASES if case.op == op.name]
    return by_hand + [(case, expected(op, case), False) for case in op.cases if case.small]


def outcomes(files: list[Path]) -> Iterator[None]:
    """Runs one case after the other; raises at the first that is red."""
    for backend in backends_of(files):
        for op in ops_of(family(files)):
            for case, want, exactly in prepared(op):
                results = run(op, backend, case)  # type: ignore[arg-type]
                args = inputs(case)  # type: ignore[arg-type]
                assert_conforms(op, results, want, args, f"{op.name}-{backend.name}-{case.name}", exactly=exactly)  # type: ignore[attr-defined]
                yield


def turns_red(mutant: str | None, files: list[Path]) -> str:
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
                signal.alarm(TIME_LIMIT_S)
                torch.set_num_threads(1)  # the parent's threads are not here
                _C.set_mutant(mutant)
                for _ in outcomes(files):
                    pass
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
    assert len(chosen()) >= CHOSEN


@pytest.mark.parametrize("mutant", chosen())
def test_mutant_is_caught(mutant: str) -> None:
    how = turns_red(mutant, MUTANTS[mutant])
    assert how, f"no case of {family(MUTANTS[mutant])} notices the mutant {mutant} (in {MUTANTS[mutant]})"
    print(how)


def test_without_a_mutant_all_is_green() -> None:
    """The control: the child processes by themselves turn nothing red."""
    assert not turns_red(None, [Path("kernels/top_n/top_n.h")])
