"""Plots of a results file: time per op against the competitors, roofline, scaling."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bench.format import backend_of, duration, in_order, plain, times
from bench.registry import families as families_of_ops
from bench.row_timing import GRAPH, OURS, TRITON, best

INK, MUTED, GRID = "#1a1a1a", "#6b6b6b", "#e4e4e4"
OUR_COLOR = "#c2410c"
STYLE: Any = {"font.size": 9, "axes.edgecolor": MUTED, "text.color": INK, "axes.labelcolor": INK}
COLORS = {
    TRITON: "#ca8a04",
    "torchvision": "#1d4ed8",
    "OpenVINO": "#0891b2",
    "ONNX Runtime": "#be185d",
    "OpenCV": "#4d7c0f",
    "torchvision, to the depth needed": "#93b4f5",
    "torch.compile": "#0f766e",
    "torch.compile, reduce-overhead": "#5eead4",
    "torch.topk": "#7e22ce",
    "torch.sort": "#c084fc",
    "Selective Search, fast": "#57534e",
    "Selective Search, quality": "#a8a29e",
}


def draw(report: dict[str, Any], folder: Path, stem: str) -> list[Path]:
    """Draws what the report has rows for; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with plt.rc_context(STYLE):
        for kind, figure in (("ops", ops(report)), ("scaling", scaling(report)), ("roofline", roofline(report))):
            if figure is not None:
                path = folder / f"{stem}-{kind}.png"
                figure.savefig(path, dpi=150, facecolor="white")
                plt.close(figure)
                written.append(path)
    return written


def draw_summary(report: dict[str, Any], path: Path) -> None:
    """A small picture with the first headline row of each op. Its text chunk "rows" says what it shows."""
    rows = _first_of_each(report)
    with plt.rc_context(STYLE):
        figure = ops({**report, "rows": rows}, "One workload of each op")
        assert figure is not None
        save_small(figure, path, rows=summary_of(report))


def summary_of(report: dict[str, Any]) -> str:
    """What `draw_summary` shows: op, workload, factor."""
    return json.dumps([[row["op"], row["workload"], times(row["ratio"])] for row in _first_of_each(report)])


def _first_of_each(report: dict[str, Any]) -> list[dict[str, Any]]:
    rows = in_order(row for row in report["rows"] if row["headline"] and row["op"].isidentifier())
    return list({row["op"]: row for row in reversed(rows)}.values())[::-1]


def save_small(figure: Figure, path: Path, *, dpi: int = 110, colours: int = 255, **text: str) -> None:
    """As a PNG with a palette, a third of the usual size, and with texts that say what it shows."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, facecolor="white")
    plt.close(figure)
    chunks = PngInfo()
    for name, value in text.items():
        chunks.add_text(name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.open(buffer).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    image.save(path, optimize=True, pnginfo=chunks)


def _title(report: dict[str, Any], text: str) -> str:
    e = report["environment"]
    return f"{text}: {e.get('gpu') or e['cpu']}, torch {plain(e['torch'])}, {e['date'][:10]}"


def _clean(axes: Axes, grid: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _time_axis(axis: Any, low: float, high: float) -> None:
    """Logarithmic, labelled in round durations."""
    places = [10.0**k for k in range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)]
    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(FuncFormatter(lambda us, _: _round_duration(us)))
    axis.set_minor_formatter(NullFormatter())


def _round_duration(us: float) -> str:
    for unit, scale in (("s", 1e6), ("ms", 1e3), ("µs", 1.0)):
        if us >= scale * 0.999:
            return f"{us / scale:g} {unit}"
    return f"{us * 1e3:g} ns"


def _fastest(row: dict[str, Any], hows: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each contender's best entry by the first of `hows` that it has."""
    found: dict[str, dict[str, Any]] = {}
    for how in hows:
        entries = [t for t in row["times"] if t["how"] == how]
        for who in {t["who"] for t in entries} - found.keys():
            fastest = best(t for t in entries if t["who"] == who)
            if fastest:
                found[who] = fastest
    return found


def ops(report: dict[str, Any], title: str = "Time per op") -> Figure | None:
    """A line for each headline row: ours, theirs, and the factor between."""
    rows = in_order(row for row in report["rows"] if row["headline"])
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.27 * max(len(rows), 5)), layout="constrained")
    shown: dict[str, Any] = {}
    everything: list[float] = []
    cuda = backend_of(report) == "cuda"
    for y, row in enumerate(rows):
        entries = _fastest(row, ("call",))
        middle = [t["p50"] for t in entries.values()]
        everything += middle
        axes.plot([min(middle), max(middle)], [y, y], color=GRID, linewidth=2.5, zorder=1)
        for who, t in sorted(entries.items(), key=lambda pair: pair[0] == OURS):
            color = OUR_COLOR if who == OURS else COLORS.get(who, MUTED)
            axes.plot([t["p10"], t["p90"]], [y, y], color=color, linewidth=1.2, alpha=0.6, zorder=2)
            hollow = not (t["counts"] or who == OURS)
            shape, size, order = ("D", 42, 4) if who == OURS else ("o", 30, 3)
            marker = axes.scatter(
                t["p50"], y, s=size, zorder=order, marker=shape, color="white" if hollow else color, edgecolors=color,
                linewidths=1.2,
            )  # fmt: skip
            shown.setdefault(who, marker)
        graphs = _fastest(row, (GRAPH,)) if cuda else {}
        for who, color in ((TRITON, COLORS[TRITON]), (OURS, OUR_COLOR)):
            if who in graphs:
                median = graphs[who]["p50"]
                everything.append(median)
                marker = axes.scatter(median, y, s=34, marker="<", color="white", edgecolors=color, zorder=4)
                shown.setdefault(f"{who}, in a graph, warm", marker)
        factor = times(row["ratio"])
        axes.text(1.01, y, f"{factor}×" if factor != "–" else "", transform=axes.get_yaxis_transform(), va="center")
    axes.set_yticks(range(len(rows)), [f"{row['op']}  {row['workload']}" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(min(everything) / 1.8, max(everything) * 1.8)
    _time_axis(axes.xaxis, min(everything), max(everything))
    how = "from the call until the GPU is done" if cuda else "better of one and all threads"
    axes.set_xlabel(f"time of a call, median with p10–p90 ({how})\nhollow: not counted in the factor at the right")
    figure.suptitle(_title(report, title), x=0.01, ha="left", fontweight="bold")
    _clean(axes, "x")
    names = [OURS, *sorted(set(shown) - {OURS})]
    figure.legend([shown[n] for n in names], names, ncols=min(4, len(names)), frameon=False, loc="outside lower left")
    return figure


def scaling(report: dict[str, Any]) -> Figure | None:
    """A panel for each quantity that the rows vary: boxes, images, ground truths, RoIs."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in report["rows"]:
        if row["axis"]:
            quantity, _, series = row["axis"][0].partition(" (")
            groups[quantity][series.rstrip(")")].append(row)
    groups = {q: {s: rows for s, rows in series.items() if len(rows) > 1} for q, series in groups.items()}
    panels = [(quantity, series) for quantity, series in groups.items() if series]
    if not panels:
        return None
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(5.4 * columns, 3.9 * lines), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (quantity, series) in zip(grid.flat, panels):
        _scaling_panel(axes, quantity, series)
    figure.suptitle(_title(report, "Scaling"), x=0.01, ha="left", fontweight="bold")
    return figure


def _scaling_panel(axes: Axes, quantity: str, series: dict[str, list[dict[str, Any]]]) -> None:
    styles = ("-", "--", ":", "-.")
    points: set[int] = set()
    everything: list[float] = []
    for style, (name, rows) in zip(styles, series.items()):
        rows = sorted(rows, key=lambda r: r["axis"][1])
        lines: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for row in rows:
            for who, t in _fastest(row, (GRAPH, "call")).items():
                if who in (OURS, TRITON, "torchvision"):
                    lines[who].append((row["axis"][1], t["p50"]))
        for who, line in sorted(lines.items()):
            x, y = zip(*line)
            points.update(x)
            everything += y
            color = OUR_COLOR if who == OURS else COLORS[who]
            axes.plot(x, y, style, color=color, marker="o", markersize=3.5, linewidth=1.6, label=f"{who}, {name}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_spread(sorted(points))))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    axes.set_ylim(min(everything) / 1.6, max(everything) * 1.6)
    _time_axis(axes.yaxis, min(everything), max(everything))
    axes.set_xlabel(quantity)
    axes.set_ylabel("time of a call, median")
    _clean(axes, "both")
    axes.legend(frameon=False, fontsize=7.5, handlelength=4, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2)


def _spread(points: Sequence[int]) -> list[int]:
    """Those of them that lie far enough apart to be labelled on a logarithmic axis."""
    reach = np.log(points[-1] / points[0]) if len(points) > 1 else 1.0
    chosen = [points[-1]]
    for p in reversed(points[:-1]):
        if np.log(chosen[-1] / p) > 0.08 * reach:
            chosen.append(p)
    return chosen[::-1]


def roofline(report: dict[str, Any]) -> Figure | None:
    """Left: operations a second against operations per byte, under the roofs. Right: time against bytes, above the
    floors that bandwidth and latency set.
    """
    rows = [r for r in report["rows"] if r["bytes"] and OURS in _fastest(r, (GRAPH, "events, warm L2", "call"))]
    if not rows:
        return None
    roofs, cpu = report["roofs"], backend_of(report) == "cpu"
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.2), layout="constrained")
    family_of = families_of_ops()
    families = list(dict.fromkeys(family_of.get(r["op"], "other") for r in rows))
    palette = dict(zip(families, plt.get_cmap("tab10").colors))  # type: ignore[attr-defined]
    for family in families:
        mine = [r for r in rows if family_of.get(r["op"], "other") == family]
        seconds = np.array([_fastest(r, (GRAPH, "events, warm L2", "call"))[OURS]["p50"] * 1e-6 for r in mine])
        moved, work = np.array([float(r["bytes"]) for r in mine]), np.array([float(r["flops"]) for r in mine])
        style = {
            "s": 26,
            "color": palette[family],
            "edgecolors": "white",
            "linewidths": 0.6,
            "label": family,
            "zorder": 3,
        }
        some = work > 0
        left.scatter(work[some] / moved[some], work[some] / seconds[some], **style)
        right.scatter(moved, seconds * 1e6, **style)
    lanes = (("memory", roofs["bytes_per_s"], "-"), ("cache" if cpu else "L2 cache", roofs["cache_bytes_per_s"], "--"))
    ridge = roofs["flops_per_s"] / roofs["bytes_per_s"]
    x = np.geomspace(max(left.get_xlim()[0], 1e-2), max(left.get_xlim()[1], 2 * ridge), 200)
    sizes = [r["bytes"] for r in rows]
    moved = np.geomspace(min(sizes) / 2, max(sizes) * 2, 100)
    for name, rate, line in lanes:
        label = f"{name}, {rate / 1e9:,.0f} GB/s"
        left.plot(x, np.minimum(x * rate, roofs["flops_per_s"]), line, color=INK, linewidth=1.3)
        right.plot(moved, moved / rate * 1e6, line, color=INK, linewidth=1.3, label=label)
    for name, value in _latency_floors(report):
        right.axhline(value, color=MUTED, linewidth=1, linestyle=":")
        place = (moved[-1], value)
        right.annotate(f"{name} {duration(value)}", place, ha="right", va="bottom", fontsize=8, color=MUTED)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        _clean(axes, "both")
    left.set_xlabel("operations per byte that must move")
    left.set_ylabel("operations a second")
    left.set_title(
        f"flat roof: float32 matrix product, {roofs['flops_per_s'] / 1e9:,.0f} GFLOP/s", fontsize=9, color=MUTED
    )
    quickest = min(float(c.get_offsets()[:, 1].min()) for c in right.collections)
    right.set_ylim(bottom=quickest / 4)
    _time_axis(right.yaxis, *right.get_ylim())
    right.set_xlabel("bytes that must move")
    right.set_ylabel("time of a call, median")
    right.set_title("slanted roofs: copy, read and written", fontsize=9, color=MUTED)
    right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(_title(report, "Roofline (roofs measured)"), x=0.01, ha="left", fontweight="bold")
    return figure


def _latency_floors(report: dict[str, Any]) -> list[tuple[str, float]]:
    floors = report.get("floors", {})
    wanted = {"graph node": "graph_node_us", "launch": "launch_us"}
    return [(name, floors[key]["p50"]) for name, key in wanted.items() if key in floors]
