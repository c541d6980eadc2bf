"""Sigmoid focal loss, of targets for every element or of a class for each row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frcnn_fast import reference
from frcnn_fast.ops import _checks
from frcnn_fast.ops._arrays import accepts_arrays
from frcnn_fast.ops._operator import Operator, contiguous_saved

REDUCTIONS = ("none", "mean", "sum")
LARGEST = torch.finfo(torch.float32).max


def _loss_like(a: Any) -> tuple[Tensor]:
    return (a.inputs.new_empty(a.inputs.shape, dtype=_checks.compute_dtype(a.inputs)),)


def _setup(ctx: Any, a: Any, output: Tensor) -> None:
    ctx.scalars = a.alpha, a.gamma
    ctx.save_for_backward(a.inputs, a.targets)


def _gradient(ctx: Any, grad: Tensor) -> dict[str, Tensor]:
    inputs, targets = contiguous_saved(ctx)
    return {"inputs": _sigmoid_focal_loss_backward(_spread(grad), inputs, targets, *ctx.scalars)}


def _class_setup(ctx: Any, a: Any, output: Tensor) -> None:
    ctx.scalars = a.alpha, a.gamma
    ctx.save_for_backward(a.inputs, a.targets, *(() if a.weight is None else (a.weight,)))


def _class_gradient(ctx: Any, grad: Tensor) -> dict[str, Tensor]:
    inputs, targets, *weight = contiguous_saved(ctx)
    weight_or_none = weight[0] if weight else None
    return {"inputs": _class_focal_loss_backward(_spread(grad), inputs, targets, weight_or_none, *ctx.scalars)}


def _spread(grad: Tensor) -> Tensor:
    """A sum's gradient is one number, spread over all elements: no table of it is made."""
    if grad.numel() > 1 and not any(grad.stride()):
        return grad[(0,) * grad.dim()].reshape(1)
    return grad.contiguous()


_sigmoid_focal_loss = Operator(
    "sigmoid_focal_loss(Tensor inputs, Tensor targets, float alpha, float gamma) -> Tensor loss",
    outputs=_loss_like,
    oracle=reference.sigmoid_focal_loss,
    triton="focal_loss.focal_loss_triton:sigmoid_focal_loss",
    setup_context=_setup,
    backward=_gradient,
)

# grad: of the inputs' shape, or one number for all of them.
_sigmoid_focal_loss_backward = Operator(
    "sigmoid_focal_loss_backward(Tensor grad, Tensor inputs, Tensor targets, float alpha, float gamma) "
    "-> Tensor grad_inputs",
    outputs=lambda a: (torch.empty_like(a.inputs),),
    oracle=reference.sigmoid_focal_loss_backward,
    triton="focal_loss.focal_loss_triton:sigmoid_focal_loss_backward",
)

# inputs [N, C], targets int64 [N], weight [C] in the type that is computed in.
_class_focal_loss = Operator(
    "class_focal_loss(Tensor inputs, Tensor targets, Tensor? weight, float alpha, float gamma) -> Tensor loss",
    outputs=_loss_like,
    oracle=reference.class_focal_loss,
    triton="focal_loss.focal_loss_triton:class_focal_loss",
    setup_context=_class_setup,
    backward=_class_gradient,
)

# grad as in sigmoid_focal_loss_backward.
_class_focal_loss_backward = Operator(
    "class_focal_loss_backward(Tensor grad, Tensor inputs, Tensor targets, Tensor? weight, float alpha, float gamma) "
    "-> Tensor grad_inputs",
    outputs=lambda a: (torch.empty_like(a.inputs),),
    oracle=reference.class_focal_loss_backward,
    triton="focal_loss.focal_loss_triton:class_focal_loss_backward",
)


@accepts_arrays
def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "none",
    *,
    weight: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Binary cross entropy of logits in which an easy element counts little: of the inputs' shape, or its sum or mean.

        p = sigmoid(x);  q = p * (1 - t) + (1 - p) * t;  alpha_t = alpha * t + (1 - alpha) * (1 - t)
        loss = alpha_t * (q^gamma * (-t * log(p) - (1 - t) * log(1 - p)))

    inputs: logits of any shape. targets: of the same shape and dtype, each t in [0, 1]; or int64 [N] beside inputs
    [N, C], the class of each row: t is 1 in its column and 0 in the others, and a number that is no column's (C, -1) is
    background, a row of zeros, for which no table of targets is made. weight [C], with classes only: a factor of the
    whole row by its class; the background has none. alpha in [0, 1], or below 0: alpha_t is 1. gamma is at least 0; 2
    is the fast one. reduction: "none", "sum" or "mean". Empty inputs give an empty loss, and a sum or mean of 0.

    The result is float64 for float64 inputs and float32 for all others; the gradient has the inputs' dtype.
    Differentiable in the inputs once; targets and weight have no gradient. Every operation is rounded by itself, and no
    digit is lost at certain scores: nothing is subtracted from a probability near 1. An infinite logit is a certainty,
    whose loss is 0 or infinite and whose gradient is finite. A NaN logit, target or weight gives NaN where it takes
    part. Nothing is ranked, so there are no ties.

    Losses and gradients are bitwise repeatable and the same bits on every backend; a sum or a mean is torch's own. O(N)
    time, one pass forward and one backward, which makes no table of a sum's gradient. torchvision's signature.

    TypeError: not tensors, other dtypes, dtypes that differ. ValueError: shapes that differ, classes beside inputs that
    are not [N, C], different devices, alpha above 1, gamma below 0, another reduction, weight without classes, targets
    that want a gradient.

    Lin et al., Focal Loss for Dense Object Detection (2017).
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    alpha = float(alpha)
    if not alpha <= 1.0:
        raise ValueError(f"alpha: expected a number from 0 to 1, or below 0 for no weighting, got {alpha!r}")
    gamma = _checks.check_threshold("gamma", gamma, high=LARGEST)
    if isinstance(targets, Tensor) and not targets.is_floating_point():
        loss = _of_classes(inputs, targets, weight, alpha, gamma, backend)
    else:
        loss = _of_elements(inputs, targets, weight, alpha, gamma, backend)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / max(loss.numel(), 1)


def _of_elements(
    inputs: Tensor, targets: Tensor, weight: Tensor | None, alpha: float, gamma: float, backend: str | None
) -> Tensor:
    _checks.check_float("inputs", inputs, "[...]")
    _checks.check_float("targets", targets, "[...]")
    _checks.check_size("targets", targets, "of the inputs", inputs.shape)
    _checks.check_same("targets", targets, "inputs", inputs)
    if weight is not None:
        raise ValueError("weight: expected None beside targets for every element; give int64 classes [N], or multiply")
    if targets.requires_grad and torch.is_grad_enabled():
        raise ValueError("targets: no gradient flows to them; pass targets.detach()")
    return _sigmoid_focal_loss(inputs.contiguous(), targets.contiguous(), alpha, gamma, backend=backend)


def _of_classes(
    inputs: Tensor, targets: Tensor, weight: Tensor | None, alpha: float, gamma: float, backend: str | None
) -> Tensor:
    _checks.check_float("inputs", inputs, "[N, C], with classes for targets", 2)
    _checks.check_int("targets", targets, "[N]", inputs.shape[:1])
    _checks.check_same("targets", targets, "inputs", inputs, dtype=False)
    if weight is not None:
        _checks.check_float("weight", weight, "[C]", 1)
        _checks.check_size("weight", weight, "[C]", inputs.shape[1:])
        _checks.check_same("weight", weight, "inputs", inputs, dtype=False)
        weight = _checks.contiguous_in(weight.detach(), _checks.compute_dtype(inputs))
    return _class_focal_loss(inputs.contiguous(), targets.contiguous(), weight, alpha, gamma, backend=backend)
