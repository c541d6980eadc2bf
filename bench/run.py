"""Runs rows of the registry and writes one JSON file: `python -m bench --op nms --json out.json`."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import torch

import frcnn_fast
from bench import competitors, measure
from bench.registry import ROWS, Row
from frcnn_fast._extension import extension

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[1]
L2_FLUSH_BYTES = 256 << 20


def environment(device: str) -> dict[str, Any]:
    """The machine and the versions the figures belong to."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True, capture_output=True).stdout.strip()
    dirty = subprocess.run(["git", "status", "--porcelain", "--", "kernels", "bindings", "frcnn_fast", "bench"],
                           cwd=ROOT, text=True, capture_output=True).stdout.strip()  # fmt: skip
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or os.environ.get("FRCNN_COMMIT", "unknown"),
        "dirty": bool(dirty),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "build": extension().build_info(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "torchvision": competitors.TORCHVISION,
        "missing": competitors.missing(),
        "frcnn_fast": frcnn_fast.__version__,
    }
    if device == "cuda":
        query = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit",
            "--format=csv,noheader",
        ]
        found["gpu"] = torch.cuda.get_device_name()
        found["nvidia_smi"] = subprocess.run(query, text=True, capture_output=True).stdout.strip()
    return found


def cpu_name() -> str:
    """As the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def measure_row(row: Row, device: str, seconds: float) -> dict[str, Any]:
    """One row's result. Raises where the op's answer is wrong: a wrong answer has no speed."""
    case = row.make(device)
    case.check(case.ours())
    result: dict[str, Any] = {
        "op": row.op, "workload": row.workload, "device": device, "target": row.target,
        "bytes": case.bytes, "flops": case.flops, "facts": case.facts, "times_us": {},
    }  # fmt: skip
    if device == "cpu":
        _measure_cpu(case.ours, case.competitors, seconds, result)
    else:
        _measure_cuda(case.ours, case.competitors, seconds, result)
    best = {name: t["p50"] for name, t in result["times_us"].items() if name.startswith("frcnn_fast")}
    others = {n: t["p50"] for n, t in result["times_us"].items() if not n.startswith("frcnn_fast") and ":" not in n}
    result["ratio"] = min(others.values()) / min(best.values()) if others else None
    return result


def _measure_cpu(ours: Any, against: dict[str, Any], seconds: float, result: dict[str, Any]) -> None:
    # A competitor runs with one thread and with all, and its better time counts; so does ours.
    threads = torch.get_num_threads()
    settings = sorted({1, threads})
    calls = {"frcnn_fast": ours, **against}
    contenders = {f"{name} {t}T": _with_threads(call, t) for name, call in calls.items() for t in settings}
    for name, timing in measure.interleaved(contenders, seconds=seconds).items():
        result["times_us"][name] = timing.as_dict()
    torch.set_num_threads(threads)


def _with_threads(call: Any, threads: int) -> Any:
    def run() -> None:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        call()

    return run


def _measure_cuda(ours: Any, against: dict[str, Any], seconds: float, result: dict[str, Any]) -> None:
    times = measure.interleaved({"frcnn_fast": ours, **against}, device="cuda", seconds=seconds)
    result["times_us"].update({name: t.as_dict() for name, t in times.items()})
    flush = torch.empty(L2_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    for name, call in {"frcnn_fast": ours, **against}.items():
        result["times_us"][f"{name}: events"] = measure.cuda_event_times(call).as_dict()
        result["times_us"][f"{name}: events, cold L2"] = measure.cuda_event_times(call, 50, flush).as_dict()
    replay = measure.graph_replay(ours)
    if replay is not None:
        timing = measure.cuda_event_times(replay, 100)
        result["times_us"]["frcnn_fast: graph replay"] = {
            k: v / 20 if k.startswith("p") else v for k, v in timing.as_dict().items()
        }


def select(op: str | None, workload: str | None) -> list[Row]:
    """Rows whose op and workload contain the given texts."""
    return [r for r in ROWS if (not op or op in r.op) and (not workload or workload in r.workload)]


def show(result: dict[str, Any], before: dict[tuple[str, str], float]) -> None:
    """One line for the terminal."""
    mine = min(t["p50"] for n, t in result["times_us"].items() if n.startswith("frcnn_fast") and ":" not in n)
    ratio = f"{result['ratio']:8.1f}x" if result["ratio"] else "        -"
    goal = f" (target {result['target']:g}x)" if result["target"] else ""
    old = before.get((result["op"], result["workload"]))
    change = f"  {mine / old:.2f} of before" if old else ""
    print(f"{result['op']:20s} {result['workload']:42s} {mine:10.1f} us {ratio}{goal}{change}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Exit status 1 when a check failed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--op", help="only ops whose name contains this")
    parser.add_argument("--workload", help="only workloads whose name contains this")
    parser.add_argument("--backend", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=1.5, help="about so long a contender and row (default 1.5)")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--compare", type=Path, help="an earlier JSON file to show changes against")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    args = parser.parse_args(argv)
    rows = select(args.op, args.workload)
    if args.list:
        print(*(f"{r.op}: {r.workload}" for r in rows), sep="\n")
        return 0
    if not rows:
        parser.error("no row matches; see --list")
    before = {}
    if args.compare:
        for old in json.loads(args.compare.read_text())["rows"]:
            times = [t["p50"] for n, t in old["times_us"].items() if n.startswith("frcnn_fast") and ":" not in n]
            before[old["op"], old["workload"]] = min(times)
    for reason in competitors.missing():
        print(f"missing competitor: {reason}", file=sys.stderr)
    report: dict[str, Any] = {"schema": SCHEMA, "environment": environment(args.backend), "rows": []}
    failed = 0
    for row in rows:
        try:
            result = measure_row(row, args.backend, args.seconds)
        except AssertionError as wrong:
            print(f"{row.op}: {row.workload}: WRONG, not timed: {wrong}", file=sys.stderr)
            failed += 1
            continue
        report["rows"].append(result)
        show(result, before)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        part = args.json.with_name(args.json.name + ".part")
        part.write_text(json.dumps(report, indent=1) + "\n")
        part.replace(args.json)
    return 1 if failed else 0
