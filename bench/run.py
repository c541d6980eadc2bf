"""Measures the rows of the benchmark, each only after its answer was found equal to the reference's.

With --journal a row that ends the process, or hangs, costs that row only: the same command once more goes on behind it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import competitors, environment, schema
from bench.case import Row, Unavailable
from bench.journal import DIED, FAILED, PASSED, SKIPPED, START_ANEW, Journal
from bench.registry import rows
from bench.row_timing import GRAPH, OURS, WRONG, Options, best, measure_row


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 when an answer was wrong or a call failed; START_ANEW when the GPU can be used no more."""
    args = _arguments(argv)
    chosen = rows(args.op, args.workload, args.backend, args.headline)
    if args.list:
        print(*(r.name for r in chosen), sep="\n")
        return 0
    if args.backend == "cuda" and not torch.cuda.is_available():
        print("bench: torch sees no CUDA device; --backend cpu measures on the processor", file=sys.stderr)
        return 2
    if not chosen:
        print("bench: no row matches; --list names them all", file=sys.stderr)
        return 2
    for reason in competitors.missing():
        print(f"missing competitor: {reason}", file=sys.stderr)
    before = {_key(r): r for r in schema.load(args.compare)["rows"]} if args.compare else {}
    journal = Journal(args.journal, args.row_seconds)
    report = schema.load(args.json) if journal.before else new_report(args.backend)
    if args.add:
        if not (args.json and args.json.exists()):
            print("bench: --add: name the report that the rows go into by --json", file=sys.stderr)
            return 2
        now, report = report, schema.load(args.json)
        drop(report, chosen, args.backend)
        try:
            same_machine(report["environment"], now["environment"])
        except ValueError as error:
            print(f"bench: --add: {error}", file=sys.stderr)
            return 2
        there, here = report["environment"], now["environment"]["missing"]
        there["missing"] = [reason for reason in there["missing"] if reason in here]
        measured = {key: now["environment"][key] for key in ("date", "commit", "changed")}
    if args.floors and args.floors.exists():
        stand_on(json.loads(args.floors.read_text()), report)
    chosen = go_on(report, chosen, journal)
    if args.json:
        schema.save(report, args.json)  # there is one, whatever the first row does
    options = Options(args.seconds, tuple(args.against.split(",")))
    lost = ""
    for row in _until(args.minutes, journal.start, chosen, report):
        print(f"{row.name} ...", flush=True)
        journal.begin(row.name)
        lost = journal.end(row.name, *_one(row, args.backend, options, report))
        entry = report["rows"][-1] if report["rows"] else None
        if entry and entry["op"] == row.op and entry["workload"] == row.workload:
            print(line(entry, before.get(_key(entry))), flush=True)
            if args.add:
                entry["measured"] = measured
        if args.json:
            schema.save(report, args.json)
        if lost:
            print(f"bench: {lost}", file=sys.stderr)
            return START_ANEW
    if args.backend == "cuda":
        report["environment"]["nvidia_smi_after"] = environment.gpu()["nvidia_smi"]  # clocks and heat after the work
    if args.json:
        schema.save(report, args.json)  # with the rows for which no time was left
    print(f"{len(report['rows'])} rows, {len(report['wrong'])} wrong, {len(report['skipped'])} skipped")
    return 1 if report["wrong"] else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--op", default="", help="only ops whose name contains this")
    parser.add_argument("--workload", default="", help="only workloads whose name contains this")
    parser.add_argument("--headline", action="store_true", help="only the rows of the README")
    parser.add_argument("--backend", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--against",
        default="all",
        help='competitors by parts of their names, "a,b" (default all; "": none); on a GPU "triton", this library\'s '
        "Triton kernels, are one of them, otherwise timed in headline rows only",
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="about so long for each contender (default 1)")
    parser.add_argument("--minutes", type=float, help="begin no row after that time; those left are named as skipped")
    parser.add_argument("--json", type=Path, help="write the report here, after every row")
    parser.add_argument(
        "--add", action="store_true", help="into the report of --json, of this machine: rows that it lacks or has anew"
    )
    parser.add_argument("--compare", type=Path, help="an earlier report to show changes against")
    parser.add_argument("--floors", type=Path, help="what python -m bench.floors has written, for the roofs")
    parser.add_argument("--journal", type=Path, help="note every row here, before and after; pass over those it names")
    parser.add_argument("--row-seconds", type=float, help="the most that a row may take, or the process ends itself")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    args = parser.parse_args(argv)
    if args.journal and not args.json:
        parser.error("--journal needs --json")
    return args


def new_report(backend: str) -> dict[str, Any]:
    """A report without rows."""
    return {
        "schema": schema.VERSION,
        "environment": environment.describe(backend),
        "roofs": environment.roofs(backend),
        "rows": [],
        "wrong": [],
        "skipped": [],
    }


def same_machine(there: dict[str, Any], here: dict[str, Any]) -> None:
    """ValueError where rows measured here would not stand beside a report's."""
    for key in ("system", "cpu", "cores", "build", "python", "torch", "numpy", *competitors.versions()):
        if there.get(key) != here.get(key):
            raise ValueError(
                f"the report's {key} is {there.get(key)!r}, here it is {here.get(key)!r}; write another one"
            )


def drop(report: dict[str, Any], chosen: Sequence[Row], backend: str) -> None:
    """Takes what a report says of these rows out of it, for it is said anew."""
    names = {(row.op, row.workload) for row in chosen}
    for part in ("rows", "wrong", "skipped"):
        report[part] = [
            entry
            for entry in report[part]
            if (entry["op"], entry["workload"]) not in names or entry.get("backend", backend) != backend
        ]


def stand_on(floors: dict[str, Any], report: dict[str, Any]) -> None:
    """Puts the floors into a GPU's report. The roof of its L2 cache is among them: between two events, a copy that is
    so short would be mostly launch.
    """
    report["floors"] = floors
    if "copy_l2_gb_s" in floors:
        report["roofs"]["cache_bytes_per_s"] = 1e9 * floors["copy_l2_gb_s"]["p50"]


def go_on(report: dict[str, Any], chosen: Sequence[Row], journal: Journal) -> list[Row]:
    """The rows that are left after a process that ended early. The report says from now on which one it ended in."""
    known = {(entry["op"], entry["workload"]) for entry in report["wrong"]}
    for row in chosen:
        item = journal.before.get(row.name)
        if item and item.outcome in (DIED, FAILED) and (row.op, row.workload) not in known:
            report["wrong"].append({"op": row.op, "workload": row.workload, "why": item.why})
    return [row for row in chosen if row.name not in journal.before]


def _until(minutes: float | None, start: float, chosen: Sequence[Row], report: dict[str, Any]) -> Iterator[Row]:
    """The rows, as long as there is time."""
    for row in chosen:
        if minutes is not None and time.time() - start > 60 * minutes:
            report["skipped"].append({"op": row.op, "workload": row.workload, "why": "out of time"})
        else:
            yield row


def _one(row: Row, backend: str, options: Options, report: dict[str, Any]) -> tuple[str, str]:
    """Measures a row into the report; one that fails costs that row only. For the journal: the outcome, and why."""
    place = {"op": row.op, "workload": row.workload}
    try:
        entry = measure_row(row, backend, options)
        report["rows"].append(entry)
        for who, note in entry["notes"].items():
            if note.startswith(WRONG):
                report["wrong"].append({**place, "why": f"{who}: {note}"})
                print(f"{row.name}: {who}: {note}", file=sys.stderr)
                return FAILED, f"{who}: {note}"
    except Unavailable as reason:
        report["skipped"].append({**place, "why": str(reason)})
        print(f"{row.name}: skipped: {reason}", file=sys.stderr)
        return SKIPPED, str(reason)
    except Exception as error:
        if not isinstance(error, AssertionError):
            traceback.print_exc()
        report["wrong"].append({**place, "why": f"{type(error).__name__}: {error}"})
        print(f"{row.name}: WRONG, not timed: {error}", file=sys.stderr)
        return FAILED, f"{type(error).__name__}: {error}"
    return PASSED, ""


def _key(entry: dict[str, Any]) -> tuple[str, str, str]:
    return entry["op"], entry["workload"], entry["backend"]


def ours(entry: dict[str, Any]) -> float:
    """Our best median in microseconds: of a call on the CPU, inside a graph on a GPU where there is one."""
    how = GRAPH if any(t["how"] == GRAPH and t["who"] == OURS for t in entry["times"]) else "call"
    found = best(t for t in entry["times"] if t["who"] == OURS and t["how"] == how)
    assert found is not None
    return found["p50"]


def line(entry: dict[str, Any], before: dict[str, Any] | None) -> str:
    """One line for the terminal."""
    text = f"{entry['op']:21s} {entry['workload']:40s} {ours(entry):11.1f} us"
    ratio = entry["ratio"]
    text += f" {ratio['p50']:8.2f} x {ratio['over']}" if ratio else ""
    if entry["goal"]:
        text += f" (goal {entry['goal']:g} {'us' if entry['backend'] == 'cuda' else 'x'})"
    if before:
        text += f"  {ours(entry) / ours(before):.2f} of before"
    return text
