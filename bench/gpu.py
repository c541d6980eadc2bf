"""`make gpu-bench`: floors, every row, profiles, Nsight Compute and plots into one folder, in less than ten minutes.

Writes at most eight files: <gpu>-<date>.json (everything measured), its ops, scaling and roofline plots,
<...>-profile.png, <...>-trace.json.gz, <...>-ncu.txt and gpu-bench.log. A step that fails or runs out of time is
named in the JSON and costs the others nothing. Needs no network.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import environment, schema

ROOT = environment.ROOT
MINUTES = 9.0
RESERVE = 150.0  # seconds kept for what comes after the rows


class Steps:
    """Runs commands one after the other against one deadline, and keeps a log."""

    def __init__(self, deadline: float, log: Path) -> None:
        self.deadline, self.log = deadline, log
        self.outcomes: list[dict[str, Any]] = []
        log.write_text("")

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def run(self, name: str, arguments: Sequence[str], limit: float) -> bool:
        """`python -m <arguments>`, for at most `limit` seconds. Whether it succeeded."""
        limit = min(limit, self.left())
        start = time.monotonic()
        outcome = "no time left"
        if limit > 5:
            with self.log.open("a") as log:
                log.write(f"== {name}\n")
                log.flush()
                process = subprocess.Popen(
                    [sys.executable, "-u", "-m", *arguments],
                    cwd=ROOT,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
                try:
                    code = process.wait(limit)
                    outcome = "done" if code == 0 else f"exit {code}"
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    outcome = f"stopped after {limit:.0f} s"
        seconds = time.monotonic() - start
        self.outcomes.append({"step": name, "outcome": outcome, "seconds": round(seconds, 1)})
        print(f"gpu-bench: {name}: {outcome} ({seconds:.0f} s)", flush=True)
        return outcome == "done"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when every row was right and there is a results file."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for everything (default {MINUTES:g})")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("gpu-bench: torch sees no CUDA device", file=sys.stderr)
        return 2
    out: Path = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    steps = Steps(time.monotonic() + 60 * args.minutes, out / "gpu-bench.log")
    stem = environment.slug(environment.describe("cuda"))
    with tempfile.TemporaryDirectory() as folder:
        return _all(steps, Path(folder), out, stem)


def _all(steps: Steps, scratch: Path, out: Path, stem: str) -> int:
    steps.run("floors", ["bench.floors", "--json", str(scratch / "floors.json")], 120)
    results = out / f"{stem}.json"
    minutes = (steps.left() - RESERVE) / 60
    rows = ["bench", "--backend", "cuda", "--seconds", "0.3", "--minutes", f"{minutes:.2f}", "--json", str(results)]
    right = steps.run("rows", rows, steps.left() - RESERVE + 60)
    profiles = {"vgg": ["--shape", "vgg"], "fpn": ["--shape", "fpn"]}
    for name, arguments in profiles.items():
        steps.run(
            f"profile {name}", ["bench.profile", "--device", "cuda", *arguments, "--out", str(scratch / name)], 30
        )
    steps.run("nsight", ["bench.nsight", "--out", str(out / f"{stem}-ncu.txt"), "--seconds", "75"], 90)
    if not results.exists():
        print(f"gpu-bench: no row was measured; see {steps.log}", file=sys.stderr)
        return 1
    report = json.loads(results.read_text())
    report["floors"] = _read(scratch / "floors.json")
    report["profiles"] = {name: _read(scratch / name / "profile.json") for name in profiles}
    for made, wanted in (("profile.png", "profile.png"), ("profile-trace.json.gz", "trace.json.gz")):
        if (scratch / "vgg" / made).exists():
            shutil.copy(scratch / "vgg" / made, out / f"{stem}-{wanted}")
    schema.save(report, results)
    steps.run("plots", ["bench.report", str(results), "--no-pages"], 30)
    report["steps"] = steps.outcomes
    schema.save(report, results)
    print(f"gpu-bench: {len(report['rows'])} rows, {len(report['wrong'])} wrong; results in {out}")
    return 0 if right and not report["wrong"] else 1


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    raise SystemExit(main())
