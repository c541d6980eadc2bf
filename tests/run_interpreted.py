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


def main() -> int:
    arguments = sys.argv[1:] or ["tests/conformance/test_conformance.py", "-k", "triton"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "FRCNN_REQUIRE": "triton"}
    return subprocess.run([*PYTEST, *arguments], cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
