"""The shape of a results file. A file that does not fit is refused when it is written and when it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VERSION = 1
NUMBER = (int, float)

TIME = {
    "who": str,  # frcnn_fast, or a competitor
    # call | call, cold | events, warm L2 | events, cold L2 | graph of 20, warm | graph of one + synchronise
    "how": str,
    "threads": (int, type(None)),
    "counts": bool,  # whether it enters the ratio
    "p10": NUMBER,
    "p50": NUMBER,
    "p90": NUMBER,  # microseconds a call
    "samples": int,
    "repeats": int,  # calls in a sample
}
ROW = {
    "op": str,
    "workload": str,
    "backend": str,
    "headline": bool,
    "axis": (list, type(None)),
    "goal": (int, float, type(None)),
    "bytes": int,
    "flops": int,
    "facts": dict,
    "times": [TIME],
    "notes": dict,  # by competitor: why it does not count, or why it is missing
    "ratio": ({"over": str, "p50": NUMBER, "low": NUMBER, "high": NUMBER}, type(None)),
}
ADDED_ROW = ROW | {"measured": {"date": str, "commit": str, "changed": bool}}  # to a report that was there
REFUSED = {"op": str, "workload": str, "why": str}
ENVIRONMENT = {
    "date": str,
    "commit": str,
    "changed": bool,
    "cpu": str,
    "threads": int,
    "torch": str,
    "missing": list,
}
GPU_ENVIRONMENT = ENVIRONMENT | {
    "gpu": str,
    "compute_capability": str,
    "cuda_runtime": (str, type(None)),
    "nvidia_smi": dict,  # driver, clocks, limits, as nvidia-smi writes them; empty where it is missing
}
REPORT = {
    "schema": int,
    "environment": ENVIRONMENT,
    "roofs": {"bytes_per_s": NUMBER, "cache_bytes_per_s": NUMBER, "flops_per_s": NUMBER},
    "rows": list,
    "wrong": [REFUSED],  # the answer was wrong or the call failed: not timed
    "skipped": [REFUSED],
}

# bench.bccd, bench.r50
QUANTILES = {"p10": NUMBER, "p50": NUMBER, "p90": NUMBER, "samples": int, "repeats": int}  # microseconds
BCCD = {
    "schema": int,
    "benchmark": str,  # bccd, r50
    "environment": ENVIRONMENT,
    "recipe": {"config": dict, "options": dict},
    "times": dict,  # by system: {"iteration": QUANTILES, "image": QUANTILES}
}
BCCD_ACCURACY = {
    **BCCD,
    "system": str,
    "seed": int,
    "test": {"iou_threshold": NUMBER, "map07": NUMBER, "map_area": NUMBER, "classes": dict},
}
BCCD_TIMING = {**BCCD, "ratio": {"iteration": NUMBER, "image": NUMBER}}  # torchvision's median over ours

# bench.resources; a list is the least and the most over the forms of a kernel function
RESOURCES = {
    "schema": int,
    "benchmark": str,  # resources
    "environment": ENVIRONMENT | {"nvcc": (str, type(None)), "cuobjdump": str},
    "kernels": [
        {
            "kernel": str,
            "source": str,  # .cu, or .py for Triton
            "architecture": str,
            "forms": int,
            "threads": (list, type(None)),  # a block
            "registers": list,  # a thread
            "shared": list,  # static, bytes a block
            "local": int,  # bytes a thread, all forms together: indexed arrays, and spilled registers
            "constant": (list, type(None)),  # bytes
            "blocks": (list, type(None)),  # a multiprocessor
            "warps": (list, type(None)),
            "occupancy": (list, type(None)),  # percent of the warps there can be
            "room_for_dynamic": (int, type(None)),  # bytes a block; null: uses no dynamic shared memory
        }
    ],
}

# bench.cost; times in microseconds, all of them predicted
COST_PARTS = {"issue": NUMBER, "bytes": NUMBER, "chain": NUMBER, "node": NUMBER}
COST = {
    "schema": int,
    "benchmark": str,  # cost
    "environment": ENVIRONMENT,
    "machines": dict,  # by name: the constants
    "steps": [
        {
            "op": str,
            "workload": str,
            "part": str,  # forward, backward, or "": of the call's launches
            "us": NUMBER,  # the goal
            "host": NUMBER,  # µs that a call in eager mode keeps the host busy with, without its launches
            "machines": dict,  # by name: COST_TIMES
        }
    ],
}
COST_TIMES = {
    **COST_PARTS,
    "predicted": NUMBER,
    "launches": [
        {
            **COST_PARTS,
            "kernel": str,
            "grid": int,
            "threads": int,  # a block
            "cluster": int,
            "resident": int,  # blocks a multiprocessor
            "instructions": int,  # of warps
            "bytes_moved": int,  # every sector once
            "bytes_through_cache": int,
            "sectors": int,  # as warps ask for them
            "shared_requests": int,  # of warps
            "shared_rounds": int,  # of the banks
            "barriers": int,
            "lanes": NUMBER,  # of 32 that run on average
            "chain_cycles": int,
            "hot": [{"line": str, "issued": NUMBER, "waited": NUMBER}],  # shares
        }
    ],
}

# bench.in_place
IN_PLACE = {
    "schema": int,
    "benchmark": str,  # in-place
    "environment": ENVIRONMENT,
    "calls": [
        {
            "model": str,
            "mode": str,  # evaluation | training
            "size": list,  # height and width of the image
            "times": dict,  # by contender: {stage, "proposal side" or "call": QUANTILES}
            "ratio": dict,  # torchvision's median over the contender's, of the proposal side
            "share": dict,  # by contender: the proposal side's part of the call
        }
    ],
}

# bench.busy; seconds of some iterations, medians of the rounds, and beside over alone
TAKEN = {"time": NUMBER, "processor_time": NUMBER}
BUSY = {
    "schema": int,
    "benchmark": str,  # busy
    "environment": ENVIRONMENT,
    "busy_processes": int,
    "rounds": int,
    "alone": TAKEN,
    "beside": TAKEN,
    "ratio": TAKEN,
    "fair": bool,
}

# bench.compat; a part that was not made is not there
COMPAT: dict[str, Any] = {
    "schema": int,
    "benchmark": str,  # compat
    "environment": ENVIRONMENT | {"libraries": dict},  # their versions
}
COMPAT_PARTS = {
    "zoo": {
        "models": int,
        "unreadable": dict,  # by config: why
        # percent of the models that the groups of functions down to this line serve
        "lines": [{"and": str, "served": bool, "inference": NUMBER, "training": NUMBER, "models": int}],
    },
    "families": [
        {
            "config": str,
            "inference": str,  # ok, or the error
            "training": str,
            "functions": dict,  # how often each was called
            "seconds": list,  # inference, training
        }
    ],
    "equal": [
        {
            "subject": str,
            "against": str,
            "replaced": list,
            "equal": bool,
            "detections": int,
            "largest": dict,  # differences
            "ratio": dict,  # theirs over ours, of the whole call
        }
    ],
    "callers": [
        {
            "library": str,
            "version": str,
            "subject": str,
            "replaced": list,  # the ops that it ran on
            "equal": bool,
            "largest": NUMBER,  # difference, of the largest number there
            "rounds": int,
            "ratio": NUMBER,  # processor time, theirs over ours, of the whole call
        }
    ],
    "exported": [
        {
            "subject": str,
            "size": list,  # height and width of the image
            "runtime": str,
            "version": str,
            "exporter": str,
            "detections": int,
            "unmatched": int,
            "boxes": NUMBER,  # largest difference, pixels
            "scores": NUMBER,
            "rounds": int,
            "ratio": NUMBER,  # eager's time over the runtime's
        }
    ],
    "tests": [{"file": str, "passed": int, "failed": int, "skipped": int, "failures": list}],
}


def check(value: Any, spec: Any = REPORT, path: str = "report") -> None:
    """ValueError with the path of the first part that does not fit. Extra keys are allowed at the top and in
    `environment`.
    """
    if isinstance(spec, tuple):
        plain = tuple(s for s in spec if isinstance(s, type))
        structured = [s for s in spec if not isinstance(s, type)]
        if isinstance(value, plain) and not (isinstance(value, bool) and bool not in plain):
            return
        if not structured:
            raise ValueError(f"{path}: expected {' or '.join(p.__name__ for p in plain)}, got {value!r}")
        check(value, structured[0], path)
    elif isinstance(spec, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{path}: expected an object, got {value!r}")
        absent = spec.keys() - value.keys()
        if absent:
            raise ValueError(f"{path}: lacks {', '.join(sorted(absent))}")
        extra = value.keys() - spec.keys()
        if extra and spec is not REPORT and not ENVIRONMENT.keys() <= spec.keys():
            raise ValueError(f"{path}: has unknown {', '.join(sorted(extra))}")
        for key, inner in spec.items():
            check(value[key], inner, f"{path}.{key}")
    elif isinstance(spec, list):
        if not isinstance(value, list):
            raise ValueError(f"{path}: expected a list, got {value!r}")
        for i, item in enumerate(value):
            check(item, spec[0], f"{path}[{i}]")
    elif not isinstance(value, spec) or (isinstance(value, bool) and spec is not bool):
        raise ValueError(f"{path}: expected {spec.__name__}, got {value!r}")


def check_report(report: dict[str, Any]) -> dict[str, Any]:
    """The report, if it fits: shape, version, order of the quantiles, no row twice."""
    if report.get("benchmark") in ("bccd", "r50"):
        return _check_bccd(report)
    if report.get("benchmark") == "resources":
        return _check_resources(report)
    if report.get("benchmark") == "compat":
        return _check_compat(report)
    if report.get("benchmark") == "in-place":
        return _check_in_place(report)
    if report.get("benchmark") == "cost":
        return _check_cost(report)
    if report.get("benchmark") == "busy":
        check(report, BUSY)
        _check_version(report)
        return report
    check(report)
    _check_version(report)
    seen = set()
    for i, row in enumerate(report["rows"]):
        check(row, ADDED_ROW if "measured" in row else ROW, f"report.rows[{i}]")
        key = row["op"], row["workload"], row["backend"]
        if key in seen:
            raise ValueError(f"report.rows[{i}]: {key} is there twice")
        seen.add(key)
        if row["backend"] == "cuda":
            check(report["environment"], GPU_ENVIRONMENT, "report.environment")
        for time in row["times"]:
            if not 0 < time["p10"] <= time["p50"] <= time["p90"]:
                raise ValueError(
                    f"report.rows[{i}]: {time['who']} has quantiles {time['p10']}, {time['p50']}, {time['p90']}"
                )
    return report


def _check_bccd(report: dict[str, Any]) -> dict[str, Any]:
    check(report, BCCD_TIMING if "ratio" in report else BCCD_ACCURACY)
    _check_version(report)
    for system, times in report["times"].items():
        check(times, {"iteration": QUANTILES, "image": QUANTILES}, f"report.times.{system}")
    return report


def _check_resources(report: dict[str, Any]) -> dict[str, Any]:
    check(report, RESOURCES)
    _check_version(report)
    for i, kernel in enumerate(report["kernels"]):
        for name, value in kernel.items():
            if isinstance(value, list) and not (len(value) == 2 and 0 <= value[0] <= value[1]):
                raise ValueError(f"report.kernels[{i}].{name}: expected the least and the most, got {value}")
    return report


def _check_compat(report: dict[str, Any]) -> dict[str, Any]:
    parts = {name: spec for name, spec in COMPAT_PARTS.items() if name in report}
    check(report, COMPAT | parts)
    _check_version(report)
    return report


def _check_in_place(report: dict[str, Any]) -> dict[str, Any]:
    check(report, IN_PLACE)
    _check_version(report)
    for i, call in enumerate(report["calls"]):
        for who, times in call["times"].items():
            for stage, time in times.items():
                check(time, QUANTILES, f"report.calls[{i}].times.{who}.{stage}")
    return report


def _check_cost(report: dict[str, Any]) -> dict[str, Any]:
    check(report, COST)
    _check_version(report)
    for i, step in enumerate(report["steps"]):
        for machine, found in step["machines"].items():
            path = f"report.steps[{i}].machines.{machine}"
            check(found, COST_TIMES, path)
            if abs(found["predicted"] - sum(found[part] for part in COST_PARTS)) > 1e-6:
                raise ValueError(f"{path}: what is predicted is not the sum of its parts")
    return report


def _check_version(report: dict[str, Any]) -> None:
    if report["schema"] != VERSION:
        raise ValueError(f"report.schema: expected {VERSION}, got {report['schema']}")


def load(path: Path) -> dict[str, Any]:
    """Reads and checks a results file."""
    try:
        return check_report(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def save(report: dict[str, Any], path: Path) -> None:
    """Checks and writes it, whole or not at all."""
    check_report(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(report, indent=1) + "\n")
    part.replace(path)
