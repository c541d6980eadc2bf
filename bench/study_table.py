"""The tables of `python -m bench.study`, as markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.bccd import BACKBONE
from frcnn_fast.training import recipe

Result = Mapping[str, Any]

TITLES = {
    "recipes": "Optimisers, sizes of images, lengths of training",
    "schemes": "Training schemes",
    "lambda": "Balance of the two RPN losses",
    "anchors": "Scales and ratios of the anchors",
    "proposals": "Sources of proposals",
    "pyramid": "Levels of the pooling pyramid",
}


def document(tables: Mapping[str, Sequence[Any]], results: Sequence[Result]) -> str:
    """All tables that have a result; lines: those of `bench.study.TABLES`."""
    parts = [_caption(results)] if results else ["Nothing is finished yet.\n"]
    for name, lines in tables.items():
        rows = [(line, [r for r in results if r["line"] == line.name]) for line in lines]
        if any(found for _, found in rows):
            parts.append(f"## {TITLES[name]}\n\n{_table([(line, found) for line, found in rows if found])}")
    return "\n".join(parts)


def _table(rows: Sequence[tuple[Any, Sequence[Result]]]) -> str:
    columns: list[tuple[str, Callable[[Result], float | None]]] = [
        ("AP50, area", lambda r: r["test"]["map_area"] if "test" in r else None),
        ("AP50, 11-point", lambda r: r["test"]["map07"] if "test" in r else None),
        ("AR@100", lambda r: r["recall"]["average_recall"]["all"]["100"]),
        ("AR@300", lambda r: r["recall"]["average_recall"]["all"]["300"]),
        ("recall@0.5, 300", lambda r: r["recall"]["recall"]["0.5"]["300"]),
        ("boxes an image", lambda r: r["recall"]["proposals_per_image"]),
        ("minutes", lambda r: r["minutes"]),
        ("processor minutes", lambda r: r["processor_minutes"]),
    ]
    lines = [["", *(title for title, _ in columns)], ["---", *["---:"] * len(columns)]]
    for line, found in rows:
        ordered = sorted(found, key=lambda r: r["seed"])
        lines.append([line.title, *(_cell([value(r) for r in ordered], title) for title, value in columns)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(values: Sequence[float | None], title: str) -> str:
    """The mean over the seeds, and each seed's figure where there are several."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    digits = 0 if title == "boxes an image" else 1 if "minutes" in title else 3
    mean = f"{sum(known) / len(known):.{digits}f}"
    several = len(known) > 1 and digits == 3
    return f"{mean} ({', '.join(f'{value:.{digits}f}' for value in known)})" if several else mean


def _caption(results: Sequence[Result]) -> str:
    threads = {1: "1 thread"}
    machines = sorted(
        {f"{e['cpu']}, {threads.get(e['threads'], str(e['threads']) + ' threads')}" for e in _environments(results)}
    )
    commits = sorted({e["commit"][:10] for e in _environments(results)})
    seeds = sorted({r["seed"] for r in results})
    options = [r["recipe"]["options"] for r in results]
    lengths = sorted({o.get("iterations", recipe(BACKBONE).iterations) for o in options})
    precisions = sorted({o.get("precision", "float32") for o in options})
    return (
        f"BCCD, test split; iterations of a stage: {', '.join(map(str, lengths))}; {', '.join(precisions)}; "
        f"seeds {', '.join(map(str, seeds))}; "
        f"{'; '.join(machines)}; commit {', '.join(commits)}. Means over the seeds, in brackets each seed's figure. "
        "Minutes on the clock are those of a machine that had other work too; processor minutes compare within one "
        "commit.\n"
    )


def _environments(results: Sequence[Result]) -> list[Mapping[str, Any]]:
    return [r["environment"] for r in results]
