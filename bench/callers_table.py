"""docs/torchvision.md's tables: ops beside torchvision's functions, and whole calls of libraries under the patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.format import plain, times
from bench.row_timing import ratio

Report = dict[str, Any]

STEPS = (
    ("RegionProposalNetwork", "rpn_proposals", "fpn test 1000->1000 b1 trained"),
    ("MultiScaleRoIAlign", "multiscale_roi_align", "1000 rois 256 channels"),
    ("roi_align", "roi_align", "300 rois forward+backward"),
    ("postprocess_detections", "detections", "300 rois 91 classes b1"),
    ("nms", "nms", "1000 boxes trained"),
    ("batched_nms", "batched_nms", "6000 boxes 80 classes"),
)


def body(ops: tuple[Path, Report], measured: Sequence[Report]) -> list[str]:
    """ops: the newest of `python -m bench`; measured: reports of `bench.compat`."""
    rows = {(row["op"], row["workload"]): row for row in ops[1]["rows"]}
    lines = [["torchvision's", "runs on", "of", "times faster"], ["---", "---", "---", "---:"]]
    for theirs, op, workload in STEPS:
        found = ratio(rows[op, workload]["times"], over="torchvision")
        if found:
            lines.append([f"`{theirs}`", f"`ops.{op}`", workload, times(found)])
    said = [*_table(lines), ""]
    said += [f"The ops alone, against torchvision's on a CPU (`bench/results/{ops[0].name}`).", ""]
    found = max(
        (report for report in measured if "callers" in report), key=lambda r: r["environment"]["date"], default=None
    )
    if found is None:
        return [
            *said,
            "Whole calls have not been measured with all libraries: `python -m bench.compat --only callers`.",
        ]
    lines = [["library", "call", "runs on", "answers", "times faster"], ["---", "---", "---", "---", "---:"]]
    for one in found["callers"]:
        answers = "the same" if one["largest"] == 0 else f"within {one['largest']:.0e}"
        served = ", ".join(f"`{name}`" for name in one["replaced"])
        name = f"{one['library']} {plain(one['version'])}"
        lines.append([name, one["subject"], served, answers, f"{one['ratio']:.2f}"])
    environment = found["environment"]
    return [
        *said,
        *_table(lines),
        "",
        "Whole calls, random weights, processor time on one thread; patched and unpatched take turns in one process. "
        "Within: the largest difference, of the largest number there; detections whose scores are equal come in any "
        "order, since torchvision's is not settled, and losses move where rounding lets another region be sampled. "
        f"Measured on {environment['date'][:10]}, {environment['cpu']}, torch {plain(environment['torch'])}, beside "
        "other work: read the ratios.",
    ]


def _table(lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in lines]
