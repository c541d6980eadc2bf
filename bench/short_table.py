"""The README's few rows of speed: in place first, then steps; and in words what the other rows are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.bccd_table import newest_timings
from bench.format import duration, times
from bench.in_place import PATCHED, THEIRS
from bench.row_timing import OURS, best

Report = dict[str, Any]

DETECTOR = (("R50-FPN, one image", "image"), ("R50-FPN, one training iteration", "iteration"))
STEPS = (
    ("the proposals of an image, VGG-16", "rpn_proposals", "vgg test 6000->300 b1 trained"),
    ("training targets of an image with 20 objects, FPN", "rpn_targets", "fpn 20 gt b1"),
)


def body(
    ops: tuple[Path, Report], inside: tuple[str, Report], detectors: Sequence[Report], others: Sequence[Report]
) -> list[str]:
    """Table and words. ops: the newest of `python -m bench`; inside: of `bench.in_place`, with its file; detectors: of
    `bench.r50`; others: of `bench.compat`."""
    timing = newest_timings(detectors)["float32"]
    lines = [["", "frcnn_fast", "best rival", "times faster"], ["---", "---:", "---:", "---:"]]
    for call in inside[1]["calls"]:
        if call["model"] == "R50-FPN":
            mine, theirs = (call["times"][who]["proposal side"]["p50"] for who in (OURS, THEIRS))
            title = f"the proposal side inside R50-FPN, {call['mode']}"
            patched = f"{duration(theirs)} (torchvision; {call['ratio'][PATCHED]:.1f} times faster when patched)"
            lines.append([title, duration(mine), patched, f"{call['ratio'][OURS]:.1f}"])
    for title, what in DETECTOR:
        mine, theirs = (timing["times"][who][what]["p50"] for who in ("frcnn_fast", "torchvision"))
        ratio = f"{timing['ratio'][what]:.2f}"
        lines.append([title, duration(mine), f"{duration(theirs)} (torchvision's detector)", ratio])
    rows = {(row["op"], row["workload"]): row for row in ops[1]["rows"]}
    for title, op, workload in STEPS:
        row = rows[op, workload]
        found = best(t for t in row["times"] if t["who"] == OURS and t["how"] == "call")
        rival = best(t for t in row["times"] if t["counts"])
        assert found
        assert rival
        cells = [duration(found["p50"]), f"{duration(rival['p50'])} ({rival['who']})", times(row["ratio"])]
        lines.append([f"`{op}`: {title}", *cells])
    return [*(f"| {' | '.join(line)} |" for line in lines), "", *_words(ops, inside, timing, others)]


def _words(ops: tuple[Path, Report], inside: tuple[str, Report], timing: Report, others: Sequence[Report]) -> list[str]:
    """Where that was measured, and the range of what is not shown: of ops, not of proposals against another method."""
    rows = [row for row in ops[1]["rows"] if row["headline"] and row["ratio"] and row["op"].isidentifier()]
    factors = sorted(rows, key=lambda row: row["ratio"]["p50"])
    low, high = (f"{times(row['ratio'])} (`{row['op']}`, {row['workload']})" for row in (factors[0], factors[-1]))
    cores = ops[1]["environment"]["cores"]
    size = "x".join(map(str, inside[1]["calls"][0]["size"]))
    said = [
        f"Measured on {cores} processor cores, contenders in turns in one process: read the ratios. Inside R50-FPN, on "
        f"an image of {size} pixels, counts what is neither a convolution nor a fully connected layer: "
        f"{inside[1]['environment']['cpu']} (`{inside[0]}`). The detector, on blood cells: "
        f"{timing['environment']['cpu']} (`bench/results/r50-time.json`). The steps: "
        f"{ops[1]['environment']['cpu']} (`bench/results/{ops[0].name}`). All {len(rows)} headline rows of the steps "
        f"lie between {low} and {high} times."
    ]
    if others := [report for report in others if "equal" in report]:
        found = max(others, key=lambda report: report["environment"]["date"])
        ratios = [ratio for one in found["equal"] for ratio in one["ratio"].values()]
        said += [
            f"Under mmdetection, whole models on one small image ran {min(ratios):.2f} to {max(ratios):.2f} times as "
            "fast as over torchvision's operators (inference and training, one thread)."
        ]
    return said
