"""docs/export.md's table: exported detectors in other runtimes, from `python -m bench.compat --only exported`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.format import plain

EXPORTERS = {"program": "`torch.export`", "torchscript": "the older"}


def body(shown: str, report: dict[str, Any]) -> list[str]:
    """Table and words. shown: the report's file."""
    lines: list[Sequence[str]] = [["detector", "runtime", "exporter", "detections", "differ", "times eager's speed"]]
    lines.append(["---", "---", "---", "---:", "---:", "---:"])
    for row in report["exported"]:
        size = "x".join(map(str, row["size"]))
        runtime = f"{row['runtime']} {plain(row['version']).partition('-')[0]}"
        counts = [f"{row['detections']}", f"{row['unmatched']}"]
        lines.append([f"{row['subject']}, {size}", runtime, EXPORTERS[row["exporter"]], *counts, f"{row['ratio']:.2f}"])
    e = report["environment"]
    return [
        *(f"| {' | '.join(line)} |" for line in lines),
        "",
        f"Measured on {e['date'][:10]}: {e['cpu']}, one thread; torch {plain(e['torch'])} (`{shown}`). Differ: a "
        "detection without one of the same label within half a pixel and 0.001 of its score among the other's.",
    ]
