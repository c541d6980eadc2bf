"""Focal losses (Lin et al. 2017). Signatures are those of mmcv's compiled functions."""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny  # logarithms are taken of at least this


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Into output [N, C], from logits [N, C], classes int64 [N] (C, or any other: background) and weights [C] or []."""
    p, q, rows, classes = _probabilities(input, target)
    loss = (alpha - 1) * p**gamma * q.clamp(min=_TINY).log()
    right, wrong = p[rows, classes], q[rows, classes]
    loss[rows, classes] = -alpha * wrong**gamma * right.clamp(min=_TINY).log()
    output.copy_(_weighted(loss, target, weight))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Into grad_input [N, C]: the derivative of every loss by its own logit."""
    p, q, rows, classes = _probabilities(input, target)
    slope = (alpha - 1) * p**gamma * (gamma * q * q.clamp(min=_TINY).log() - p)
    right, wrong = p[rows, classes], q[rows, classes]
    slope[rows, classes] = -alpha * wrong**gamma * (wrong - gamma * right * right.clamp(min=_TINY).log())
    grad_input.copy_(_weighted(slope, target, weight))


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


def _probabilities(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    p = _wide(input).sigmoid()
    return p, 1 - p, *_objects(input, target)


def _weighted(loss: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    if not weight.numel():
        return loss
    rows, classes = _objects(loss, target)
    loss[rows] *= weight[classes][:, None].to(loss.dtype)  # the background has no weight of its own
    return loss


def _alphas(classes: Tensor, weight: Tensor, alpha: float) -> Tensor | float:
    return weight[classes] * alpha if weight.numel() else alpha
