"""What an RPN's head says of every anchor: a table for all of them, or its maps, one a level, as they are stored."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from frcnn_fast.ops._checks import check_float, check_same, check_size, describe
from frcnn_fast.ops.anchors import MOST_LEVELS


def check_head(
    scores_name: str, scores: Tensor | Sequence[Tensor], deltas: Tensor | Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Checks the two against each other: (scores, deltas, anchors of each of their levels), lists of one table each,
    or of maps [B, k, H, W] and [B, 4k, H, W]."""
    if not isinstance(scores, Tensor):
        return _check_maps(scores_name, scores, deltas)
    check_float(scores_name, scores, "[B, A], or a list of maps [B, k, H, W]", 2)
    B, A = scores.shape
    if not isinstance(deltas, Tensor):
        raise TypeError(f"deltas: expected a tensor [B, A, 4] as {scores_name} is one, got {describe(deltas)}")
    check_float("deltas", deltas, "[B, A, 4]", 3, 4)
    check_size("deltas", deltas, "[B, A, 4]", (B, A, 4))
    check_same("deltas", deltas, scores_name, scores)
    return [scores], [deltas], [A]


def _check_maps(
    name: str, scores: Sequence[Tensor], deltas: Tensor | Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[int]]:
    if not isinstance(scores, (list, tuple)):
        raise TypeError(f"{name}: expected a tensor [B, A] or a list of maps [B, k, H, W], got {describe(scores)}")
    if not 1 <= len(scores) <= MOST_LEVELS:
        raise ValueError(f"{name}: expected 1 to {MOST_LEVELS} maps, got {len(scores)}")
    if not isinstance(deltas, (list, tuple)):
        raise TypeError(f"deltas: expected a list of maps [B, 4k, H, W] as {name} is one, got {describe(deltas)}")
    if len(deltas) != len(scores):
        raise ValueError(f"deltas: expected {len(scores)} maps, one for each of {name}, got {len(deltas)}")
    sizes, first = [], scores[0]
    for level, (of_scores, of_deltas) in enumerate(zip(scores, deltas, strict=True)):
        own, other = f"{name}[{level}]", f"deltas[{level}]"
        check_float(own, of_scores, "[B, k, H, W]", 4)
        check_float(other, of_deltas, "[B, 4k, H, W]", 4)
        B, k, H, W = of_scores.shape
        check_size(other, of_deltas, "[B, 4k, H, W]", (B, 4 * k, H, W))
        check_same(other, of_deltas, own, of_scores)
        if level:
            check_same(own, of_scores, f"{name}[0]", first)
            if first.shape[0] != B:
                raise ValueError(f"{own}: expected the {first.shape[0]} images of {name}[0], got {describe(of_scores)}")
        sizes.append(k * H * W)
    return list(scores), list(deltas), sizes
