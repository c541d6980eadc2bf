"""Tables and plots from results files: `python -m bench.report bench/results/*.json`.

The tables go into the README, between <!-- bench:cpu --> and <!-- /bench:cpu -->, and likewise bench:cuda,
bench:resources (from `python -m bench.resources`) and, from all files of `python -m bench.bccd` together, bench:bccd;
the plots beside the files. Of several files of one kind the README shows the newest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import bccd_table, plots, resources, schema
from bench.format import backend_of, duration, in_order, plain, times
from bench.row_timing import OURS, TRITON, best

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 with --check where the README is not what the files say."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="results files (default: all in bench/results)")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--plots", type=Path, help="folder for the plots (default: beside each file)")
    parser.add_argument("--no-plots", action="store_true", help="tables only")
    parser.add_argument("--no-readme", action="store_true", help="plots only")
    parser.add_argument("--all", action="store_true", help="print every row, and change nothing")
    parser.add_argument("--check", action="store_true", help="change nothing, say whether the README is up to date")
    args = parser.parse_args(argv)
    files = args.files or sorted(RESULTS.glob("*.json"))
    if not files:
        print("bench.report: no results files; make some with `python -m bench --json FILE`", file=sys.stderr)
        return 2
    reports = [(path, schema.load(path)) for path in files]
    if args.all:
        print(*("\n".join(table(report, headline=False)) for _, report in reports if "rows" in report), sep="\n\n")
        return 0
    if not args.no_readme:
        old = args.readme.read_text()
        new = fill(old, reports)
        if args.check:
            return 0 if new == old else 1
        args.readme.write_text(new)
    if not args.no_plots and not args.check:
        for path, report in (pair for pair in reports if "rows" in pair[1]):
            for written in plots.draw(report, args.plots or path.parent, path.stem):
                print(written)
    return 0


def fill(text: str, reports: Sequence[tuple[Path, dict[str, Any]]]) -> str:
    """The text with each backend's newest report between its markers, and the other kinds between theirs.
    ValueError where no marker of any is found.
    """
    bodies = {}
    for backend in ("cpu", "cuda"):
        mine = [(path, report) for path, report in reports if "rows" in report and backend_of(report) == backend]
        if mine:
            path, report = max(mine, key=lambda pair: pair[1]["environment"]["date"])
            bodies[backend] = [*caption(path, report), "", *table(report), "", *footnotes(path, report)]
    detectors = [report for _, report in reports if report.get("benchmark") == "bccd"]
    if detectors:
        bodies["bccd"] = bccd_table.body(detectors)
    compiled = [pair for pair in reports if pair[1].get("benchmark") == "resources"]
    if compiled:
        path, report = max(compiled, key=lambda pair: pair[1]["environment"]["date"])
        bodies["resources"] = resources.summary(_shown(path), report)
    found = False
    for name, body in bodies.items():
        opening, closing = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
        if opening not in text:
            continue
        head, rest = text.split(opening, 1)
        if closing not in rest:
            raise ValueError(f"the text has {opening} without {closing} after it")
        text = "\n".join([head + opening, *body, closing + rest.split(closing, 1)[1]])
        found = True
    if not found:
        raise ValueError("the text has no markers such as <!-- bench:cpu --> for these reports")
    return text


def caption(path: Path, report: dict[str, Any]) -> list[str]:
    """What was measured where."""
    e = report["environment"]
    versions = f"torch {plain(e['torch'])}"
    versions += f", torchvision {plain(e['torchvision'])}" if e.get("torchvision") else ""
    if backend_of(report) == "cuda":
        machine = f"{e['gpu']}, driver {e['nvidia_smi'].get('driver_version', 'unknown')}"
    else:
        machine = f"{e['cpu']}, {e['cores']} cores, {e['build']['isa']}"
    changed = " with changes" if e["changed"] else ""
    return [
        f"Measured on {e['date'][:10]}: {machine}; {versions}; commit {e['commit'][:10]}{changed} (`{_shown(path)}`)."
    ]


# Columns of our own times, by backend: (title, whose, how it was measured). Triton's only where it was measured.
OUR_COLUMNS = {
    "cpu": (("frcnn_fast", OURS, "call"),),
    "cuda": (
        ("in a graph", OURS, "graph"),
        ("GPU time", OURS, "events, warm L2"),
        ("GPU time, cold L2", OURS, "events, cold L2"),
        ("call + wait", OURS, "call"),
        ("Triton, GPU time", TRITON, "events, warm L2"),
    ),
}
EXPLAINED = {
    "cpu": "Medians of interleaved rounds in one process; everyone at the better of one and all threads.",
    "cuda": "Medians. In a graph: GPU time a call in a captured graph of 20 calls. GPU time: between events around one "
    "call. Call + wait: from the call in Python until the GPU is done; the competitors' times and the factor likewise.",
}


def table(report: dict[str, Any], headline: bool = True) -> list[str]:
    """A Markdown table of the headline rows, or of all."""
    measured = {t["who"] for row in report["rows"] for t in row["times"]}
    columns = [column for column in OUR_COLUMNS[backend_of(report)] if column[1] in measured]
    titles = ["step", "workload", *(title for title, *_ in columns), "best competitor", "times faster"]
    lines = [titles, ["---", "---", *["---:"] * (len(titles) - 2)]]
    for row in in_order(row for row in report["rows"] if row["headline"] or not headline):
        mine = [best(t for t in row["times"] if (t["who"], t["how"]) == column[1:]) for column in columns]
        theirs = best([t for t in row["times"] if t["counts"]])
        other = f"{duration(theirs['p50'])} ({theirs['who']})" if theirs else "–"
        cells = [duration(found["p50"] if found else None) for found in mine]
        lines.append([f"`{row['op']}`", row["workload"], *cells, other, times(row["ratio"])])
    return [f"| {' | '.join(line)} |" for line in lines]


def footnotes(path: Path, report: dict[str, Any]) -> list[str]:
    """How it was measured, what is missing, where the rest is."""
    lines = [f"{EXPLAINED[backend_of(report)]} Every answer was compared with the reference before it was timed."]
    if any(t["who"] == TRITON for row in report["rows"] for t in row["times"]):
        lines.append("Triton: the same call on this library's own Triton kernels; it counts in no factor.")
    missing = report["environment"]["missing"]
    if missing:
        lines.append("Missing: " + "; ".join(missing) + ".")
    plots = {kind: path.with_name(f"{path.stem}-{kind}.png") for kind in ("ops", "scaling", "roofline")}
    links = [f"[{kind}]({_shown(plot)})" for kind, plot in plots.items() if plot.exists()]
    if links:
        lines.append("Plots: " + ", ".join(links) + ".")
    return lines


def _shown(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


if __name__ == "__main__":
    raise SystemExit(main())
