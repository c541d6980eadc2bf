"""Where the proposal step's time goes, stage by stage: decode, top-N, NMS, merge; staged against fused.

python -m bench.profile                                    the VGG test step on outputs like a trained network's
python -m bench.profile --shape fpn --train                another shape, training settings
python -m bench.profile --checkpoint runs/digits --image photo.jpg   a real detector on a real image
python -m bench.profile --row "nms: 6000 boxes trained"    any row of the benchmark, beside its competitors

Prints a table; with --out also writes a bar chart, a Chrome trace (chrome://tracing, ui.perfetto.dev) and the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import checks, competitors, environment, kernels
from bench.case import Case
from bench.proposal_stages import Problem, fused, of_checkpoint, of_scene, staged
from bench.registry import row, rows
from bench.workloads import FIELDS, FPN, VGG

WARM = 10
SAMPLES = 100
SECONDS = 3.0  # for each way, at most
STAGES = ("top-N", "decode", "NMS", "merge", "fused", "call")
OUR_COLOR = "#c2410c"
COLORS = {"top-N": "#7e22ce", "decode": "#0f766e", "NMS": "#1d4ed8", "merge": "#a8a29e"}
COLORS |= {"fused": OUR_COLOR, "call": OUR_COLOR}

Way = Callable[["Stopwatch"], Any]


class Stopwatch:
    """Times the stages of one run; on a GPU by events, without waiting in between."""

    def __init__(self, device: str, traced: bool = False) -> None:
        self.on_gpu, self.traced = device == "cuda", traced
        self.marks: list[tuple[str, Any, Any]] = []

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        with torch.profiler.record_function(stage) if self.traced else contextlib.nullcontext():
            before = self._now()
            yield
            self.marks.append((stage, before, self._now()))

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def microseconds(self) -> dict[str, float]:
        """Time of each stage; waits for the GPU."""
        if self.on_gpu:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for stage, before, after in self.marks:
            spent = before.elapsed_time(after) * 1e3 if self.on_gpu else (after - before) * 1e6
            found[stage] = found.get(stage, 0.0) + spent
        return found


def ways_of(problem: Problem) -> dict[str, Way]:
    """Every way to the proposals that there is here, by name. AssertionError where fused and staged disagree."""
    ways: dict[str, Way] = {
        "fused": lambda stage: fused(problem, stage),
        "staged": lambda stage: staged(problem, stage),
    }
    quiet = Stopwatch("cpu")
    checks.equal(ways["staged"](quiet), ways["fused"](quiet), "the fused step")
    if not competitors.torchvision_missing and not problem.filter_first:
        from bench.competitors.torchvision_steps import Rpn

        theirs = Rpn(
            problem.anchors,
            problem.logits,
            problem.deltas,
            [tuple(size) for size in problem.image_sizes.int().tolist()],
            problem.level_sizes,
            before=problem.before,
            after=problem.after,
            min_size=problem.min_size,
            threshold=problem.iou_threshold,
        )
        ways["torchvision"] = theirs.staged_proposals
    return ways


def ways_of_row(case: Case) -> dict[str, Way]:
    """Ours and the competitors', in one stage. AssertionError where our answer is wrong."""
    case.check(case.ours())

    def in_one_stage(call: Callable[[], Any]) -> Way:
        def way(stage: Stopwatch) -> Any:
            with stage("call"):
                return call()

        return way

    return {"frcnn_fast": in_one_stage(case.ours)} | {
        name: in_one_stage(competitor.call) for name, competitor in case.competitors.items()
    }


def measure(ways: dict[str, Way], device: str) -> dict[str, dict[str, float]]:
    """Median microseconds of each stage, by way, over interleaved runs."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for way in ways.values():
        for _ in range(WARM):
            _timed(way, device)
    start = time.monotonic()
    while min(map(len, taken.values())) < SAMPLES and time.monotonic() - start < SECONDS * len(ways):
        for name, way in ways.items():
            taken[name].append(_timed(way, device))
    return {
        name: {stage: float(np.median([run[stage] for run in runs])) for stage in runs[0]}
        for name, runs in taken.items()
    }


def _timed(way: Way, device: str) -> dict[str, float]:
    watch = Stopwatch(device)
    if device == "cuda":
        torch.cuda._sleep(4_000_000)  # about two milliseconds, in which the host queues the stages
    way(watch)
    return watch.microseconds()


def trace(ways: dict[str, Way], device: str, path: Path) -> None:
    """Writes a Chrome trace of one run of each way."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for name, way in ways.items():
            with torch.profiler.record_function(name):
                way(Stopwatch(device, traced=True))
                if device == "cuda":
                    torch.cuda.synchronize()
    path.unlink(missing_ok=True)
    profiler.export_chrome_trace(str(path))


def table(times: dict[str, dict[str, float]]) -> list[str]:
    """Lines for the terminal: a column for each way."""
    stages = [s for s in STAGES if any(s in stages for stages in times.values())]
    lines = [f"{'':8s}" + "".join(f"{name:>20s}" for name in times)]
    for stage in stages:
        cells = []
        for found in times.values():
            share = 100 * found[stage] / sum(found.values()) if stage in found else 0
            cells.append(f"{found[stage]:10.1f} us {share:4.0f} %" if stage in found else "-")
        lines.append(f"{stage:8s}" + "".join(f"{cell:>20s}" for cell in cells))
    lines.append(
        f"{'all':8s}" + "".join(f"{f'{sum(found.values()):10.1f} us       ':>20s}" for found in times.values())
    )
    return lines


def chart(title: str, times: dict[str, dict[str, float]], path: Path) -> None:
    """Stacked bars, one for each way; torchvision's, usually far longer, on an axis of its own."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = [[n for n in times if n != "torchvision"], [n for n in times if n == "torchvision"]]
    groups = [g for g in groups if g]
    figure, grid = plt.subplots(
        len(groups), 1, figsize=(9, 1.6 + 0.75 * len(times)), height_ratios=[len(g) for g in groups],
        squeeze=False, layout="constrained",
    )  # fmt: skip
    handles: dict[str, Any] = {}
    for axes, names in zip(grid[:, 0], groups):
        longest = max(sum(times[n].values()) for n in names)
        for y, name in enumerate(names):
            left = 0.0
            for stage in (s for s in STAGES if s in times[name]):
                width = times[name][stage]
                bar = axes.barh(y, width, left=left, color=COLORS[stage], edgecolor="white", height=0.62)
                handles.setdefault(stage, bar)
                if width > 0.09 * longest:
                    text = f"{width:,.0f}" if width >= 100 else f"{width:.1f}"
                    axes.text(left + width / 2, y, text, ha="center", va="center", color="white", fontsize=9)
                left += width
            axes.text(left + 0.01 * longest, y, f"{left:,.0f} µs" if left >= 100 else f"{left:.1f} µs", va="center")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, longest * 1.14)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    grid[-1, 0].set_xlabel("microseconds, median of a stage")
    figure.legend(handles.values(), handles.keys(), ncols=len(handles), frameon=False, loc="outside lower left")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    figure.savefig(path, dpi=150, facecolor="white")
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0; an AssertionError where staged and fused disagree."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("vgg", "fpn"), default="vgg")
    parser.add_argument("--field", choices=FIELDS, default="trained")
    parser.add_argument("--train", action="store_true", help="training settings (12,000->2,000; FPN: 2,000->2,000)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, help="a run's folder or checkpoint file instead of a shape")
    parser.add_argument("--image", type=Path, help="the image for the checkpoint's detector")
    parser.add_argument("--row", metavar="NAME", help="a row of the benchmark, as 'op: workload'")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU (default 1: the stages' own cost)")
    parser.add_argument("--out", type=Path, help="folder for profile.json, profile.png and profile-trace.json.gz")
    args = parser.parse_args(argv)
    if bool(args.checkpoint) != bool(args.image):
        parser.error("--checkpoint and --image go together")
    if args.row and args.row not in {r.name for r in rows()}:
        near = [r.name for r in rows(op=args.row.partition(":")[0])]
        parser.error(f"--row: there is no row {args.row!r}; of that op there are: {', '.join(near) or 'none'}")
    torch.set_num_threads(args.threads)
    if args.row:
        case = row(args.row).make(args.device)
        title, ways, ours = args.row, ways_of_row(case), case.ours
    else:
        if args.checkpoint:
            problem = of_checkpoint(args.checkpoint, args.image, args.device)
        else:
            problem = of_scene({"vgg": VGG, "fpn": FPN}[args.shape], args.field, args.batch, args.train, args.device)
        quiet = Stopwatch("cpu")
        title, ways, ours = problem.title, ways_of(problem), lambda: fused(problem, quiet)
    result = profile(title, ways, ours, args.device)
    print(title, *table(result["stages"]), sep="\n")
    for name, spent in result["kernels"].items():
        print(f"  {spent:8.2f} us  {name}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "profile.json").write_text(json.dumps(result, indent=1) + "\n")
        chart(f"{title} — {result['machine']}", result["stages"], args.out / "profile.png")
        trace(ways, args.device, args.out / "profile-trace.json.gz")
    return 0


def profile(title: str, ways: dict[str, Way], ours: Callable[[], Any], device: str) -> dict[str, Any]:
    """Stage times of every way and, on a GPU, the kernels of our call."""
    e = environment.describe(device)
    launched = kernels.times(ours) if device == "cuda" else {}
    return {
        "title": title,
        "machine": e.get("gpu") or e["cpu"],
        "date": e["date"],
        "commit": e["commit"],
        "threads": e["threads"],
        "stages": measure(ways, device),
        "kernels": launched,
    }


if __name__ == "__main__":
    raise SystemExit(main())
