"""Which CUDA kernels a call runs, and for how long."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import torch

from bench.case import Call


def times(call: Call, calls: int = 20) -> dict[str, float]:
    """GPU microseconds a call of every kernel it launches, longest first."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    spent: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spent[event.name] += event.time_range.elapsed_us() / calls
    return dict(sorted(spent.items(), key=lambda pair: -pair[1]))


def function_name(kernel: str) -> str:
    """Without return type, namespaces, template arguments and parameters: "void a::(anonymous
    namespace)::f<int>(int)" -> f.
    """
    name = kernel.replace("(anonymous namespace)", "anonymous")
    while re.search(r"<[^<>]*>", name):
        name = re.sub(r"<[^<>]*>", "", name)
    return name.split("(", 1)[0].split("::")[-1].split()[-1]


def ours(found: dict[str, Any]) -> dict[str, Any]:
    """Only the kernels of this library."""
    return {name: value for name, value in found.items() if "frcnn_fast" in name}
