"""Selection by score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frcnn_fast import reference
from frcnn_fast.ops._arrays import accepts_arrays
from frcnn_fast.ops._checks import check_float, check_positive
from frcnn_fast.ops._operator import Operator
from frcnn_fast.ops.results import TopN


@accepts_arrays
def top_n(scores: Tensor, n: int, *, backend: str | None = None) -> TopN:
    """The n best scores of every row, in order.

    scores: [B, N], float16, bfloat16, float32 or float64. n: at least 0; may exceed N.

    Returns `TopN`: values [B, n] (the dtype of scores, 0 beyond the count), indices int64 [B, n] (columns, -1 beyond
    the count) and counts int64 [B]: how many were selected, min(n, scores that are not NaN).

    Scores sort in descending order; -0.0 equals 0.0; equal scores keep the lower index first; +inf and -inf are
    ordinary scores; NaN is never selected (torch.topk ranks it first). One exact answer on every backend, run after
    run. No gradient. O(N + n log n) a row. No row, N = 0 or n = 0 gives empty or padded results and counts of 0.

    ValueError: other shapes, a negative n. TypeError: not a tensor, other dtypes, an n that is no whole number.
    """
    check_float("scores", scores, "[B, N]", 2)
    return _top_n(scores.contiguous(), check_positive("n", n, zero=True), backend=backend)


def _outputs(a: Any) -> tuple[Tensor, ...]:
    scores, B, n = a.scores, a.scores.shape[0], a.n
    return (
        scores.new_empty(B, n),
        scores.new_empty(B, n, dtype=torch.int64),
        scores.new_empty(B, dtype=torch.int64),
    )


_top_n = Operator(
    "top_n(Tensor scores, int n) -> (Tensor values, Tensor indices, Tensor counts)",
    outputs=_outputs,
    workspace=lambda C, a: C.top_n_workspace(a.scores, a.n),
    oracle=reference.top_n,
    triton="top_n.top_n_triton:top_n",
    returns=TopN,
)
