"""Focal losses (Lin et al. 2017). Signatures are those of mmcv's compiled functions."""

from __future__ import annotations

import torch
from torch import Tensor

from frcnn_fast.ops._checks import compute_dtype, contiguous_in
from frcnn_fast.ops.focal_loss import _class_focal_loss, _class_focal_loss_backward

_TINY = torch.finfo(torch.float32).tiny  # logarithms are taken of at least this


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Into output [N, C], from logits [N, C], classes int64 [N] (C, or any other: background) and weights [C] or []."""
    arguments = _classes(input, target, weight)
    if output.dtype == compute_dtype(input) and output.is_contiguous():
        _class_focal_loss.run(None, *arguments, alpha, gamma, into=(output,))
    else:
        output.copy_(_class_focal_loss.run(None, *arguments, alpha, gamma))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Into grad_input [N, C]: the derivative of every loss by its own logit."""
    arguments = _classes(input, target, weight)
    each = input.new_ones(1, dtype=compute_dtype(input))
    into = grad_input if grad_input.is_contiguous() else torch.empty_like(input, memory_format=torch.contiguous_format)
    _class_focal_loss_backward.run(None, each, *arguments, alpha, gamma, into=(into,))
    if into is not grad_input:
        grad_input.copy_(into)


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Into output [N], from the softmax [N, C] of the logits. The background loses nothing."""
    rows, classes = _objects(input, target)
    p = _wide(input[rows, classes])
    output.zero_()
    loss = -_alphas(classes, weight, alpha) * (1 - p) ** gamma * p.clamp(min=_TINY).log()
    output[rows] = loss.to(output.dtype)


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Into grad_input [N, C]: the derivative of a row's loss by each logit of the row. buff [N]: by the logarithm."""
    rows, classes = _objects(input, target)
    every = _wide(input)
    p = every[rows, classes]
    slope = (1 - p) ** gamma - gamma * p * (1 - p) ** (gamma - 1) * p.clamp(min=_TINY).log()
    buff.zero_()
    buff[rows] = (-_alphas(classes, weight, alpha) * slope).to(buff.dtype)
    one_hot = torch.zeros_like(every)
    one_hot[rows, classes] = 1
    grad_input.copy_(buff[:, None] * (one_hot - every))


def _wide(input: Tensor) -> Tensor:
    """Halves as float32."""
    return input if input.dtype == torch.float64 else input.float()


def _objects(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that are no background, and their classes."""
    rows = ((target >= 0) & (target < input.shape[1])).nonzero()[:, 0]
    return rows, target[rows]


def _classes(input: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the kernels take: the background has no weight of its own there."""
    factors = contiguous_in(weight, compute_dtype(input)) if weight.numel() else None
    return input.contiguous(), target.contiguous(), factors


def _alphas(classes: Tensor, weight: Tensor, alpha: float) -> Tensor | float:
    return weight[classes] * alpha if weight.numel() else alpha
