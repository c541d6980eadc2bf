"""Tables and plots from results files: `python -m bench.report bench/results/*.json`.

The tables go into README.md and, in docs, benchmarks.md, torchvision.md, export.md and training.md, between
<!-- bench:cpu --> and <!-- /bench:cpu -->, and likewise bench:cuda, bench:resources (from `python -m bench.resources`),
from all files of `python -m bench.bccd` together bench:bccd, those of `python -m bench.r50` bench:r50, of
`python -m bench.in_place` bench:in-place, of `python -m bench.busy` bench:busy, of `python -m bench.cost` bench:cost, a
choice of all that bench:short, and from `python -m bench.compat` whole calls of other libraries bench:callers and
exported detectors bench:exported; the plots beside the files, and the README's into docs/images. Of several files of
one kind the newest is shown.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import (
    bccd_table,
    callers_table,
    cost_table,
    exported_table,
    in_place_table,
    plots,
    resources,
    schema,
    short_table,
)
from bench.format import backend_of, duration, in_order, plain, times
from bench.row_timing import COLD, GRAPH, OURS, TRITON, best, ratio

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / name for name in ("benchmarks.md", "torchvision.md", "export.md", "training.md")),
)
PICTURE = ROOT / "docs" / "images" / "speed.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 with --check where a page is not what the files say."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="results files (default: all in bench/results)")
    parser.add_argument("--page", type=Path, nargs="+", dest="pages", metavar="FILE", help="instead of these")
    parser.add_argument("--plots", type=Path, help="folder for the plots (default: beside each file)")
    parser.add_argument("--no-plots", action="store_true", help="tables only")
    parser.add_argument("--no-pages", action="store_true", help="plots only")
    parser.add_argument("--all", action="store_true", help="print every row, and change nothing")
    parser.add_argument("--check", action="store_true", help="change nothing, say whether the pages are up to date")
    args = parser.parse_args(argv)
    files = args.files or sorted(RESULTS.glob("*.json"))
    if not files:
        print("bench.report: no results files; make some with `python -m bench --json FILE`", file=sys.stderr)
        return 2
    reports = [(path, schema.load(path)) for path in files]
    if args.all:
        print(*("\n".join(table(report, headline=False)) for _, report in reports if "rows" in report), sep="\n\n")
        return 0
    if not args.no_plots and not args.check:
        for path, report in (pair for pair in reports if "rows" in pair[1]):
            for written in plots.draw(report, args.plots or path.parent, path.stem):
                print(written)
        if args.pages is None and not args.no_pages and (newest := newest_of(reports, "cpu")):
            plots.draw_summary(newest[1], PICTURE)
            print(PICTURE)
    stale = []
    for page in [] if args.no_pages else args.pages or PAGES:
        old = page.read_text()
        new = fill(old, reports, page)
        stale += [page] if new != old else []
        if not args.check:
            page.write_text(new)
    if args.check and stale:
        print(f"not what the files say: {', '.join(map(str, stale))}; run `python -m bench.report`", file=sys.stderr)
    return 1 if args.check and stale else 0


def newest_of(reports: Sequence[tuple[Path, dict[str, Any]]], backend: str) -> tuple[Path, dict[str, Any]] | None:
    """Of the reports of all ops."""
    mine = [pair for pair in reports if "rows" in pair[1] and backend_of(pair[1]) == backend]
    return max(mine, key=lambda pair: pair[1]["environment"]["date"], default=None)


def newest_named(reports: Sequence[tuple[Path, dict[str, Any]]], name: str) -> tuple[Path, dict[str, Any]] | None:
    """Of the reports of one benchmark that is not the ops'."""
    mine = [pair for pair in reports if pair[1].get("benchmark") == name]
    return max(mine, key=lambda pair: pair[1]["environment"]["date"], default=None)


def fill(text: str, reports: Sequence[tuple[Path, dict[str, Any]]], page: Path) -> str:
    """The text with each backend's newest report between its markers, and the other kinds between theirs. page: the
    file that its links start from. ValueError where no marker of any is found.
    """
    bodies = {}
    newest = {backend: newest_of(reports, backend) for backend in ("cpu", "cuda")}
    for backend, pair in newest.items():
        if pair:
            path, report = pair
            bodies[backend] = [*caption(path, report), "", *table(report), "", *footnotes(path, report, page)]
    detectors = [report for _, report in reports if report.get("benchmark") == "bccd"]
    if detectors:
        bodies["bccd"] = bccd_table.body(detectors)
    resnets = [report for _, report in reports if report.get("benchmark") == "r50"]
    if resnets:
        bodies["r50"] = bccd_table.body(resnets, "R50-FPN")
    inside = newest_named(reports, "in-place")
    if inside:
        bodies["in-place"] = in_place_table.body(_shown(inside[0]), inside[1])
    predicted = newest_named(reports, "cost")
    if predicted:
        on_a_gpu = newest["cuda"]
        bodies["cost"] = cost_table.body(_shown(predicted[0]), predicted[1], on_a_gpu and on_a_gpu[1])
    compiled = newest_named(reports, "resources")
    if compiled:
        path, report = compiled
        bodies["resources"] = resources.summary(_shown(path), report)
    crowded = newest_named(reports, "busy")
    if crowded:
        bodies["busy"] = busy_words(_shown(crowded[0]), crowded[1])
    others = [report for _, report in reports if report.get("benchmark") == "compat"]
    files = [(path, report) for path, report in reports if "exported" in report]
    if files:
        path, report = max(files, key=lambda pair: pair[1]["environment"]["date"])
        bodies["exported"] = exported_table.body(_shown(path), report)
    if newest["cpu"] and "<!-- bench:callers -->" in text:
        bodies["callers"] = callers_table.body(newest["cpu"], others)
    if newest["cpu"] and inside and resnets and "<!-- bench:short -->" in text:
        bodies["short"] = short_table.body(newest["cpu"], (_shown(inside[0]), inside[1]), resnets, others)
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


def busy_words(shown: str, report: dict[str, Any]) -> list[str]:
    """What `bench.busy` has found. shown: the report's file."""
    e, alone, beside, ratio = (report[name] for name in ("environment", "alone", "beside", "ratio"))
    return [
        f"Iterations of the default detector that take {alone['time']:.1f} s alone take {beside['time']:.1f} s beside "
        f"{report['busy_processes']} busy processes on {e['cores']} cores, **{ratio['time']:.2f} times** as long, and "
        f"{ratio['processor_time']:.2f} times the processor time (`python -m bench.busy`, {e['date'][:10]}, "
        f"{e['cpu']}; `{shown}`). Twice as long is a fair share.",
    ]


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
    "cpu": (("frcnn_fast", OURS, "call"), ("after other work", OURS, COLD)),
    "cuda": (
        ("in a graph, warm", OURS, GRAPH),
        ("GPU time", OURS, "events, warm L2"),
        ("GPU time, cold L2", OURS, "events, cold L2"),
        ("call + wait", OURS, "call"),
        ("Triton, GPU time", TRITON, "events, warm L2"),
    ),
}
EXPLAINED = {
    "cpu": "Medians of interleaved rounds in one process; everyone at the better of one and all threads.",
    "cuda": "Medians. In a graph, warm: GPU time a call in a captured graph of 20 equal calls, which is throughput "
    "with warm caches. GPU time: between events around one call. Call + wait: from the call in Python until the GPU is "
    "done; the competitors' times and the factor likewise.",
}
PLOTS = {
    "ops": "Time of every row beside the competitors'",
    "scaling": "Time against the number of boxes, images and RoIs",
    "roofline": "Operations a second and time, under the roofs of the machine",
}


def table(report: dict[str, Any], headline: bool = True) -> list[str]:
    """A Markdown table of the headline rows, or of all."""
    measured = {(t["who"], t["how"]) for row in report["rows"] for t in row["times"]}
    columns = [column for column in OUR_COLUMNS[backend_of(report)] if column[1:] in measured]
    cold = (OURS, COLD) in measured
    titles = ["step", "workload", *(title for title, *_ in columns), "best competitor", "times faster"]
    titles += ["after other work"] if cold else []
    lines = [titles, ["---", "---", *["---:"] * (len(titles) - 2)]]
    for row in in_order(row for row in report["rows"] if row["headline"] or not headline):
        mine = [best(t for t in row["times"] if (t["who"], t["how"]) == column[1:]) for column in columns]
        theirs = best([t for t in row["times"] if t["counts"]])
        other = f"{duration(theirs['p50'])} ({theirs['who']})" if theirs else "–"
        cells = [duration(found["p50"] if found else None) for found in mine]
        factors = [times(row["ratio"]), *([times(ratio(row["times"], COLD))] if cold else [])]
        lines.append([f"`{row['op']}`", row["workload"], *cells, other, *factors])
    return [f"| {' | '.join(line)} |" for line in lines]


def footnotes(path: Path, report: dict[str, Any], page: Path) -> list[str]:
    """How it was measured, what is missing, and the plots."""
    lines = [f"{EXPLAINED[backend_of(report)]} Every answer was compared with the reference before it was timed."]
    if any(t["who"] == TRITON for row in report["rows"] for t in row["times"]):
        lines.append("Triton: the same call on this library's own Triton kernels; it counts in no factor.")
    if any(t["how"] == COLD for row in report["rows"] for t in row["times"]):
        lines.append(
            "After other work: a single call after 30 ms of convolutions, as inside a detector, and the factor between "
            "such calls."
        )
    missing = report["environment"]["missing"]
    if missing:
        lines.append("Missing: " + "; ".join(missing) + ".")
    for kind, about in PLOTS.items():
        plot = path.with_name(f"{path.stem}-{kind}.png")
        if plot.exists():
            lines += ["", f"![{about}]({Path(os.path.relpath(plot, page.parent)).as_posix()})"]
    return lines


def _shown(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


if __name__ == "__main__":
    raise SystemExit(main())
