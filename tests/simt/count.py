"""How often the source's lines run: kernels run on the processor with the constants of production, and are counted.

python -m tests.simt.count DEVICE "OP: WORKLOAD" ...

prints a line of JSON for each row of the bench (and for "kernel NAME", one of counting_kernels.cu): its launches on
that device of the harness (runtime.h). counting.cpp counts; here its places are given their lines. bench/cost/counts.py
reads it.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tests.simt.backend import VARIABLE, load_test_module, use_simt
from tests.simt.build import build


class Lines:
    """The lines of the module's basic blocks."""

    def __init__(self, module: Path) -> None:
        self.module = module
        command = ["objdump", "-d", "--no-show-raw-insn", "-j", ".text", str(module)]
        text = subprocess.run(command, text=True, capture_output=True, check=True).stdout
        self.names: dict[int, str] = {}
        self.addresses: list[int] = []
        starts = []
        after_call = False
        for row in text.splitlines():
            if found := re.match(r"([0-9a-f]{8,}) <([^>]+)>:", row):
                self.names[int(found[1], 16)] = found[2]
                starts.append(int(found[1], 16))
            elif found := re.match(r" +([0-9a-f]+):\t(.*)", row):
                address = int(found[1], 16)
                self.addresses.append(address)
                if after_call:
                    starts.append(address)
                after_call = "__sanitizer_cov_trace_pc" in found[2]
        self.starts = sorted(set(starts))
        self.functions = sorted(self.names)
        self.known: dict[int, str] = {}  # by address: the lines that it was inlined at, the innermost of ours first

    def of_block(self, start: int) -> list[int]:
        """The addresses of the basic block that begins there."""
        return self._until_next(start, self.starts)

    def of_function(self, start: int) -> list[int]:
        """The addresses of the function that begins there."""
        return self._until_next(start, self.functions)

    def _until_next(self, start: int, starts: list[int]) -> list[int]:
        after = bisect.bisect_right(starts, start)
        end = starts[after] if after < len(starts) else self.addresses[-1] + 1
        return self.addresses[bisect.bisect_left(self.addresses, start) : bisect.bisect_left(self.addresses, end)]

    def look_up(self, addresses: Iterable[int]) -> None:
        """Gets them from the debugger's tables, all at once."""
        new = sorted(set(addresses) - self.known.keys())
        command = ["addr2line", "-a", "-i", "-e", str(self.module)]
        text = subprocess.run(
            command, input="\n".join(map(hex, new)), text=True, capture_output=True, check=True
        ).stdout
        address, chain = -1, list[str]()
        for row in [*text.splitlines(), "0x0"]:
            if row.startswith("0x"):
                if address >= 0:
                    self.known[address] = " ".join(chain)
                address, chain = int(row, 16), []
            elif found := re.match(r".*/(kernels|tests/simt)/(.*):(\d+)", row):
                # launch.cuh's device code is in nvcc's half of it.
                ours = found[1] == "kernels" and not found[2].endswith("/launch.cuh")
                if ours or found[2] == "counting_kernels.cu":
                    chain.append(f"{os.path.normpath(found[2])}:{found[3]}")


def of_call(module: Any, lines: Lines, call: Callable[[], Any]) -> list[dict[str, Any]]:
    """The launches of a call, as bench.cost.counts.Launch has them."""
    module.set_order(0)
    module.count(True)
    try:
        call()
    finally:
        module.count(False)
    found, addresses = module.counted(), module.addresses()
    wanted = set()
    for launch in found:
        for place, kind, *_ in launch["places"]:
            # A call's own line is that of the byte before the address that it returns to.
            wanted |= set(lines.of_block(addresses[place])) if kind == "code" else {addresses[place] - 1}
        wanted |= set(lines.of_function(launch["kernel"]))
    lines.look_up(wanted)
    return [_launch(launch, lines, addresses) for launch in found]


def _launch(found: dict[str, Any], lines: Lines, addresses: list[int]) -> dict[str, Any]:
    totals = dict.fromkeys(("requested", "written_requested", "shared_rounds", "shared_requests"), 0)
    runs = lanes = 0
    # A line that is in several basic blocks of one function runs as often as the one that runs most. What never ran is
    # known to be 0.
    contexts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    contexts |= {lines.known[a]: [0, 0] for a in lines.of_function(found["kernel"]) if lines.known[a]}
    accesses: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for place, kind, n, chain, by_lane, sectors, rounds in found["places"]:
        if kind == "code":
            runs += n
            lanes += by_lane
            for context in {lines.known[a] for a in lines.of_block(addresses[place])} - {""}:
                most = contexts[context]
                most[:] = max(most[0], n), max(most[1], chain)
            continue
        line = lines.known[addresses[place] - 1].split(" ")[0]
        if line:
            accesses[line, kind][0] += n
            accesses[line, kind][1] += chain
        totals["requested"] += sectors
        totals["written_requested"] += sectors if kind == "global write" else 0
        totals["shared_rounds"] += rounds
        totals["shared_requests"] += n if kind.startswith("shared") else 0
    return {
        "kernel": lines.names.get(found["kernel"], ""),
        "grid": found["grid"][0] * found["grid"][1] * found["grid"][2],
        "threads": found["block"],
        "cluster": found["cluster"],
        "dynamic": found["dynamic"],
        "barriers": found["barriers"],
        "lines": contexts,
        "accesses": [[line, kind, n, chain] for (line, kind), (n, chain) in accesses.items()],
        "blocks": found["blocks"],
        "read": found["read"],
        "written": found["written"],
        "cached_reads": found["cached_reads"],
        "lanes": lanes / max(runs, 1),
        **totals,
    }


def by_hand(name: str) -> Callable[[], Any]:
    """A kernel of counting_kernels.cu."""
    library = ctypes.CDLL(os.environ[VARIABLE])
    arrays = [np.zeros(4096, np.float32) for _ in range(2)]
    aligned = [a[-(a.ctypes.data // 4) % 32 :] for a in arrays]
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in aligned]
    return lambda: (library.count_kernel(name.removeprefix("kernel ").encode(), *pointers), aligned)


def main(device: int, names: Iterable[str]) -> None:
    module = build("simt_counts", output=sys.stderr)
    os.environ[VARIABLE] = str(module)
    load_test_module()
    from bench.registry import row
    from frcnn_fast import _C  # type: ignore[attr-defined]

    lines = Lines(module)
    for name in names:
        with contextlib.redirect_stdout(sys.stderr):
            call = by_hand(name) if name.startswith("kernel ") else row(name).make("cpu").ours
            with use_simt(device):
                launches = of_call(_C, lines, call)
        print(json.dumps(launches), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
