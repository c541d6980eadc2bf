"""What an RPN's head says of a few of its anchors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from frcnn_fast import reference
from frcnn_fast.ops import _checks
from frcnn_fast.ops._arrays import accepts_arrays
from frcnn_fast.ops._operator import Operator, contiguous_saved
from frcnn_fast.ops._rois import empty_maps
from frcnn_fast.ops.anchors import MOST_LEVELS


def _setup(ctx: Any, a: Any, output: Tensor) -> None:
    ctx.shapes = [side for m in a.maps for side in m.shape]
    ctx.layouts = [m.stride(1) == 1 and not m.is_contiguous() for m in a.maps]
    ctx.save_for_backward(a.indices)


def _gradient(ctx: Any, grad: Tensor) -> dict[str, list[Tensor]]:
    (indices,) = contiguous_saved(ctx)
    return {"maps": _gather_anchors_backward(grad.contiguous(), indices, ctx.shapes, ctx.layouts)}


_gather_anchors = Operator(
    "gather_anchors(Tensor[] maps, Tensor indices, int values) -> Tensor rows",
    outputs=lambda a: (a.maps[0].new_empty(*a.indices.shape, a.values),),
    oracle=reference.gather_anchors,
    triton="anchor_gather.anchor_gather_triton:gather_anchors",
    setup_context=_setup,
    backward=_gradient,
)


def _backward_outputs(a: Any) -> tuple[list[Tensor]]:
    """One list of maps. map_shapes: (B, C, H, W) of one after the other."""
    grad, sides = a.grad, a.map_shapes
    return ([empty_maps(sides[4 * i : 4 * i + 4], grad.dtype, grad, last) for i, last in enumerate(a.channels_last)],)


_gather_anchors_backward = Operator(
    "gather_anchors_backward(Tensor grad, Tensor indices, SymInt[] map_shapes, bool[] channels_last) "
    "-> Tensor[] grad_maps",
    outputs=_backward_outputs,
    oracle=reference.gather_anchors_backward,
    triton="anchor_gather.anchor_gather_triton:gather_anchors_backward",
)


@accepts_arrays
def gather_anchors(maps: Sequence[Tensor], indices: Tensor, values: int = 1, *, backend: str | None = None) -> Tensor:
    """What the maps of an RPN's head say of some anchors, [B, S, values]: what its loss is made of.

    Args:
        maps: up to 8 of one dtype (float16, bfloat16, float32 or float64), one a level, [B, k * values, H, W] with any
            strides; the `values` channels of an anchor lie side by side. Nothing is permuted, copied or put together.
        indices: int64 [B, S], anchors of the image, level after level, within a level (y, x, anchor of the cell); -1
            stands for none, as `rpn_targets` pads.
        values: numbers an anchor: 1 for logits, 4 for deltas.

    Returns:
        Rows in the maps' dtype, exact copies; 0 where the index is -1.

    The gradient is dense: a map for each, channels_last where the map was, else contiguous, every number written once:
    0, or the sum of its rows' gradients in their order, in float32 (float64 for float64), rounded once. The same bits
    on every backend, whatever the number of threads. No second derivative. O(B S values), backward also O(the maps) and
    O(B S^2) on a CPU.

    Raises:
        TypeError, ValueError: wrong shapes, dtypes or devices; on a CPU an index that is out of range (a GPU takes it
            as -1).
    """
    if not isinstance(maps, (list, tuple)) or not 1 <= len(maps) <= MOST_LEVELS:
        raise TypeError(f"maps: expected a list of 1 to {MOST_LEVELS} tensors, got {_checks.describe(maps)}")
    values, first = _checks.check_positive("values", values), maps[0]
    for level, one in enumerate(maps):
        _checks.check_float(f"maps[{level}]", one, "[B, k * values, H, W]", 4)
        _checks.check_same(f"maps[{level}]", one, "maps[0]", first)
        if one.shape[0] != first.shape[0] or one.shape[1] % values:
            raise ValueError(
                f"maps[{level}]: expected {first.shape[0]} images with a multiple of {values} channels, "
                f"got {_checks.describe(one)}"
            )
    if not isinstance(indices, Tensor) or indices.dim() != 2:
        raise TypeError(f"indices: expected an int64 tensor [B, S], got {_checks.describe(indices)}")
    _checks.check_int("indices", indices, "[B, S]", (first.shape[0], indices.shape[1]))
    _checks.check_same("indices", indices, "maps[0]", first, dtype=False)
    return _gather_anchors(list(maps), indices.contiguous(), values, backend=backend)
