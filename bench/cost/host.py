"""What a call in eager mode keeps the host busy with: Python, checks, allocation, autograd, and launches.

The first four are measured on this processor, in calls whose kernels are left out; a launch is a figure of the table of
machines. In a graph that is replayed, nothing of it is left.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from unittest import mock

from bench import registry
from frcnn_fast._extension import extension
from frcnn_fast.ops._operator import Operator

ROUNDS, CALLS = 50, 20


def _nothing(*arguments: object) -> None:
    """In the place of a kernel; a mock would take longer than a call."""


@contextlib.contextmanager
def kernels_left_out() -> Iterator[None]:
    """Inside, ops allocate their results and do not compute them."""
    with contextlib.ExitStack() as stack:
        for name in Operator.named:
            stack.enter_context(mock.patch.object(extension(), name, _nothing))
        yield


def of_row(op: str, workload: str) -> float:
    """µs of a call, without its launches: the least of all rounds."""
    call = registry.row(f"{op}: {workload}").make("cpu").ours
    with kernels_left_out():
        taken = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            taken.append((time.perf_counter() - start) / CALLS)
    return 1e6 * min(taken)


def of_part(op: str, workload: str, part: str) -> float:
    """The same of a forward or backward pass alone, or, for "", of all of the call."""
    if part != "backward":
        return of_row(op, workload)
    return of_row(op, workload) - of_row(op, workload.replace("forward+backward", "forward"))
