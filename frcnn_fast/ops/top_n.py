"""Selection by score."""

from __future__ import annotations

import torch
from torch import Tensor

from frcnn_fast import reference
from frcnn_fast._extension import extension
from frcnn_fast.ops._arrays import accepts_arrays
from frcnn_fast.ops._checks import check_float, check_positive
from frcnn_fast.ops._operator import Operator


@accepts_arrays
def top_n(scores: Tensor, n: int, *, backend: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The n best scores of every row, in order.

    scores: [B, N], float16, bfloat16, float32 or float64. n: at least 0; may exceed N.

    Returns values [B, n] (the dtype of scores, 0 beyond the count), indices int64 [B, n] (columns, -1 beyond the
    count) and counts int64 [B]: how many were selected, min(n, scores that are not NaN).

    Scores sort in descending order; -0.0 equals 0.0; equal scores keep the lower index first; +inf and -inf are
    ordinary scores; NaN is never selected (torch.topk ranks it first). One exact answer on every backend, run after
    run. No gradient. O(N + n log n) a row.
    """
    check_float("scores", scores, "[B, N]", 2)
    return _top_n(scores.contiguous(), check_positive("n", n, zero=True), backend=backend)


def _outputs(scores: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    B = scores.shape[0]
    return (
        scores.new_empty(B, n),
        scores.new_empty(B, n, dtype=torch.int64),
        scores.new_empty(B, dtype=torch.int64),
    )


def _launch(scores: Tensor, n: int, values: Tensor, indices: Tensor, counts: Tensor) -> None:
    if not counts.shape[0]:
        return
    C = extension()
    size = C.top_n_workspace(scores, n)
    workspace = scores.new_empty(size, dtype=torch.uint8) if size else None
    C.top_n(scores, workspace, values, indices, counts)


_top_n = Operator(
    "top_n(Tensor scores, int n) -> (Tensor, Tensor, Tensor)",
    outputs=_outputs,
    launch=_launch,
    triton="top_n.top_n_triton:top_n",
    reference=lambda scores, n: reference.top_n(scores, n),
)
