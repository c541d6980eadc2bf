"""Generalized, distance and complete IoU and their losses: errors, gradients, reductions, what holds between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from frcnn_fast import ops

KINDS = ("generalized", "distance", "complete")
PAIRWISE = [f"{kind}_box_iou" for kind in KINDS]
LOSSES = [f"{name}_loss" for name in PAIRWISE]
BOXES = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 4.0]])


def some_boxes(n: int, seed: int = 0, dtype: torch.dtype = torch.float64, whole: bool = False) -> Tensor:
    """whole: on a coarse grid, where sides tie and boxes touch."""
    g = torch.Generator().manual_seed(seed)
    corner, side = torch.rand(n, 2, generator=g) * 6, torch.rand(n, 2, generator=g) * 5 + 1
    if whole:
        corner, side = corner.floor(), side.floor()
    return torch.cat([corner, corner + side], 1).to(dtype)


def score(a: Tensor, b: Tensor, kind: str, eps: float, loss: bool) -> Tensor:
    """The definition, in torch."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    met = (high > low).all(-1)
    overlap = torch.where(met, (high - low).prod(-1), 0.0)
    area_a, area_b = ((t[..., 2:] - t[..., :2]).prod(-1) for t in (a, b))
    union = area_a + area_b - overlap
    iou = overlap / (union + eps * loss)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    if kind == "generalized":
        penalty = (hull.prod(-1) - union) / (hull.prod(-1) + eps * loss)
    else:
        apart = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
        penalty = apart.square().sum(-1) / (hull.square().sum(-1) + eps)
    if kind == "complete":
        angles = [torch.atan((t[..., 2] - t[..., 0]) / (t[..., 3] - t[..., 1])) for t in (a, b)]
        shape = 4 / math.pi**2 * (angles[0] - angles[1]).square()
        penalty = penalty + (shape / (1 - iou + shape + eps)).detach() * shape
    return 1 - iou + penalty if loss else iou - penalty


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_the_definitions(kind: str, whole: bool) -> None:
    """Ties split evenly on the grid, as torch.maximum and torch.minimum do."""
    eps = 1e-7
    weight = torch.rand(40, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def of_pairs(function: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        a, b = (some_boxes(n, n, whole=whole).requires_grad_() for n in (40, 30))
        found = function(a, b)
        return found, *torch.autograd.grad((found * weight).sum(), (a, b))

    def of_rows(function: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        a, b = (some_boxes(40, n, whole=whole).requires_grad_() for n in (40, 30))
        found = function(a, b)
        return found, *torch.autograd.grad((found * weight[:, 0]).sum(), (a, b))

    def near(ours: Any, wanted: Any) -> None:
        torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-12)

    near(
        of_pairs(getattr(ops, f"{kind}_box_iou")),
        of_pairs(lambda a, b: score(a[:, None], b[None], kind, eps, loss=False)),
    )
    near(of_rows(getattr(ops, f"{kind}_box_iou_loss")), of_rows(lambda a, b: score(a, b, kind, eps, loss=True)))


@pytest.mark.parametrize("kind", ["generalized", "distance"])
def test_gradients_equal_differences(kind: str) -> None:
    a, b = some_boxes(5).requires_grad_(), some_boxes(5, 1).requires_grad_()
    assert torch.autograd.gradcheck(getattr(ops, f"{kind}_box_iou"), (a, b))
    assert torch.autograd.gradcheck(getattr(ops, f"{kind}_box_iou_loss"), (a, b))
    assert torch.autograd.gradcheck(lambda b: getattr(ops, f"{kind}_box_iou_loss")(a.detach(), b, "mean"), (b,))


@pytest.mark.parametrize("loss", [False, True])
def test_the_gradient_of_the_complete_one_equals_differences_at_a_constant_alpha(loss: bool) -> None:
    """What it has beyond the distance one's is alpha times the slope of the shape's cost."""
    a, b = some_boxes(6), some_boxes(6, 1)
    names = [f"{kind}_box_iou{'_loss' if loss else ''}" for kind in ("complete", "distance")]

    def slope(name: str) -> Tensor:
        leaf = a.clone().requires_grad_()
        found = getattr(ops, name)(leaf, b)
        return torch.autograd.grad((found if loss else found.diagonal()).sum(), leaf)[0]

    def shape(a: Tensor) -> Tensor:
        angles = [torch.atan((t[:, 2] - t[:, 0]) / (t[:, 3] - t[:, 1])) for t in (a, b)]
        return 4 / math.pi**2 * (angles[0] - angles[1]).square()

    iou = torch.stack([ops.box_iou(a, b)[i, i] for i in range(6)])
    alpha = shape(a) / (1 - iou + shape(a))
    step, wanted = 1e-6, torch.zeros_like(a)
    for k in range(4):
        ends = []
        for sign in (1, -1):
            moved = a.clone()
            moved[:, k] += sign * step
            ends.append(shape(moved))
        wanted[:, k] = alpha * (ends[0] - ends[1]) / (2 * step)
    left = slope(names[0]) - slope(names[1])
    torch.testing.assert_close(left if loss else -left, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_reductions(name: str) -> None:
    function, a, b = getattr(ops, name), some_boxes(7), some_boxes(7, 1)
    losses = function(a, b)
    assert torch.equal(function(a, b, "sum"), losses.sum())
    assert torch.equal(function(a, b, "mean"), losses.sum() / 7)
    none = a[:0].requires_grad_()
    for reduction in ("sum", "mean"):
        total = function(none, b[:0], reduction)
        assert total.item() == 0
        total.backward()
    assert none.grad is not None
    assert none.grad.shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_halves_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    """What is rounded is the gradient, once."""
    a, b = some_boxes(9, dtype=dtype).requires_grad_(), some_boxes(9, 1, dtype=dtype)
    wide = a.detach().float().requires_grad_()
    losses, wanted = getattr(ops, name)(a, b), getattr(ops, name)(wide, b.float())
    assert losses.dtype == torch.float32
    assert torch.equal(losses, wanted)
    losses.sum().backward()
    wanted.sum().backward()
    assert a.grad is not None
    assert wide.grad is not None
    assert torch.equal(a.grad, wide.grad.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_holds_between_them(dtype: torch.dtype) -> None:
    a, b = some_boxes(60, dtype=dtype), some_boxes(50, 1, dtype=dtype)
    iou = ops.box_iou(a, b)
    found = {name: getattr(ops, name)(a, b) for name in PAIRWISE}
    rounding = 8 * torch.finfo(dtype).eps  # hull - union, where one box is within the other
    assert all((score_ <= iou + rounding).all() for score_ in found.values())
    assert (found["complete_box_iou"] <= found["distance_box_iou"]).all()
    assert (found["generalized_box_iou"] > -1).all()
    for name, score_ in found.items():
        assert torch.equal(getattr(ops, name)(b, a).T, score_)
        alone = 1 - getattr(ops, f"{name}_loss")(a[:50], b)
        torch.testing.assert_close(alone, score_[:50].diagonal(), rtol=1e-5, atol=1e-5)
    same = {name: getattr(ops, name)(a, a.clone()) for name in LOSSES}
    assert all(loss.abs().max() < 1e-6 for loss in same.values())


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, "boxes2", lambda: ops.generalized_box_iou(BOXES, BOXES[:, :2])),
        (TypeError, "boxes2", lambda: ops.distance_box_iou(BOXES, BOXES.half())),
        (TypeError, "boxes2", lambda: ops.complete_box_iou(BOXES.long(), BOXES)),
        (ValueError, "eps", lambda: ops.complete_box_iou(BOXES, BOXES, -1.0)),
        (ValueError, "boxes1", lambda: ops.generalized_box_iou_loss(BOXES[0], BOXES[0])),
        (ValueError, "boxes2", lambda: ops.generalized_box_iou_loss(BOXES, BOXES[:1])),
        (TypeError, "boxes1", lambda: ops.distance_box_iou_loss(BOXES.long(), BOXES.long())),
        (TypeError, "boxes2", lambda: ops.complete_box_iou_loss(BOXES, BOXES.double())),
        (ValueError, "reduction: expected one of none, mean, sum, got 'all'", lambda: ops.complete_box_iou_loss(
            BOXES, BOXES, "all"
        )),
        (ValueError, "eps", lambda: ops.distance_box_iou_loss(BOXES, BOXES, eps=float("nan"))),
    ],
)  # fmt: skip
def test_errors_name_the_argument(error: type[Exception], match: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=match):
        call()


def test_arrays_come_out_as_arrays() -> None:
    boxes: Any = BOXES.numpy()
    assert isinstance(ops.generalized_box_iou(boxes, boxes), np.ndarray)
    losses = ops.complete_box_iou_loss(boxes, boxes)
    assert isinstance(losses, np.ndarray)
    assert losses.shape == (2,)
