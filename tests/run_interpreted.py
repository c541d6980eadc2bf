"""The Triton kernels in Triton's interpreter, on the processor: `python -m tests.run_interpreted [pytest arguments]`.

Runs the hand-worked table, a fifth of the small conformance cases and a few planted mistakes on the backend "triton",
or with FRCNN_LONG=1 all of them. What the kernels compile to is tests/test_triton.py's matter: a process either
interprets kernels or compiles them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
# The interpreter computes NaN and infinities as the hardware does; NumPy tells of each.
PYTEST += ["-W", "ignore::RuntimeWarning"]


SUITE = "tests/conformance/test_conformance.py"
# Two at a time: the halves of the suite take about as long, and the last one is short.
PARTS = (
    [SUITE, "-k", "triton and not roi"],
    [SUITE, "-k", "triton and roi"],
    ["tests/conformance/test_triton_mutants.py"],
)


def run(arguments: list[str]) -> int:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "FRCNN_REQUIRE": "triton", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*PYTEST, *arguments], cwd=ROOT, env=environment, check=False).returncode


def main() -> int:
    if len(sys.argv) > 1:
        return run(sys.argv[1:])
    with ThreadPoolExecutor(max_workers=2) as pool:
        return int(any(list(pool.map(run, PARTS))))


if __name__ == "__main__":
    sys.exit(main())
