"""Timing that others would accept: interleaved rounds, medians with their spread, no contender favoured.

Every contender is timed in every round (a slow one in evenly spaced rounds), and each round begins with another one,
so that a drift of the machine, a neighbour's load or a warm cache meets all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.case import Call

SAMPLE_SECONDS = 0.002  # on the CPU a sample repeats a fast call until it lasts about this long
SLOW_SECONDS = 0.02  # a call slower than this needs no warm-up call before each sample
OTHER_WORK_SECONDS = 0.03
CALLS_IN_GRAPH = 20
SPIN_CYCLES = 300_000_000  # about 150 ms
CLOCK_CYCLES = 4_000_000
EVENT_CALLS = 10  # event-timed calls between two synchronisations

Clock = Callable[[Call, int], list[float]]  # (call, repeats) -> microseconds a call, one or more values


@dataclass(frozen=True)
class Contender:
    """A call to be timed, and what must be set before it (untimed)."""

    call: Call
    enter: Call | None = None


@dataclass(frozen=True)
class Plan:
    """How long to measure: about `seconds` for each contender, at least `least` and at most `most` samples."""

    seconds: float = 1.0
    least: int = 5
    most: int = 200
    warm: int = 3


def summary(values: list[float], repeats: int = 1, scale: float = 1.0) -> dict[str, Any]:
    """Quantiles in microseconds, for the report."""
    p10, p50, p90 = (float(v) * scale for v in np.percentile(values, (10, 50, 90)))
    return {"p10": p10, "p50": p50, "p90": p90, "samples": len(values), "repeats": repeats}


def interleaved(contenders: dict[str, Contender], clock: Clock, plan: Plan, sample: float = 0.0) -> dict[str, Any]:
    """Times all contenders; summaries by name. sample: seconds that the calls of one sample should take together."""
    once: dict[str, float] = {}
    repeats: dict[str, int] = {}
    share: dict[str, int] = {}
    for name, contender in contenders.items():
        once[name] = _warm(contender, clock, plan)
        repeats[name] = max(1, round(sample / once[name]))
        share[name] = int(min(plan.most, max(plan.least, plan.seconds / (once[name] * repeats[name]))))
    rounds = max(share.values())
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for r in range(rounds):
        start = r % len(names)
        for name in names[start:] + names[:start]:
            if (r + 1) * share[name] // rounds == r * share[name] // rounds:
                continue
            enter = contenders[name].enter
            if enter:
                enter()
                # A change of threads makes the next call pay for it.
                if once[name] < SLOW_SECONDS:
                    contenders[name].call()
            taken[name] += clock(contenders[name].call, repeats[name])
    return {name: summary(values, repeats[name]) for name, values in taken.items()}


def _warm(contender: Contender, clock: Clock, plan: Plan) -> float:
    """Runs it a few times; the seconds of a call."""
    if contender.enter:
        contender.enter()
    start = time.perf_counter()
    once = 1.0
    for _ in range(plan.warm):
        once = max(min(clock(contender.call, 1)) * 1e-6, 1e-7)
        if time.perf_counter() - start > plan.seconds:
            break
    return once


def wall_clock(call: Call, repeats: int) -> list[float]:
    """The mean of so many calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return [(time.perf_counter() - start) / repeats * 1e6]


def cold_clock(seconds: float = OTHER_WORK_SECONDS) -> Clock:
    """A call on the CPU as a detector makes it: once, after other work on the same threads has used the caches."""
    maps, weight = torch.randn(1, 64, 128, 128), torch.randn(64, 64, 3, 3)

    def clock(call: Call, repeats: int) -> list[float]:
        found = []
        for _ in range(repeats):
            start = time.perf_counter()
            while time.perf_counter() - start < seconds:
                torch.nn.functional.conv2d(maps, weight, padding=1)
            found += wall_clock(call, 1)
        return found

    return clock


def call_and_synchronise(call: Call, repeats: int) -> list[float]:
    """What a caller waits for on a GPU: each call with a synchronisation."""
    found = []
    torch.cuda.synchronize()
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - start) * 1e6)
    return found


def event_clock(flush_bytes: int = 0) -> Clock:
    """GPU time between two events around a call.

    The GPU sleeps before the first event until the host has queued the call, so that the host's launch cost is not
    counted.
    flush_bytes: so many are written before each call; at more than twice the L2 cache, the call finds the cache cold.
    """
    flush = torch.empty(flush_bytes, dtype=torch.uint8, device="cuda") if flush_bytes else None

    def clock(call: Call, repeats: int) -> list[float]:
        call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        queued = time.perf_counter() - start
        cycles = int(min(max(2.0 * queued, 50e-6), 5e-3) * 2e9)
        pairs = []
        for _ in range(EVENT_CALLS * repeats):
            if flush is not None:
                flush.zero_()
            torch.cuda._sleep(cycles)
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            before.record()
            call()
            after.record()
            pairs.append((before, after))
        torch.cuda.synchronize()
        return [before.elapsed_time(after) * 1e3 for before, after in pairs]

    return clock


def clock_after(spin_cycles: int = 0) -> float:
    """The GPU's clock in GHz, after it was kept busy for so many cycles: it falls while a row is prepared on the
    processor, and rises within SPIN_CYCLES.
    """
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(spin_cycles)
    before.record()
    torch.cuda._sleep(CLOCK_CYCLES)
    after.record()
    after.synchronize()
    return round(CLOCK_CYCLES / before.elapsed_time(after) * 1e-6, 3)


@dataclass
class Replay:
    """A captured graph of several calls, and the result of the last of them."""

    graph: Any
    result: Any
    calls: int


def capture(call: Call, calls: int = CALLS_IN_GRAPH) -> Replay:
    """Captures `calls` calls in one CUDA graph. RuntimeError where the call cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            result = call()
    graph.replay()
    torch.cuda.synchronize()
    return Replay(graph, result, calls)
