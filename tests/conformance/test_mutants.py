"""Planted mistakes in C++ and CUDA: with each FF_MUTANT of the kernels switched on, its family's cases must turn red.

Needs the instrumented test module (`python -m tests.run_sanitized`). Eight mutants, one a family as far as there are so
many; all of them with FRCNN_LONG=1. Those of the Triton kernels: test_triton_mutants.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.simt.backend import missing_reason
from tests.simt.build import mutants

from .mutants import assert_caught, some_of_each_family, turns_red

MUTANTS = mutants()
CHOSEN = 8

# A child process would not survive a mutant that hangs or writes where it should not.
pytestmark = pytest.mark.skipif(bool(missing_reason()), reason=missing_reason())


def sides(files: list[Path]) -> list[tuple[str, ...]]:
    """Which backends must notice. A mutant in a CUDA source shows on "simt" and one in a CPU source on "cpu", each for
    itself ("simt80" goes where "simt" has clusters); one that is in a shared header alone, on either."""
    suffixes = {path.suffix for path in files}
    if suffixes == {".h"}:
        return [("cpu", "simt")]
    cpu: list[tuple[str, ...]] = [("cpu",)] if suffixes & {".h", ".cpp"} else []
    cuda: list[tuple[str, ...]] = [("simt", "simt80")] if suffixes & {".cu", ".cuh"} else []
    return cpu + cuda


def chosen() -> list[object]:
    names = sorted(MUTANTS) if os.environ.get("FRCNN_LONG") else some_of_each_family(MUTANTS, CHOSEN)
    return [
        pytest.param(name, backends, id=f"{name}-{backends[0]}") for name in names for backends in sides(MUTANTS[name])
    ]


def red_with(mutant: str | None, files: list[Path], backends: tuple[str, ...]) -> str:
    from frcnn_fast import _C  # type: ignore[attr-defined]

    return turns_red(lambda: _C.set_mutant(mutant), files, backends)


def test_there_are_mutants() -> None:
    assert len(MUTANTS) >= 30, f"only {len(MUTANTS)} planted mutants: {sorted(MUTANTS)}"


@pytest.mark.parametrize(("mutant", "backends"), chosen())
def test_mutant_is_caught(mutant: str, backends: tuple[str, ...]) -> None:
    files = MUTANTS[mutant]
    assert_caught(mutant, red_with(mutant, files, backends), files, backends)


@pytest.mark.parametrize("side", ["cpu", "simt", "simt80"])
def test_without_a_mutant_all_is_green(side: str) -> None:
    """The control: the child processes by themselves turn nothing red."""
    assert not red_with(None, [Path("kernels/top_n/top_n.h")], (side,))
