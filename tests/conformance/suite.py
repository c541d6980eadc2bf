"""Every op under test, with its cases: the OPS of all modules cases_<family>.py beside this one."""

from __future__ import annotations

import importlib
from pathlib import Path

from .harness import Op

FAMILIES = tuple(
    importlib.import_module(f"{__package__}.{path.stem}") for path in sorted(Path(__file__).parent.glob("cases_*.py"))
)
OPS: tuple[Op, ...] = tuple(op for family in FAMILIES for op in family.OPS)
BY_NAME = {op.name: op for op in OPS}
