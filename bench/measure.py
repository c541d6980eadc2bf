"""Timing that others would accept: interleaved rounds, medians and spread, equality first."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

SAMPLES = 25
SAMPLE_SECONDS = 0.004  # a sample repeats the call until it lasts about this long


@dataclass(frozen=True)
class Timing:
    """Microseconds a call."""

    p10: float
    p50: float
    p90: float
    samples: int
    repeats: int

    def as_dict(self) -> dict[str, float | int]:
        """For JSON."""
        return asdict(self)


def _timing(values: Sequence[float], repeats: int) -> Timing:
    ordered = sorted(values)
    pick = lambda q: ordered[min(len(ordered) - 1, int(q * len(ordered)))]  # noqa: E731
    return Timing(pick(0.1), statistics.median(ordered), pick(0.9), len(ordered), repeats)


def interleaved(
    contenders: dict[str, Callable[[], object]], *, device: str = "cpu", seconds: float = 1.5
) -> dict[str, Timing]:
    """Times every contender in turn, round after round, so that a drift of the machine meets them all alike.

    seconds: about how long each contender may take altogether. On CUDA a sample ends with a synchronisation (eager
    call + synchronise).
    """
    repeats: dict[str, int] = {}
    rounds = SAMPLES
    for name, call in contenders.items():
        call()
        _wait(device)
        once = max(_clock(call, 1, device), 1e-7)
        repeats[name] = max(1, int(SAMPLE_SECONDS / once))
        rounds = min(rounds, max(5, int(seconds / (once * repeats[name]))))
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            taken[name].append(_clock(call, repeats[name], device) * 1e6)
    return {name: _timing(values, repeats[name]) for name, values in taken.items()}


def _clock(call: Callable[[], object], repeats: int, device: str) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait(device)
    return (time.perf_counter() - start) / repeats


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def graph_replay(call: Callable[[], object], *, in_graph: int = 20) -> Callable[[], object] | None:
    """A replay of `in_graph` captured calls, or None where the call cannot be captured. Divide its time by in_graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(in_graph):
                call()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def cuda_event_times(call: Callable[[], object], samples: int = 200, flush: torch.Tensor | None = None) -> Timing:
    """GPU time by events, call by call. flush: a buffer larger than twice the L2 cache, written before every call."""
    for _ in range(20):
        call()
    pairs = []
    for _ in range(samples):
        if flush is not None:
            flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return _timing([start.elapsed_time(end) * 1e3 for start, end in pairs], 1)
