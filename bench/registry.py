"""All rows of the benchmark, gathered from the modules of bench/rows."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import ModuleType

import bench.rows
from bench.case import Row


@functools.cache
def _modules() -> tuple[ModuleType, ...]:
    """Those with ROWS, by their PLACE in the tables."""
    found = [importlib.import_module(f"bench.rows.{m.name}") for m in pkgutil.iter_modules(bench.rows.__path__)]
    return tuple(sorted(found, key=lambda module: module.PLACE))


@functools.cache
def families() -> dict[str, str]:
    """The family of every op, in the order of the tables."""
    return {r.op: module.FAMILY for module in _modules() for r in module.ROWS}


def rows(op: str = "", workload: str = "", backend: str = "", headline: bool = False) -> list[Row]:
    """The rows whose op and workload contain the given texts, for one backend, headlines first."""
    found = [
        r
        for module in _modules()
        for r in module.ROWS
        if op in r.op
        and workload in r.workload
        and (not backend or backend in r.backends)
        and (r.headline or not headline)
    ]
    return sorted(found, key=lambda r: not r.headline)


def row(name: str) -> Row:
    """The row of that name, KeyError where there is none."""
    return {r.name: r for r in rows()}[name]
