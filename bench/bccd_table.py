"""Tables of what `python -m bench.bccd` and `python -m bench.r50` found: accuracy over the seeds, and speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bench.bccd import SYSTEMS

Report = dict[str, Any]
METRICS = (("11-point", "ap07", "map07"), ("area", "ap_area", "map_area"))


def body(reports: Sequence[Report], heading: str = "test split of BCCD") -> list[str]:
    """Caption, table and footnote. Of several timings in one precision the newest counts, of several runs of a seed
    likewise."""
    ordered = sorted(reports, key=lambda report: report["environment"]["date"])
    runs = {(report["system"], report["seed"]): report for report in ordered if "test" in report}
    timings = newest_timings(ordered)
    by_system = {system: [run for (of, _), run in sorted(runs.items()) if of == system] for system in SYSTEMS}
    lines = [[heading, *SYSTEMS], ["---", "---:", "---:"]]
    for title, value in _figures(ordered):
        lines.append([title, *(_over([value(run) for run in by_system[system]]) for system in SYSTEMS)])
    for precision, timing in timings.items():
        for title, what in (("seconds a training iteration", "iteration"), ("seconds a test image", "image")):
            cells = [f"{timing['times'][s][what]['p50'] / 1e6:.3f}" for s in SYSTEMS]
            lines.append([f"{title}, {precision}", f"{cells[0]} ({timing['ratio'][what]:.2f} times faster)", cells[1]])
    return [*_caption(runs, list(timings.values())), "", *(f"| {' | '.join(line)} |" for line in lines)]


def newest_timings(reports: Sequence[Report]) -> dict[str, Report]:
    """By precision."""
    ordered = sorted((r for r in reports if "ratio" in r), key=lambda report: report["environment"]["date"])
    return {report["recipe"]["options"].get("precision", "float32"): report for report in ordered}


def _figures(reports: Sequence[Report]) -> list[tuple[str, Callable[[Report], float]]]:
    """The accuracies to show: title, and where a run has it."""
    classes = next((list(report["test"]["classes"]) for report in reports if "test" in report), [])
    found: list[tuple[str, Callable[[Report], float]]] = []
    for metric, of_class, mean in METRICS if classes else ():
        for name in classes:
            found.append((f"AP50 {name}, {metric}", partial(_of_class, name, of_class)))
        found.append((f"mean, {metric}", partial(_of_all, mean)))
    return found


def _of_class(name: str, metric: str, run: Report) -> float:
    return run["test"]["classes"][name][metric]


def _of_all(metric: str, run: Report) -> float:
    return run["test"][metric]


def _over(values: Sequence[float]) -> str:
    """The mean over the seeds and each seed's figure."""
    each = ", ".join(f"{v:.3f}" for v in values)
    return f"{sum(values) / len(values):.3f} ({each})" if values else "–"


def _caption(runs: dict[Any, Report], timings: Sequence[Report]) -> list[str]:
    """Where and when, and how the figures are to be read."""
    lines = []
    if runs:
        environments = [run["environment"] for run in runs.values()]
        options = next(iter(runs.values()))["recipe"]["options"]
        lines.append(
            f"{options['iterations']} iterations of {options['batch_size']} images; {_versions(environments)}. "
            "The mean over the seeds, and each seed's figure (`bench/results/bccd-*.json`)."
        )
    for timing in timings:
        e, samples = timing["environment"], timing["times"]["frcnn_fast"]
        precision = timing["recipe"]["options"].get("precision", "float32")
        lines.append(
            f"Times, {precision}: medians of {samples['iteration']['samples']} iterations and "
            f"{samples['image']['samples']} images, the two in turns in one process, {e['threads']} threads; "
            f"{_versions([e])}."
        )
    return lines


def _versions(environments: Sequence[Report]) -> str:
    """Machine, versions, commits, each once."""
    e = environments[-1]
    commits = sorted({f"{e['commit'][:10]}{' with changes' if e['changed'] else ''}" for e in environments})
    torch, torchvision = (str(e.get(name)).split("+", 1)[0] for name in ("torch", "torchvision"))
    return f"{e['cpu']}, torch {torch}, torchvision {torchvision}; commit {', '.join(commits)}"
