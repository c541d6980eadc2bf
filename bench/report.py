"""Tables and plots from results files: `python -m bench.report bench/results/*.json`.

The tables go into the README, between <!-- bench:cpu --> and <!-- /bench:cpu --> and between <!-- bench:cuda --> and
<!-- /bench:cuda -->; the plots beside the files. Of several files of one backend the README shows the newest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import schema
from bench.row_timing import OURS, SINGLE, best, ratio

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
FAMILIES = {
    "rpn_proposals": "proposals", "proposals of a photograph": "proposals", "nms_padded": "NMS", "nms": "NMS",
    "batched_nms": "NMS", "top_n": "ranking", "decode_clip": "boxes", "encode": "boxes", "box_iou": "boxes",
    "rpn_targets": "targets", "assign_anchors": "targets", "sample_rois": "targets", "roi_pool": "pooling",
    "roi_align": "pooling", "multiscale_roi_align": "pooling", "detections": "detections", "detector": "detector",
}  # fmt: skip


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
        print(*("\n".join(table(report, headline=False)) for _, report in reports), sep="\n\n")
        return 0
    if not args.no_readme:
        old = args.readme.read_text()
        new = fill(old, reports)
        if args.check:
            return 0 if new == old else 1
        args.readme.write_text(new)
    if not args.no_plots and not args.check:
        from bench import plots

        for path, report in reports:
            for written in plots.draw(report, args.plots or path.parent, path.stem):
                print(written)
    return 0


def backend_of(report: dict[str, Any]) -> str:
    """The backend of its rows."""
    return "cuda" if "gpu" in report["environment"] else "cpu"


def fill(text: str, reports: Sequence[tuple[Path, dict[str, Any]]]) -> str:
    """The text with each backend's newest report between its markers. ValueError where no marker of any is found."""
    found = False
    for backend in ("cpu", "cuda"):
        opening, closing = f"<!-- bench:{backend} -->", f"<!-- /bench:{backend} -->"
        mine = [(path, report) for path, report in reports if backend_of(report) == backend]
        if not mine or opening not in text:
            continue
        path, report = max(mine, key=lambda pair: pair[1]["environment"]["date"])
        head, rest = text.split(opening, 1)
        if closing not in rest:
            raise ValueError(f"the text has {opening} without {closing} after it")
        body = [*caption(path, report), "", *table(report), "", *footnotes(path, report)]
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
    return [f"Measured on {e['date'][:10]}: {machine}; {versions}; commit {e['commit'][:10]}{changed} (`{_shown(path)}`)."]


def plain(version: str) -> str:
    """Without the build suffix."""
    return version.split("+", 1)[0]


def table(report: dict[str, Any], headline: bool = True) -> list[str]:
    """A Markdown table of the headline rows, or of all."""
    chosen = in_order(row for row in report["rows"] if row["headline"] or not headline)
    return _cuda_table(chosen) if backend_of(report) == "cuda" else _cpu_table(chosen)


def in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Family by family."""
    return sorted(rows, key=lambda row: list(FAMILIES).index(row["op"]) if row["op"] in FAMILIES else len(FAMILIES))


def _cpu_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| step | workload | frcnn_fast | best competitor | times faster |", "| --- | --- | ---: | ---: | ---: |"]
    for row in rows:
        mine = _entry(row, "call")
        found = row["ratio"]
        theirs = _best_competitor(row)
        other = f"{duration(theirs['p50'])} ({theirs['who']})" if theirs else "–"
        lines.append(
            f"| `{row['op']}` | {row['workload']} | {duration(mine['p50'] if mine else None)} | {other} | {times(found)} |"
        )
    return lines


def _cuda_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| step | workload | in a graph | GPU time | GPU time, cold L2 | call + wait | best competitor, call + wait "
        "| times faster |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        ways = ("graph", "events, warm L2", "events, cold L2", "call")
        mine = [duration(found["p50"] if (found := _entry(row, how)) else None) for how in ways]
        theirs = _best_competitor(row)
        other = f"{duration(theirs['p50'])} ({theirs['who']})" if theirs else "–"
        cells = [f"`{row['op']}`", row["workload"], *mine, other, times(ratio(row["times"]))]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _entry(row: dict[str, Any], how: str, who: str = OURS) -> dict[str, Any] | None:
    return best(row["times"], lambda t: t["who"] == who and t["how"] == how)


def _best_competitor(row: dict[str, Any]) -> dict[str, Any] | None:
    return best(row["times"], lambda t: t["counts"] and t["how"] == "call")


def times(found: dict[str, Any] | None) -> str:
    """The ratio for a table."""
    if not found:
        return "–"
    value = found["p50"]
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}" if value >= 3 else f"{value:.2f}"


def duration(us: float | None) -> str:
    """Three digits and a unit."""
    if us is None:
        return "–"
    for unit, scale in (("µs", 1.0), ("ms", 1e3), ("s", 1e6)):
        if us < 999.5 * scale or unit == "s":
            value = us / scale
            return f"{value:.0f} {unit}" if value >= 99.5 else f"{value:.{1 if value >= 9.95 else 2}f} {unit}"
    raise AssertionError


def footnotes(path: Path, report: dict[str, Any]) -> list[str]:
    """How it was measured, what is missing, where the rest is."""
    lines = []
    if backend_of(report) == "cpu":
        lines += [
            "Medians of interleaved rounds in one process; everyone at the better of one and all threads. Every answer was",
            "compared with the reference before it was timed.",
        ]
    else:
        lines += [
            "Medians. In a graph: GPU time a call in a captured graph of 20 calls; GPU time: between events around one call;",
            f"call + wait: from the call in Python until the GPU is done ({SINGLE}: in the file). Every answer was compared",
            "with the reference before it was timed.",
        ]
    missing = report["environment"]["missing"]
    if missing:
        lines.append("Missing: " + "; ".join(missing) + ".")
    names = [f"{path.stem}-{kind}.png" for kind in ("ops", "scaling", "roofline")]
    links = [f"[{name.rsplit('-', 1)[1][:-4]}]({_shown(path.parent / name)})" for name in names if (path.parent / name).exists()]
    if links:
        lines.append("Plots: " + ", ".join(links) + ".")
    return lines


def _shown(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


if __name__ == "__main__":
    raise SystemExit(main())
