"""The README's few rows of speed: a whole detector first, then steps; and in words what the other rows are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.format import duration, times
from bench.row_timing import OURS, best

Report = dict[str, Any]

DETECTOR = (("a detector, one image", "image"), ("a detector, one training iteration", "iteration"))
STEPS = (
    ("the proposals of an image, VGG-16", "rpn_proposals", "vgg test 6000->300 b1 trained"),
    ("training targets of an image with 20 objects, FPN", "rpn_targets", "fpn 20 gt b1"),
    ("300 RoIs, forward and backward", "roi_align", "300 rois forward+backward"),
)


def body(ops: tuple[Path, Report], detectors: Sequence[Report], others: Sequence[Report]) -> list[str]:
    """Table and words. ops: the newest of `python -m bench`; detectors: of `bench.bccd`; others: of `bench.compat`."""
    timing = max((d for d in detectors if "ratio" in d), key=lambda d: d["environment"]["date"])
    lines = [["", "frcnn_fast", "best rival", "times faster"], ["---", "---:", "---:", "---:"]]
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
    return [*(f"| {' | '.join(line)} |" for line in lines), "", *_words(ops, timing, others)]


def _words(ops: tuple[Path, Report], timing: Report, others: Sequence[Report]) -> list[str]:
    """Where that was measured, and the range of what is not shown: of ops, not of proposals against another method."""
    rows = [row for row in ops[1]["rows"] if row["headline"] and row["ratio"] and row["op"].isidentifier()]
    factors = sorted(rows, key=lambda row: row["ratio"]["p50"])
    low, high = (f"{times(row['ratio'])} (`{row['op']}`, {row['workload']})" for row in (factors[0], factors[-1]))
    cores = ops[1]["environment"]["cores"]
    said = [
        f"Measured on {cores} processor cores while other work ran, contenders in turns in one process: read the "
        f"ratios. The detector: SqueezeNet on blood cells, {timing['environment']['cpu']} "
        f"(`bench/results/bccd-time.json`); the steps: {ops[1]['environment']['cpu']} "
        f"(`bench/results/{ops[0].name}`). All {len(rows)} headline rows of the steps lie between {low} and {high} "
        "times."
    ]
    if others := [report for report in others if "equal" in report]:
        found = max(others, key=lambda report: report["environment"]["date"])
        ratios = [ratio for one in found["equal"] for ratio in one["ratio"].values()]
        said += [
            f"Under mmdetection, whole models on one small image ran {min(ratios):.2f} to {max(ratios):.2f} times as "
            "fast as over torchvision's operators (inference and training, one thread)."
        ]
    return said
