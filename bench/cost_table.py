"""docs/benchmarks.md's table of what is predicted for a GPU, from `python -m bench.cost`."""

from __future__ import annotations

from typing import Any

from bench.row_timing import GRAPH, OURS

Report = dict[str, Any]
PARTS = ("issue", "bytes", "chain", "node")
SHOWN = "H200"  # with its parts; of the others only what is predicted


def body(shown: str, report: Report, measured: Report | None) -> list[str]:
    """Caption and table. shown: the report's file. measured: of the rows on a GPU, the newest, where there is one."""
    e = report["environment"]
    others = [name for name in report["machines"] if name != SHOWN]
    titles = ["step", "workload", *PARTS, f"**predicted, {SHOWN}**", "goal"]
    titles += [f"measured, {measured['environment']['gpu']}"] if measured else []
    titles += [f"predicted, {name}" for name in others] + ["host, eager", "hottest lines"]
    lines = [titles, ["---", "---", *["---:"] * (len(titles) - 3), "---"]]
    for row in report["steps"]:
        found = row["machines"][SHOWN]
        workload = row["workload"].replace("forward+backward", "forward")
        part = f", {row['part']}" if row["part"] == "backward" else ""
        cells = [f"`{row['op']}`", workload.replace(" forward", "") + (part or (row["part"] and ", forward"))]
        cells += [f"{found[name]:.1f}" for name in PARTS]
        cells += [f"**{span(found)}**", f"{row['us']:g}"]
        cells += [_measured(row, measured)] if measured else []
        cells += [span(row["machines"][name]) for name in others]
        cells += [f"{row['host'] + report['machines'][SHOWN]['launch'] * len(found['launches']):.0f}"]
        lines.append([*cells, ", ".join(f"`{line}`" for line in _hottest(found)[:2])])
    changed = " with changes" if e["changed"] else ""
    return [
        f"Predicted, not measured, on {e['date'][:10]}; µs of a replay in a graph; commit {e['commit'][:10]}{changed} "
        f"(`{shown}`).",
        "",
        *(f"| {' | '.join(line)} |" for line in lines),
    ]


def span(found: dict[str, Any]) -> str:
    """From the largest of a launch's parts, with the launches themselves, to the sum."""
    floor = sum(max(part["issue"], part["bytes"], part["chain"]) + part["node"] for part in found["launches"])
    return f"{floor:.0f}–{found['predicted']:.0f}"


def _hottest(found: dict[str, Any]) -> list[str]:
    """Lines of all launches, by how much of the predicted time each accounts for."""
    costs: dict[str, float] = {}
    for part in found["launches"]:
        for hot in part["hot"]:
            cost = hot["issued"] * part["issue"] + hot["waited"] * part["chain"]
            costs[hot["line"]] = costs.get(hot["line"], 0.0) + cost
    return sorted(costs, key=lambda line: -costs[line])


def _measured(row: dict[str, Any], report: Report) -> str:
    """Of a graph; a gradient alone is not measured."""
    times = [
        time["p50"]
        for other in report["rows"]
        if row["part"] != "backward" and (other["op"], other["workload"]) == (row["op"], row["workload"])
        for time in other["times"]
        if (time["who"], time["how"]) == (OURS, GRAPH)
    ]
    return f"{min(times):.1f}" if times else "–"
