"""Nsight Compute on the two kernels that cost most: `python -m bench.nsight --json FILE` prints and writes its words.

The two are found with the profiler over the headline workloads, or over those of --row; each is then run once more
under ncu, for a few sections. The file is written anew after each.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import kernels, tools
from bench.case import Row
from bench.registry import row, rows

SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "MemoryWorkloadAnalysis", "SchedulerStats", "WarpStateStats")
HOTTEST = 2
OPS = ("rpn_proposals", "rpn_targets", "roi_pool", "roi_align", "detections")
CALLS = 5


def headlines() -> list[Row]:
    """The headline rows of one image."""
    return [r for r in rows(backend="cuda", headline=True) if r.op in OPS and not r.workload.endswith("b8")]


def hottest(among: Sequence[Row], deadline: float) -> list[tuple[float, str, str]]:
    """(microseconds a call, row, kernel) of the kernels that cost most among the rows, longest first; of each kernel
    its costliest row.
    """
    found: dict[str, tuple[float, str, str]] = {}
    for r in among:
        if time.monotonic() > deadline:
            break
        for name, spent in kernels.ours(kernels.times(r.make("cuda").ours)).items():
            if name not in found or spent > found[name][0]:
                found[name] = (spent, r.name, name)
    return sorted(found.values(), reverse=True)[:HOTTEST]


def inspect(name: str, kernel: str, seconds: float) -> str:
    """ncu's figures for one launch of that kernel in that row, or what went wrong."""
    ncu = tools.find("ncu")
    if ncu is None:
        return "ncu is not installed"
    function = kernels.function_name(kernel)
    # The card's clocks are left as they are.
    command = [ncu, "--clock-control", "none", "--target-processes", "all", "--csv", "--page", "details"]
    command += ["--kernel-name", function, "--launch-skip", "2", "--launch-count", "1"]
    for section in SECTIONS:
        command += ["--section", section]
    command += [sys.executable, "-m", "bench.nsight", "--once", name]
    # Into a file: of a pipe, the program under ncu would still hold an end when ncu itself was stopped.
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=tools.ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return f"ncu took longer than {seconds:.0f} s"
        output.seek(0)
        said = output.read()
    return digest(said) or f"ncu gave no figures (exit {process.returncode}):\n{said.strip()[-1500:]}"


def digest(output: str) -> str:
    """ncu's CSV as aligned lines, section by section; empty where there is none in it."""
    lines = output.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return ""
    text: list[str] = []
    section = ""
    for entry in csv.DictReader(io.StringIO("\n".join(lines[start:]))):
        metric, value = entry.get("Metric Name"), entry.get("Metric Value")
        if not metric or not value:
            continue
        if entry["Section Name"] != section:
            section = entry["Section Name"]
            text.append(f"  {section}")
        text.append(f"    {metric:44s} {value:>14s} {entry.get('Metric Unit', '')}".rstrip())
    return "\n".join(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 also where ncu is missing or may not read the counters: the text then says so."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.nsight", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write it here")
    parser.add_argument("--seconds", type=float, default=120.0, help="for everything (default 120)")
    parser.add_argument("--row", metavar="NAME", help="the kernels of that row ('op: workload') alone")
    parser.add_argument("--once", metavar="ROW", help="only run that row's call a few times (what ncu looks at)")
    args = parser.parse_args(argv)
    if args.once:
        call = row(args.once).make("cuda").ours
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
        return 0
    start = time.monotonic()
    among = [row(args.row)] if args.row else headlines()
    found: list[dict[str, Any]] = [
        {"row": name, "kernel": kernel, "us": round(spent, 3), "ncu": "not asked"}
        for spent, name, kernel in hottest(among, start + args.seconds / 2)
    ]

    def save() -> None:
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")

    save()
    for i, each in enumerate(found):
        left = (args.seconds - (time.monotonic() - start)) / (len(found) - i)
        each["ncu"] = inspect(each["row"], each["kernel"], max(left, 10.0))
        print(each["row"], each["kernel"], f"{each['us']:.2f} us a call", each["ncu"], "", sep="\n", flush=True)
        save()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
