"""`make gpu-bench`: floors, every row, plots, profiles and Nsight Compute into one folder, in less than ten minutes
with the build.

Writes eight files: <gpu>-<date>.json, which has everything that was measured, after every row and every part; its ops,
scaling and roofline plots; <...>-profile.png and <...>-trace.json.gz; gpu-bench.json and gpu-bench.log, which say how
it went (see `bench.steps`). A step that fails or runs out of time costs the others nothing, and a row that crashes or
hangs costs that row. Needs no network.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench import schema
from bench.steps import PYTHON, Runner, Step, first_steps, prepare

MINUTES = 9.0
ROW_SECONDS = 90.0  # the most for one row: two compilers may have a part in it
SLACK = 30.0  # seconds to start, and for the row in progress when the time for rows is over
PARTS = ("floors", "profile vgg", "profile fpn", "nsight")  # steps that write a part of the report


def module(name: str, arguments: Sequence[str], expected: float, limit: float, writes: Path | None = None) -> Step:
    """A step of `python -m`."""
    return Step(name, [*PYTHON, *arguments], expected, limit, writes=writes)


def before(device: str, scratch: Path) -> list[Step]:
    """What the rows stand on."""
    machine, floors = scratch / "machine.json", scratch / "floors.json"
    describe = ["bench.environment", "--backend", device, "--json", str(machine)]
    measure = module("floors", ["bench.floors", "--json", str(floors)], 30, 90, floors)
    return [module("machine", describe, 12, 90, machine), *([measure] if device == "cuda" else [])]


def rows(device: str, scratch: Path, results: Path, seconds: float) -> Step:
    """All rows, headlines first, for as long."""
    command = ["bench", "--backend", device, "--seconds", "0.3", "--minutes", f"{seconds / 60:.2f}"]
    command += ["--json", str(results), "--floors", str(scratch / "floors.json"), "--row-seconds", f"{ROW_SECONDS:g}"]
    return replace(module("rows", command, seconds, seconds + SLACK), journaled=True)


def after(device: str, scratch: Path, results: Path) -> list[Step]:
    """What is made of the rows, and what looks into them."""
    steps = [module("plots", ["bench.report", str(results), "--no-pages"], 10, 40)]
    for shape in ("vgg", "fpn"):
        command = ["bench.profile", "--device", device, "--shape", shape, "--out", str(scratch / shape)]
        steps.append(module(f"profile {shape}", command, 12, 30, scratch / shape / "profile.json"))
    if device == "cuda":
        path = scratch / "nsight.json"
        steps.append(module("nsight", ["bench.nsight", "--json", str(path), "--seconds", "50"], 40, 60, path))
    return steps


def seconds_for_rows(left: float, device: str) -> float:
    """Of what is left, without what comes after them."""
    nowhere = Path()
    return max(left - SLACK - 1.5 * sum(step.expected for step in after(device, nowhere, nowhere)), 5.0)


def keep(runner: Runner, results: Path) -> None:
    """What steps have written by now: into the report of the rows, and beside it."""
    if results.exists():
        parts = {name: runner.report[name] for name in PARTS if name in runner.report}
        schema.save({**json.loads(results.read_text()), **parts}, results)
    for name, ours in (("profile.png", "profile.png"), ("profile-trace.json.gz", "trace.json.gz")):
        if (runner.folder / "vgg" / name).exists():
            shutil.copy(runner.folder / "vgg" / name, results.with_name(f"{results.stem}-{ours}"))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when every row was right and every step went well, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for everything (default {MINUTES:g})")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to rehearse without a GPU")
    parser.add_argument("--no-build", action="store_true", help="measure what is built")
    args = parser.parse_args(argv)
    runner = Runner("gpu-bench", args.out, 60 * args.minutes)
    device, scratch, nowhere = args.device, runner.folder, Path()
    first = [] if args.no_build else first_steps(device)
    floors = before(device, scratch)
    left = runner.left() - sum(step.expected for step in [*first, *floors])
    planned = rows(device, scratch, nowhere, seconds_for_rows(left, device))
    runner.plan(([*first, *floors, planned, *after(device, scratch, nowhere)], 1))
    if first:
        prepare(runner, device)
    runner.run(floors)
    results = runner.out / f"{runner.report.get('machine', {}).get('slug', 'unknown')}.json"
    results.unlink(missing_ok=True)
    measured = rows(device, scratch, results, seconds_for_rows(runner.left(), device))
    for step in (measured, *after(device, scratch, results)):
        runner.run([step])
        keep(runner, results)
    return runner.finish()


if __name__ == "__main__":
    raise SystemExit(main())
