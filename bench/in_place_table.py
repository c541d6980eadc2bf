"""docs/benchmarks.md's table of the proposal side in place, from `python -m bench.in_place`."""

from __future__ import annotations

from typing import Any

from bench.format import duration, plain
from bench.in_place import NETWORK, OURS, STAGES, THEIRS

Report = dict[str, Any]
SIDE = "proposal side"


def body(shown: str, report: Report) -> list[str]:
    """Caption and table. shown: the report's file."""
    e = report["environment"]
    lines = [["", *STAGES, f"**{SIDE}**", "times faster", "part of the call", "call"]]
    lines.append(["---", *["---:"] * (len(STAGES) + 4)])
    for call in report["calls"]:
        for who, times in call["times"].items():
            name = f"{call['model']}, {call['mode']}: {who}"
            stages = [duration(times[stage]["p50"]) if stage in times else "" for stage in STAGES]
            ratio = f"{call['ratio'][who]:.1f}" if who != THEIRS else ""
            share = f"{100 * call['share'][who]:.1f} %"
            lines.append([name, *stages, duration(times[SIDE]["p50"]), ratio, share, duration(times["call"]["p50"])])
    samples = report["calls"][0]["times"][OURS][NETWORK]["samples"]
    return [
        f"Measured on {e['date'][:10]}: {e['cpu']}, {e['threads']} threads; torch {plain(e['torch'])}, torchvision "
        f"{plain(e['torchvision'])}; commit {e['commit'][:10]}{' with changes' if e['changed'] else ''} (`{shown}`). "
        f"Medians of {samples} calls on one image, everyone in turns in one process.",
        "",
        *(f"| {' | '.join(line)} |" for line in lines),
    ]
