"""The headline rows under pytest-benchmark: `pytest bench/`, then `pytest bench/ --benchmark-compare`.

Only our own side is timed, after its answer was checked; `python -m bench` measures against the competitors. On a GPU
a call is timed until the GPU is done.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.case import Row, Unavailable
from bench.registry import rows

BACKEND = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.benchmark(min_rounds=5, max_time=0.3)
@pytest.mark.parametrize("row", rows(backend=BACKEND, headline=True), ids=lambda r: r.name)
def test_speed(benchmark: Any, row: Row) -> None:
    try:
        case = row.make(BACKEND)
    except Unavailable as reason:
        pytest.skip(str(reason))
    case.check(case.ours())

    def call() -> None:
        case.ours()
        if BACKEND == "cuda":
            torch.cuda.synchronize()

    benchmark.group = row.op
    benchmark.extra_info.update({"backend": BACKEND, "bytes": case.bytes, "flops": case.flops})
    benchmark(call)
