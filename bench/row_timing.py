"""One row: checked, then timed against its competitors in every way the backend knows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench import checks, measure
from bench.case import Call, Case, Competitor, Row
from bench.measure import CALLS_IN_GRAPH, EVENT_CALLS, Contender, Plan
from frcnn_fast import use_backend

OURS = "frcnn_fast"
TRITON = "triton"  # this library's Triton kernels, beside its CUDA kernels
WRONG = "WRONG"
L2_FLUSH_BYTES = 256 << 20  # more than twice the largest L2 there is
WARM = 50
# A graph of many identical calls finds the caches warm and hides every latency that the next call can fill.
GRAPH = f"graph of {CALLS_IN_GRAPH}, warm"
SINGLE = "graph of one + synchronise"
COLD = "call, cold"  # on a CPU: once, after other work
COLD_CALLS = 15


@dataclass(frozen=True)
class Options:
    """against: names of competitors to time ("all" for all of them, none for none). seconds: for each contender."""

    seconds: float = 1.0
    against: tuple[str, ...] = ("all",)

    def wants(self, name: str) -> bool:
        """Whether to time this competitor."""
        return "all" in self.against or any(wish and wish in name for wish in self.against)

    def wants_triton(self, row: Row) -> bool:
        """Whether to time the Triton kernels: of a row that is not a headline only where they are named, since they
        must be compiled first.
        """
        return self.wants(TRITON) and (row.headline or "all" not in self.against)


def measure_row(row: Row, backend: str, options: Options) -> dict[str, Any]:
    """The row's entry in the report. AssertionError where the answer is wrong or not repeatable, also after all that
    was timed: it then has no speed.
    """
    case = row.make(backend)
    first = case.ours()
    case.check(first)
    for _ in range(3):
        checks.equal(case.ours(), first, "its own first answer")
    case.competitors = {name: c for name, c in case.competitors.items() if options.wants(name)}
    if backend == "cuda" and options.wants_triton(row):
        case.competitors[TRITON] = _on_triton(case)
    notes = {name: c.note for name, c in case.competitors.items() if c.note}
    notes |= _drop_broken(case)
    times = (_on_cuda if backend == "cuda" else _on_cpu)(case, options, notes)
    checks.equal(case.ours(), first, "its own first answer, before it was timed")
    return {
        "op": row.op,
        "workload": row.workload,
        "backend": backend,
        "headline": row.headline,
        "axis": list(row.axis) if row.axis else None,
        "goal": row.goal.get(backend),
        "bytes": case.bytes,
        "flops": case.flops,
        "facts": case.facts,
        "times": times,
        "notes": notes,
        "ratio": ratio(times),
    }


def _on_triton(case: Case) -> Competitor:
    def call() -> Any:
        with use_backend("triton"):
            return case.ours()

    return Competitor(call, "this library's own Triton kernels", capturable=case.fixed_shape)


def _drop_broken(case: Case) -> dict[str, str]:
    """Calls each competitor once; takes those that cannot run off the list, and says why. Triton kernels must be as
    right as the others.
    """
    broken = {}
    for name, competitor in list(case.competitors.items()):
        try:
            result = competitor.call()
            if name == TRITON:
                case.check(result)
        except Exception as error:
            kind = WRONG if name == TRITON and not isinstance(error, ImportError) else "missing"
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            broken[name] = f"{kind}: {type(error).__name__}: {first}"
            del case.competitors[name]
    return broken


def _entry(who: str, how: str, counts: bool, timing: dict[str, Any], threads: int | None = None) -> dict[str, Any]:
    return {"who": who, "how": how, "threads": threads, "counts": counts, **timing}


def _on_cpu(case: Case, options: Options, notes: dict[str, str]) -> list[dict[str, Any]]:
    """Everyone with one thread and with all of them."""
    all_threads = torch.get_num_threads()
    contenders: dict[tuple[str, int], Contender] = {}
    for threads in sorted({1, all_threads}):
        contenders[OURS, threads] = _with_threads(case.ours, threads)
        for name, competitor in case.competitors.items():
            if threads == all_threads or not competitor.one_setting:
                contenders[name, threads] = _with_threads(competitor.call, threads)
    named = {f"{who} {threads}": contender for (who, threads), contender in contenders.items()}
    plan = Plan(seconds=options.seconds, most=100)
    cold = Plan(seconds=options.seconds, most=COLD_CALLS, warm=1)
    try:
        timings = {
            "call": measure.interleaved(named, measure.wall_clock, plan, measure.SAMPLE_SECONDS),
            COLD: measure.interleaved(named, measure.cold_clock(), cold),
        }
    finally:
        torch.set_num_threads(all_threads)
    return [
        _entry(who, how, how == "call" and who not in notes and who != OURS, found[f"{who} {threads}"], threads)
        for how, found in timings.items()
        for who, threads in contenders
    ]


def _with_threads(call: Call, threads: int) -> Contender:
    def enter() -> None:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    return Contender(call, enter)


def _on_cuda(case: Case, options: Options, notes: dict[str, str]) -> list[dict[str, Any]]:
    """Call and synchronise; GPU time with a warm and a cold cache; graphs of what can be captured. At a clock that has
    risen: what it was before and after becomes a fact of the case.
    """
    calls: dict[str, Call] = {OURS: case.ours, **{name: c.call for name, c in case.competitors.items()}}
    contenders = {name: Contender(call) for name, call in calls.items()}
    wall = Plan(seconds=options.seconds, least=10, most=200, warm=WARM)
    events = Plan(seconds=options.seconds / 2, least=2, most=200 // EVENT_CALLS, warm=2)
    times: list[dict[str, Any]] = []

    def add(how: str, timings: dict[str, Any], counts: bool = False) -> None:
        times.extend(_entry(who, how, counts and who != OURS and who not in notes, t) for who, t in timings.items())

    clocks = [measure.clock_after(measure.SPIN_CYCLES)]
    add("call", measure.interleaved(contenders, measure.call_and_synchronise, wall), counts=True)
    add("events, warm L2", measure.interleaved(contenders, measure.event_clock(), events))
    add("events, cold L2", measure.interleaved(contenders, measure.event_clock(L2_FLUSH_BYTES), events))
    capturable = {name: c.call for name, c in case.competitors.items() if c.capturable}
    if case.fixed_shape:
        capturable = {OURS: case.ours, **capturable}
    for who, call in capturable.items():
        try:
            times += _graphs(who, call, events, wall)
        except (RuntimeError, AssertionError) as error:
            if who == OURS:
                raise AssertionError(f"a CUDA graph of it fails: {error}") from error
            notes[who] = f"cannot be captured: {str(error).splitlines()[0]}"
    case.facts["clock_ghz"] = [*clocks, measure.clock_after()]
    return times


def _graphs(who: str, call: Call, events: Plan, wall: Plan) -> list[dict[str, Any]]:
    """GPU time a call within a graph of many, and what a caller waits for who replays a graph of one. Ours is compared
    with the eager answer after the last replay.
    """
    eager = call()
    many, one = measure.capture(call), measure.capture(call, 1)
    per_graph = measure.interleaved({who: Contender(many.graph.replay)}, measure.event_clock(), events)[who]
    inside = {key: value / CALLS_IN_GRAPH if key.startswith("p") else value for key, value in per_graph.items()}
    single = measure.interleaved(
        {who: Contender(one.graph.replay)}, measure.call_and_synchronise, replace(wall, seconds=wall.seconds / 4)
    )
    if who in (OURS, TRITON):
        for replay in (many, one):
            checks.equal(replay.result, eager, "the eager answer, when replayed")
    return [_entry(who, GRAPH, False, inside), _entry(who, SINGLE, False, single[who])]


def best(times: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The entry with the lowest median."""
    return min(times, key=lambda t: t["p50"], default=None)


def ratio(times: list[dict[str, Any]], how: str = "call", over: str = "") -> dict[str, Any] | None:
    """How many times faster a call is than the best competitor's, each at its best number of threads: of the medians,
    and the range that the quantiles allow. how: "call", or COLD. over: that competitor's.
    """
    counted = {t["who"] for t in times if t["counts"] and over in ("", t["who"])}
    mine = best(t for t in times if t["who"] == OURS and t["how"] == how)
    theirs = best(t for t in times if t["who"] in counted and t["how"] == how)
    if mine is None or theirs is None:
        return None
    return {
        "over": theirs["who"],
        "p50": theirs["p50"] / mine["p50"],
        "low": theirs["p10"] / mine["p90"],
        "high": theirs["p90"] / mine["p10"],
    }
