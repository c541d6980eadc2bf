"""How often the lines of the kernels' sources run, from the process that counts them (tests/simt/count.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECTOR = 32  # bytes of memory that are moved together


@dataclass(frozen=True)
class Launch:
    """Of one launch: how often warps run each line (lines: all blocks together, and on the chain of the block with the
    longest), and its accesses of memory (line, kind, all together, on the chain).

    kernel: its mangled name. blocks: of each, (basic blocks run by its warps, on its chain). read, written: sectors,
    each once; cached_reads: each once a block; requested, written_requested: by every warp for itself. shared_rounds:
    through the banks of shared memory, for shared_requests. lanes: of 32, that run a basic block on average.
    """

    kernel: str
    grid: int
    threads: int
    cluster: int
    dynamic: int
    barriers: int
    lines: dict[str, tuple[int, int]]
    accesses: list[tuple[str, str, int, int]]
    blocks: list[tuple[int, int]]
    read: int
    written: int
    cached_reads: int
    lanes: float
    requested: int
    written_requested: int
    shared_rounds: int
    shared_requests: int

    @property
    def warps(self) -> int:
        """Of a block."""
        return -(-self.threads // 32)


def of_rows(names: Iterable[str], device: int) -> Iterator[list[Launch]]:
    """The launches of each row's call, on that device of the harness. RuntimeError where it cannot be built or run."""
    command = [sys.executable, "-m", "tests.simt.count", str(device), *names]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            launches: list[dict[str, Any]] = json.loads(line)
            yield [Launch(**launch) for launch in launches]
    if process.returncode:
        raise RuntimeError(f"bench.cost: {' '.join(command[:4])} ...: exit {process.returncode}")
