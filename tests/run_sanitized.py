"""The compiled code under AddressSanitizer and UBSan: `python -m tests.run_sanitized [pytest arguments]`.

Builds the test module where it is stale (all CPU kernels, and all CUDA kernels over the SIMT harness), then runs, in a
Python that has the sanitizer's runtime loaded, the small conformance cases on the backends "cpu" and "simt", and the
planted mutants: eight, or with FRCNN_LONG=1 all of them, and the cases in all three schedules.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.simt.backend import VARIABLE
from tests.simt.build import CURRENT_TEST, ROOT, build, sanitizer_environment

# --capture=sys leaves file descriptor 2 alone: a sanitizer's report comes out although the process dies.
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "tests.simt.plugin", "-p", "no:cacheprovider", "--capture=sys"]


def run(arguments: list[str], **extra: str) -> int:
    print("==", " ".join(f"{k}={v}" for k, v in extra.items()), "pytest", *arguments, flush=True)
    environment = {**os.environ, **sanitizer_environment(), "FRCNN_REQUIRE": "cpu,simt", **extra}
    code = subprocess.run([*PYTEST, *arguments], cwd=ROOT, env=environment, check=False).returncode
    if code < 0:
        print(f"the process ended in {CURRENT_TEST.read_text()}; the report is above", flush=True)
    return code


def main() -> int:
    module = {VARIABLE: str(build())}
    if len(sys.argv) > 1:
        return run(sys.argv[1:], **module)
    orders: list[dict[str, str]] = [{}]
    if os.environ.get("FRCNN_LONG"):
        orders = [{"SIMT_ORDER": order} for order in "012"]
    suite = [f"tests/conformance/test_{name}.py" for name in ("conformance", "launches", "zero_sizes")]
    codes = [run(suite, **module, **order) for order in orders]
    codes.append(run(["tests/conformance/test_mutants.py"], **module))
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
