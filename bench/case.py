"""What a row of the benchmark is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Call = Callable[[], Any]


class Unavailable(Exception):
    """A case cannot be made here; the text says what is missing. The row is named as skipped."""


@dataclass(frozen=True)
class Competitor:
    """Somebody else's way to the same result.

    note: why it is no fair opponent (it is told what nobody can know beforehand, or it does less); it is then shown
        beside the others but counts in no ratio.
    one_setting: run with all threads only (compiled code is bound to the number of threads it was compiled for).
    capturable: whether it may be captured in a CUDA graph.
    """

    call: Call
    note: str = ""
    one_setting: bool = False
    capturable: bool = False


@dataclass
class Case:
    """A measurement, prepared on one device.

    ours: the call that is timed. check: raises AssertionError where its result is wrong; nothing is timed before that.
    bytes: the least that must be read and written once. flops: the least arithmetic (operations on coordinates or
        values).
    facts: what one must know to judge the figure (boxes kept, depth needed ...).
    fixed_shape: no synchronisation with the host, so the call can be captured in a CUDA graph.
    """

    ours: Call
    check: Callable[[Any], None]
    competitors: dict[str, Competitor] = field(default_factory=dict)
    bytes: int = 0
    flops: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    fixed_shape: bool = True


@dataclass(frozen=True)
class Row:
    """One line: an op on a workload.

    make: device -> Case. goal: what is aimed at, by backend: on "cpu" times faster than the best competitor, on "cuda"
    microseconds of a graph replay. headline: shown in the README. axis: ("boxes", 6000), place on a scaling plot.
    """

    op: str
    workload: str
    make: Callable[[str], Case]
    goal: dict[str, float] = field(default_factory=dict)
    backends: tuple[str, ...] = ("cpu", "cuda")
    headline: bool = False
    axis: tuple[str, int] | None = None

    @property
    def name(self) -> str:
        """Unique in the registry."""
        return f"{self.op}: {self.workload}"
