"""The machine and the versions that figures belong to, and the roofs they stand under."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch

import frcnn_fast
from bench import competitors, tools
from frcnn_fast._extension import extension

ROOT = tools.ROOT
SOURCES = ("kernels", "bindings", "frcnn_fast", "bench", "CMakeLists.txt", "setup.py")


def describe(backend: str) -> dict[str, Any]:
    """For the report."""
    found = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": tools.commit(),
        "changed": bool(tools.output("git", "status", "--porcelain", "--", *SOURCES)),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": list(os.getloadavg()),
        "build": {key: value for key, value in extension().build_info().items() if key != "cuda_error"},
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "frcnn_fast": frcnn_fast.__version__,
        **competitors.versions(),
        "missing": competitors.missing(),
    }
    if backend == "cuda":
        found |= gpu()
    return found


def gpu() -> dict[str, Any]:
    """The GPU, its driver and its clocks as they are now."""
    properties = torch.cuda.get_device_properties(0)
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    smi = tools.output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "cuda_runtime": torch.version.cuda,
        "nvidia_smi": dict(zip(fields.split(","), (value.strip() for value in smi.split(",")))) if smi else {},
    }


def cpu_name() -> str:
    """As the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def slug(environment: dict[str, Any]) -> str:
    """A file name: the machine and the day."""
    name = environment.get("gpu") or environment["cpu"]
    words = "".join(c if c.isalnum() else " " for c in name.replace("(R)", "").replace("NVIDIA", "")).lower().split()
    return "-".join([*(w for w in words if w not in ("cpu", "processor")), environment["date"][:10]])


def roofs(backend: str) -> dict[str, float]:
    """What the machine can do at best, measured: bytes a second of a copy (read and written) from memory and from the
    cache (the GPU's L2), and float32 operations a second of a matrix product.
    """
    on_gpu = backend == "cuda"
    far, near, side = (1 << 30, 8 << 20, 8192) if on_gpu else (1 << 27, 1 << 18, 1024)
    rates = {}
    for name, size in (("bytes_per_s", far), ("cache_bytes_per_s", near)):
        source = torch.zeros(size, dtype=torch.uint8, device=backend)
        target = torch.empty_like(source)
        rates[name] = 2.0 * size / _best(lambda s=source, t=target: t.copy_(s), on_gpu)  # type: ignore[misc]
    a, b = (torch.randn(side, side, device=backend) for _ in range(2))
    return {**rates, "flops_per_s": 2.0 * side**3 / _best(lambda: a @ b, on_gpu)}


def _best(call: Callable[[], Any], on_gpu: bool) -> float:
    """Seconds of the fastest of many calls."""
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 10 or (len(times) < 100 and time.perf_counter() - start < 0.3):
        if on_gpu:
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(100_000)  # the host queues the rest meanwhile
            before.record()
            call()
            after.record()
            torch.cuda.synchronize()
            times.append(before.elapsed_time(after) * 1e-3)
        else:
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    return min(times[2:])


def main() -> None:
    """Writes what `describe` finds, with the name of a results file, so that others can read it without torch."""
    parser = argparse.ArgumentParser(prog="python -m bench.environment", description=__doc__)
    parser.add_argument("--backend", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    found = describe(args.backend)
    args.json.write_text(json.dumps({**found, "slug": slug(found)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
