"""The Triton kernels in Triton's interpreter, on the processor: `python -m tests.run_interpreted [pytest arguments]`.

Runs the small conformance cases and the hand-worked table on the backend "triton". What the kernels compile to is
tests/test_triton.py's matter: a process either interprets kernels or compiles them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
# The interpreter computes NaN and infinities as the hardware does; NumPy tells of each.
PYTEST += ["-W", "ignore::RuntimeWarning"]


# Halves of the suite that take about as long: two processes run them side by side.
HALVES = ("triton and (roi or assign)", "triton and not (roi or assign)")


def main() -> int:
    suite = "tests/conformance/test_conformance.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "FRCNN_REQUIRE": "triton", "OMP_NUM_THREADS": "1"}
    calls = [sys.argv[1:]] if len(sys.argv) > 1 else [[suite, "-k", half] for half in HALVES]
    running = [subprocess.Popen([*PYTEST, *call], cwd=ROOT, env=environment) for call in calls]
    return int(any(process.wait() for process in running))


if __name__ == "__main__":
    sys.exit(main())
