"""Ranking alone, against torch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench.case import Case, Competitor, Row
from bench.checks import equal_to_reference
from frcnn_fast import ops

FAMILY, PLACE = "ranking", 2


def _case(B: int, N: int, n: int, tied: bool) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        scores = torch.randn(B, N, generator=torch.Generator().manual_seed(0)).to(device)
        if tied:
            scores = torch.zeros_like(scores)

        def run(backend: str | None = None) -> Any:
            return ops.top_n(scores, n, backend=backend)

        best = min(n, N)
        against = {
            "torch.topk": Competitor(lambda: torch.topk(scores, best, sorted=True), capturable=True),
            "torch.sort": Competitor(lambda: torch.sort(scores, descending=True, stable=True), capturable=True),
        }
        return Case(run, equal_to_reference(run), against, bytes=B * (4 * N + 12 * n), flops=B * N)

    return make


def _rows() -> Iterator[Row]:
    for N, n in ((20646, 300), (20646, 6000), (20646, 12000), (201600, 1000), (201600, 2000)):
        yield Row("top_n", f"{n} of {N}", _case(1, N, n, False), headline=(N, n) in ((20646, 6000), (201600, 1000)))
    for N in (1, 10, 100):
        yield Row("top_n", f"{N} of {N}", _case(1, N, N, False))
    yield Row("top_n", "6000 of 20646 b8", _case(8, 20646, 6000, False))
    yield Row("top_n", "6000 of 20646 tied", _case(1, 20646, 6000, True))


ROWS = tuple(_rows())
