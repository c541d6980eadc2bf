"""How figures are written and ordered, in tables and plots alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.registry import families


def backend_of(report: dict[str, Any]) -> str:
    """The backend of its rows."""
    return "cuda" if "gpu" in report["environment"] else "cpu"


def plain(version: str) -> str:
    """Without the build suffix."""
    return version.split("+", 1)[0]


def in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Family by family."""
    place = {op: i for i, op in enumerate(families())}
    return sorted(rows, key=lambda row: place.get(row["op"], len(place)))


def times(found: dict[str, Any] | None) -> str:
    """The ratio for a table."""
    if not found:
        return "–"
    value = found["p50"]
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}" if value >= 3 else f"{value:.2f}"


def duration(us: float | None) -> str:
    """Three digits and a unit."""
    if us is None:
        return "–"
    for unit, scale in (("µs", 1.0), ("ms", 1e3), ("s", 1e6)):
        if us < 999.5 * scale or unit == "s":
            value = us / scale
            return f"{value:.0f} {unit}" if value >= 99.5 else f"{value:.{1 if value >= 9.95 else 2}f} {unit}"
    raise AssertionError
