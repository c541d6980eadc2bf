"""From counts and machine code to microseconds: three floors and their sum, for the rows that have a goal on a GPU."""

from __future__ import annotations

import functools
import heapq
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import environment, resources, schema
from bench.cost import counts, flow, host
from bench.cost.machine_code import Block, cycles, line_of, of_binary
from bench.cost.machines import Machine

HOTTEST = 5
REPLAYS = 3  # of the machine code, until its scoreboards are in step with the blocks before

FORWARD, BACKWARD = "forward", "backward"


@dataclass(frozen=True)
class Goal:
    """A row of the bench and what is aimed at, in µs on an H200, of a replay of a graph.

    us: 0 where nothing is. part: of its launches; skip: how many of them come before that part.
    """

    op: str
    workload: str
    us: float = 0.0
    part: str = ""
    skip: int = 0


GOALS = (
    Goal("rpn_proposals", "vgg test 6000->300 b1 trained", 15),
    Goal("rpn_proposals", "vgg train 12000->2000 b1 trained", 70),
    Goal("rpn_proposals", "fpn test 1000->1000 b1 trained", 25),
    Goal("rpn_targets", "vgg 20 gt b1", 8),
    Goal("rpn_targets", "fpn 20 gt b1", 15),
    Goal("roi_pool", "300 rois forward", 18, FORWARD),
    Goal("roi_pool", "300 rois forward+backward", 30, BACKWARD, 1),
    Goal("roi_align", "300 rois forward channels_last", 20, FORWARD),
    Goal("roi_align", "300 rois forward+backward channels_last", 35, BACKWARD, 2),
    Goal("multiscale_roi_align", "1000 rois 256 channels channels_last", 45),
    Goal("detections", "300 rois 21 classes b1", 10),
)


def predict(goals: Sequence[Goal], binary: Path, machines: Sequence[Machine]) -> Iterator[dict[str, Any]]:
    """The steps of the report."""
    names = [f"{goal.op}: {goal.workload}" for goal in goals]
    devices = {machine.device: counts.of_rows(names, machine.device) for machine in machines}
    for goal in goals:
        entry: dict[str, Any] = {
            **asdict(goal),
            "host": host.of_part(goal.op, goal.workload, goal.part),
            "machines": {},
        }
        del entry["skip"]
        counted = {device: next(launches) for device, launches in devices.items()}
        for machine in machines:
            parts = [of_launch(launch, machine, binary) for launch in counted[machine.device][goal.skip :]]
            whole = {what: sum(part[what] for part in parts) for what in ("issue", "bytes", "chain", "node")}
            entry["machines"][machine.name] = {**whole, "predicted": sum(whole.values()), "launches": parts}
        yield entry


@functools.cache
def forms(binary: Path) -> dict[tuple[str, str], resources.Form]:
    """What each kernel asks of a multiprocessor, by architecture and its name in plain."""
    found = resources.by_symbol(resources.find_cuobjdump(), binary)
    return {(architecture, plain(symbol)): form for (architecture, _, symbol), form in found.items()}


@functools.cache
def machine_code(binary: Path, architecture: str, source: str) -> dict[str, list[Block]]:
    """Of the kernels of a .cu file, by their names in plain."""
    return {plain(name): blocks for name, blocks in of_binary(binary, architecture, source).items()}


def plain(symbol: str) -> str:
    """Without the name of a namespace that has none: each compiler gives it another."""
    while found := re.search(r"(\d+)(?=_GLOBAL__N_)", symbol):
        symbol = f"{symbol[: found.start()]}?{symbol[found.end() + int(found[1]) :]}"
    return symbol


def of_launch(launch: counts.Launch, machine: Machine, binary: Path) -> dict[str, Any]:
    """Its three floors in µs, what they come from, and its hottest lines."""
    name = plain(launch.kernel)
    form = forms(binary)[machine.architecture, name]
    blocks = machine_code(binary, machine.architecture, form.source)[name]
    runs, chain = (flow.executions(blocks, source) for source in flow.SourceCounts.of_launch(launch))
    each = durations(blocks, chain, machine)
    instructions = float(sum(n * len(block.instructions) for n, block in zip(runs, blocks)))
    longest = float(chain @ each)

    resident = max(resources.blocks_at_once(form, launch.dynamic), 1)
    share, waves = spread(launch.blocks, machine.multiprocessors, resident)
    warps = min(resident, -(-launch.grid // machine.multiprocessors)) * launch.warps
    slots = instructions * share / min(machine.schedulers, warps)
    rounds = launch.shared_rounds * share
    moved = counts.SECTOR * (launch.read + launch.written)
    through_cache = counts.SECTOR * (launch.cached_reads + launch.written_requested)
    return {
        "kernel": resources.function_name(launch.kernel),
        "grid": launch.grid,
        "threads": launch.threads,
        "cluster": launch.cluster,
        "resident": resident,
        "instructions": round(instructions),
        "bytes_moved": moved,
        "bytes_through_cache": through_cache,
        "sectors": launch.requested,
        "shared_requests": launch.shared_requests,
        "shared_rounds": launch.shared_rounds,
        "barriers": launch.barriers,
        "lanes": launch.lanes,
        "chain_cycles": round(longest),
        "issue": 1e6 * max(slots, rounds) / machine.hertz,
        "bytes": 1e6 * max(moved / machine.memory, through_cache / machine.cache),
        "chain": 1e6 * longest * waves / machine.hertz,
        "node": machine.node,
        "hot": hottest(blocks, runs, chain, each),
    }


def durations(blocks: Sequence[Block], chain: np.ndarray, machine: Machine) -> np.ndarray:
    """Cycles that a warp takes for each block, after the block that it mostly comes from."""
    before: dict[int, int] = {}
    for number, block in enumerate(blocks):
        for following in block.next:
            if following not in before or chain[number] > chain[before[following]]:
                before[following] = number
    found = np.zeros(len(blocks))
    waiting: list[dict[int, float]] = [{} for _ in blocks]
    for _ in range(REPLAYS):
        left = []
        for number, block in enumerate(blocks):
            start = waiting[before[number]] if number in before else {}
            found[number], after = cycles(block, machine.lengths, start)
            left.append(after)
        waiting = left
    return found


def spread(blocks: Sequence[tuple[int, int]], multiprocessors: int, resident: int) -> tuple[float, float]:
    """The busiest multiprocessor's share of all work, and how many times the longest chain it goes through.

    Blocks go, in their order, to the multiprocessor with the least work; so many at once run side by side.
    """
    queue = [(0, number, 0) for number in range(multiprocessors)]
    chains = Counter[int]()
    work = Counter[int]()
    for runs, chain in blocks:
        amount, number, _ = heapq.heappop(queue)
        work[number] += runs
        chains[number] += chain
        heapq.heappush(queue, (amount + runs, number, 0))
    total, longest = sum(runs for runs, _ in blocks), max(chain for _, chain in blocks)
    one_after_the_other = max(chains.values()) / resident / max(longest, 1)
    return max(work.values()) / max(total, 1), max(1.0, one_after_the_other)


def hottest(blocks: Sequence[Block], runs: np.ndarray, chain: np.ndarray, each: np.ndarray) -> list[dict[str, Any]]:
    """The lines with the largest part of the instructions, and their part of the chain."""
    issued, waited = Counter[str](), Counter[str]()
    for block, n, longest, length in zip(blocks, runs, chain, each):
        for place, count in block.places().items():
            line = line_of(place)
            issued[line] += n * count
            waited[line] += longest * length * count / len(block.instructions)
    total, whole = max(sum(issued.values()), 1), max(sum(waited.values()), 1)
    lines = sorted(issued, key=lambda line: issued[line] / total + waited[line] / whole, reverse=True)[:HOTTEST]
    return [
        {"line": line, "issued": float(issued[line] / total), "waited": float(waited[line] / whole)} for line in lines
    ]


def new_report(machines: Sequence[Machine]) -> dict[str, Any]:
    """What is written with --json, without its rows."""
    constants = {
        machine.name: {name: value for name, value in asdict(machine).items() if name not in ("name", "device")}
        for machine in machines
    }
    return {
        "schema": schema.VERSION,
        "benchmark": "cost",
        "environment": environment.describe("cpu"),
        "machines": constants,
        "steps": [],
    }


def text(entry: dict[str, Any]) -> list[str]:
    """For the terminal."""
    goal = f"(goal {entry['us']:g} µs)" if entry["us"] else ""
    lines = [f"{entry['op']}: {entry['workload']} {entry['part']} {goal}".rstrip()]
    lines.append(f"  the host, without launches: {entry['host']:.1f} µs")
    for name, found in entry["machines"].items():
        head = "  ".join(f"{what} {found[what]:.1f}" for what in ("issue", "bytes", "chain", "node"))
        lines.append(f"  {name}: predicted {found['predicted']:.1f} µs = {head}")
        for part in found["launches"]:
            lines.append(
                f"    {part['kernel']} {part['grid']}x{part['threads']}: issue {part['issue']:.2f}, "
                f"bytes {part['bytes']:.2f}, chain {part['chain']:.2f}; {part['instructions']:,} instructions, "
                f"{part['lanes']:.1f} lanes"
            )
            lines += [f"      {h['line']}: {h['issued']:.0%} issued, {h['waited']:.0%} waited" for h in part["hot"]]
    return lines


def growth(before: dict[str, Any], now: dict[str, Any], most: float) -> list[str]:
    """Kernels that issue more instructions than before, by row and machine."""
    known: dict[str, list[int]] = {}
    for report in (before, now):
        for entry in report["steps"]:
            for machine, found in entry["machines"].items():
                issued = Counter[str]()
                for part in found["launches"]:
                    issued[part["kernel"]] += part["instructions"]
                for kernel, n in issued.items():
                    key = f"{kernel} in {entry['op']}: {entry['workload']} {entry['part']} ({machine})"
                    known.setdefault(key, []).append(n)
    return [
        f"{key}: {counts[0]:,} instructions before, {counts[1]:,} now"
        for key, counts in known.items()
        if len(counts) == 2 and counts[1] > (1 + most) * counts[0]
    ]
