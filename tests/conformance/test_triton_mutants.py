"""Planted mistakes in Triton: with each mutant() of the kernels switched on, its family's cases must turn red.

Needs Triton's interpreter (`python -m tests.run_interpreted`). A few mutants, of every family; all of them with
FRCNN_LONG=1.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from frcnn_fast.ops._backends import triton_interprets

from .mutants import assert_caught, some_of_each_family, turns_red

ROOT = Path(__file__).resolve().parents[2]
CHOSEN = 8

pytestmark = pytest.mark.skipif(not triton_interprets(), reason="needs TRITON_INTERPRET=1 (tests.run_interpreted)")


def mutants() -> dict[str, list[Path]]:
    """Every planted mutant by name, with the files that it is in; one of kernels/common last, as it is everybody's."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "kernels").rglob("*_triton.py"), key=lambda path: (path.parts[-2] == "common", path)):
        if path.name != "mutant_triton.py":
            for name in sorted(set(re.findall(r'mutant\("(\w+)"\)', path.read_text()))):
                found.setdefault(name, []).append(path.relative_to(ROOT))
    return found


MUTANTS = mutants()


def chosen() -> list[str]:
    return sorted(MUTANTS) if os.environ.get("FRCNN_LONG") else some_of_each_family(MUTANTS, CHOSEN)


def red_with(mutant: str | None, files: list[Path], most: int | None = None) -> str:
    from frcnn_fast.kernels.common import mutant_triton

    def plant() -> None:
        mutant_triton.active_mutant = mutant

    return turns_red(plant, files, ("triton",), most)


def test_there_are_mutants() -> None:
    assert len(MUTANTS) >= 100, f"only {len(MUTANTS)} planted mutants: {sorted(MUTANTS)}"


@pytest.mark.parametrize("mutant", chosen())
def test_mutant_is_caught(mutant: str) -> None:
    assert_caught(mutant, red_with(mutant, MUTANTS[mutant]), MUTANTS[mutant], ("triton",))


def test_without_a_mutant_all_is_green() -> None:
    """The control: the child processes by themselves turn nothing red."""
    assert not red_with(None, [Path("kernels/top_n/top_n_triton.py")], most=3)
