"""`make gpu-test`: the checks that need a GPU, and one report of them.

Runs the conformance suite with the CUDA and Triton backends required, graph capture under the synchronisation debug
mode, compute-sanitizer over the small cases, and sizes that only a GPU can hold; writes gpu-test.json (machine,
versions, every step with its outcome).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
SANITIZER_TIMEOUT_S = 150.0

# Ops whose Triton kernels are tested by one process each: compiling them is most of the work.
SHARDS = ("roi_align", "roi_pool", "rpn_targets", "rpn_proposals", "assign or sample", "nms", "detections or top_n")


def phases() -> list[list[tuple[str, list[str], float]]]:
    """Phase after phase, the checks that run side by side: (name, command, seconds it may take)."""
    suite = "tests/conformance/test_conformance.py"
    rest = " and ".join(f"not ({shard})" for shard in SHARDS)
    conformance = [
        ("conformance cuda", [*PYTEST, "tests/conformance", "-k", "cuda or table"], 300.0),
        *(
            (f"conformance triton, {shard}", [*PYTEST, suite, "-k", f"triton and ({shard})"], 300.0)
            for shard in (*SHARDS, rest)
        ),
        ("graphs", [*PYTEST, "tests/test_graphs.py"], 300.0),
    ]
    sanitizer = shutil.which("compute-sanitizer")
    options = ["--error-exitcode", "9", "--target-processes", "all"]
    subset = [*PYTEST, "-x", suite, "-k", "cuda and small"]
    sanitized = [
        (tool, [sanitizer, "--tool", tool, *options, *subset] if sanitizer else [], SANITIZER_TIMEOUT_S)
        for tool in ("memcheck", "racecheck", "initcheck", "synccheck")
    ]
    return [conformance, sanitized, [("large", [*PYTEST, "tests/test_large.py"], 120.0)]]


def run(name: str, command: list[str], limit: float) -> dict[str, Any]:
    """One step; a missing tool or a time-out is an outcome, and not a green one."""
    if not command:
        return {"name": name, "outcome": "missing tool", "ok": False}
    environment = dict(os.environ, FRCNN_REQUIRE="cuda,triton", PYTHONPATH=str(ROOT))
    start = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            timeout=limit,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as expired:
        output, code = str(expired.stdout or ""), -1
    lines = output.strip().splitlines()
    print(f"== {name}: exit {code} in {time.monotonic() - start:.0f} s", *lines[-15:], sep="\n", flush=True)
    return {
        "name": name,
        "command": " ".join(command[:6]) + " …",
        "ok": code == 0,
        "exit": code,
        "seconds": round(time.monotonic() - start, 1),
        "outcome": lines[-1] if lines else "",
        "tail": lines[-40:] if code else lines[-3:],
    }


def machine() -> dict[str, Any]:
    """What the report is about."""
    from frcnn_fast._extension import extension

    smi = shutil.which("nvidia-smi")
    query = [smi or "", "--query-gpu=name,driver_version,clocks.sm,memory.total", "--format=csv,noheader"]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True, capture_output=True)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or os.environ.get("FRCNN_COMMIT", "unknown"),
        "gpu": subprocess.run(query, text=True, capture_output=True).stdout.strip() if smi else "no nvidia-smi",
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "build": extension().build_info(),
    }


def main() -> int:
    """Exit status 0 only when every step is green."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu-test.json")
    out: Path = parser.parse_args().out
    if not torch.cuda.is_available():
        print("gpu-test: torch sees no CUDA device", file=sys.stderr)
        return 2
    steps: list[dict[str, Any]] = []
    for phase in phases():
        with ThreadPoolExecutor(max_workers=max(2, (os.cpu_count() or 2) // 2)) as pool:
            steps += pool.map(lambda step: run(*step), phase)
    report = {"machine": machine(), "steps": steps, "ok": all(step["ok"] for step in steps)}
    out.mkdir(parents=True, exist_ok=True)
    part = out / "gpu-test.json.part"
    part.write_text(json.dumps(report, indent=2) + "\n")
    part.replace(out / "gpu-test.json")
    print(f"gpu-test: {'green' if report['ok'] else 'RED'}; report in {out / 'gpu-test.json'}")
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
