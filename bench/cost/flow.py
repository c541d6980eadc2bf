"""How often each basic block of the machine code runs, from how often the source's lines run.

The compiler unrolls, copies and merges, so a line has no one place in the machine code. What must hold nevertheless: a
warp that enters a block came from another and leaves to another; and all loads of a line, in whichever copies, run as
often as the source's loads of that line do. The counts that break these rules least (in the sum of relative amounts,
each rule with a weight) are taken: a linear program. Where nothing else decides, a block runs as often as its lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from bench.cost.counts import Launch
from bench.cost.machine_code import Block

# Weights of the rules.
START, ACCESS, GUARDED_ACCESS, FLOW, MORE_THAN_LINE, LESS_THAN_LINE = 100.0, 3.0, 0.3, 1.0, 0.2, 0.05


@dataclass(frozen=True)
class SourceCounts:
    """How often warps run each place (machine_code.Instruction), and each line's accesses of memory. starts: warps."""

    starts: float
    places: dict[str, float]
    accesses: dict[str, float]
    known: dict[str, float | None] = field(default_factory=dict)

    def of_place(self, place: str) -> float | None:
        """The places that were inlined alike, as far out as both compilers agree; None where no line is the same."""
        if place not in self.known:
            frames, found = place.split(" "), None
            for outer in range(len(frames), 0, -1):
                alike = " ".join(frames[:outer])
                counts = [n for other, n in self.places.items() if f"{other} ".startswith(f"{alike} ")]
                if counts:
                    found = sum(counts)
                    break
            self.known[place] = found
        return self.known[place]

    @classmethod
    def of_launch(cls, launch: Launch) -> tuple[SourceCounts, SourceCounts]:
        """Of all blocks together, and of one warp after the other on the longest chain."""
        found = []
        for which, starts in enumerate((launch.grid * launch.warps, 1)):
            accesses: Counter[str] = Counter()
            for line, _, *n in launch.accesses:
                accesses[line] += n[which]
            found.append(cls(starts, {place: n[which] for place, n in launch.lines.items()}, dict(accesses)))
        return found[0], found[1]


class _Program:
    """min sum of cost * x, with x >= 0 and equalities."""

    def __init__(self, variables: int) -> None:
        self.costs = [0.0] * variables
        self.rows: list[tuple[dict[int, float], float]] = []

    def rule(self, terms: dict[int, float], value: float, above: float, below: float) -> None:
        """The sum of terms should be value: what it is above and below that costs so much a unit."""
        self.costs += [above, below]
        self.rows.append(({**terms, len(self.costs) - 2: -1.0, len(self.costs) - 1: 1.0}, value))

    def solve(self) -> np.ndarray:
        i, j, v = list[int](), list[int](), list[float]()
        for number, (terms, _) in enumerate(self.rows):
            i += [number] * len(terms)
            j += terms.keys()
            v += terms.values()
        matrix = coo_array((v, (i, j)), shape=(len(self.rows), len(self.costs))).tocsr()
        found = linprog(self.costs, A_eq=matrix, b_eq=[value for _, value in self.rows], method="highs")
        if found.x is None:
            raise RuntimeError(f"bench.cost: {found.message}")
        return np.asarray(found.x)


def executions(blocks: Sequence[Block], source: SourceCounts) -> np.ndarray:
    """How often warps run each block, all together."""
    reached = reachable(blocks)
    edges = [(a, b) for a in reached for b in blocks[a].next]
    program = _Program(len(blocks) + len(edges))
    into: list[dict[int, float]] = [{number: 1.0} for number in range(len(blocks))]
    out: list[dict[int, float]] = [{number: 1.0} for number in range(len(blocks))]
    for number, (a, b) in enumerate(edges):
        into[b][len(blocks) + number] = -1.0
        out[a][len(blocks) + number] = -1.0
    sizes = []
    for block in blocks:
        known = [source.of_place(place) for place in block.places()]
        sizes.append(max(min((n for n in known if n), default=source.starts), 1.0))
    for number in reached:
        block = blocks[number]
        weight = FLOW / sizes[number]
        if number == 0:
            program.rule(into[0], source.starts, START / source.starts, START / source.starts)
        else:
            program.rule(into[number], 0.0, weight, weight)
        # Fewer may leave than came where warps may end.
        program.rule(out[number], 0.0, 0.0 if block.ends else weight, weight)
        for place, n in block.places().items():
            count = source.of_place(place)
            if count is None:  # the other compiler has no code of that line
                continue
            share = n / len(block.instructions) / max(count, source.starts)
            program.rule({number: 1.0}, count, MORE_THAN_LINE * share, LESS_THAN_LINE * share)
    static: dict[str, dict[int, float]] = {}
    guarded: set[str] = set()
    for number in reached:
        for (line, under), n in blocks[number].accesses().items():
            terms = static.setdefault(line, {})
            terms[number] = terms.get(number, 0.0) + n
            if under:
                guarded.add(line)
    for line, terms in static.items():
        if line in source.accesses:
            below = ACCESS / max(source.accesses[line], 1.0)
            above = GUARDED_ACCESS / max(source.accesses[line], 1.0) if line in guarded else below
            program.rule(terms, source.accesses[line], above, below)
    found = np.zeros(len(blocks))
    found[reached] = program.solve()[reached]
    return found


def reachable(blocks: Sequence[Block]) -> list[int]:
    """From the first. The others are what a call leads to, and what pads the end."""
    found, left = {0}, [0]
    while left:
        new = set(blocks[left.pop()].next) - found
        found |= new
        left += new
    return sorted(found)
