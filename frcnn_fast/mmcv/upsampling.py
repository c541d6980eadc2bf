"""CARAFE (Wang et al. 2019): every output cell is a weighted sum of a window of input cells, with weights of its own.

Signatures are those of mmcv's compiled functions. Taps of the window are added one after the other, so that the window
is never unfolded.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Into output [B, C, s H, s W], from features [B, C, H, W] and masks [B, groups * k * k, s H, s W]."""
    wide = _padded(features, kernel_size)
    weights = _by_tap(masks, kernel_size, group_size, scale_factor)
    total = _blocks(output.new_zeros(output.shape, dtype=wide.dtype), group_size, scale_factor)
    for tap, window in _windows(wide, kernel_size, group_size):
        total += window * weights[:, :, tap].to(wide.dtype)
    output.copy_(total.reshape(output.shape))


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Into bottom_grad and mask_grad."""
    wide = _padded(features, kernel_size)
    weights = _by_tap(masks, kernel_size, group_size, scale_factor)
    grad = _blocks(top_grad.to(wide.dtype), group_size, scale_factor)
    to_features = torch.zeros_like(wide)
    slopes = weights.new_zeros(weights.shape, dtype=wide.dtype)
    windows = _windows(to_features, kernel_size, group_size)
    for (tap, window), (_, collected) in zip(_windows(wide, kernel_size, group_size), windows):
        slopes[:, :, tap] = (grad * window).sum(2, keepdim=True)
        collected += (grad * weights[:, :, tap].to(wide.dtype)).sum((4, 6), keepdim=True)
    r = kernel_size // 2
    bottom_grad.copy_(to_features[:, :, r : r + features.shape[2], r : r + features.shape[3]])
    mask_grad.copy_(slopes.reshape(masks.shape))


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """As `carafe_naive_forward`. rfeatures, which mmcv keeps for the backward pass, get the features as they are."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """As `carafe_naive_backward`."""
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)


# Below, a map of the output's size is [B, groups, channels of a group, H, s, W, s], one of the input's has 1 for s.


def _padded(features: Tensor, kernel_size: int) -> Tensor:
    wide = features if features.dtype == torch.float64 else features.float()
    return torch.nn.functional.pad(wide, [kernel_size // 2] * 4)


def _windows(padded: Tensor, kernel_size: int, groups: int) -> Iterator[tuple[int, Tensor]]:
    """Each tap, and what it sees: a view of the padded features."""
    C, height, width = padded.shape[1:]
    H, W = height - kernel_size + 1, width - kernel_size + 1
    for tap in range(kernel_size * kernel_size):
        i, j = divmod(tap, kernel_size)
        seen = padded[:, :, i : i + H, j : j + W]
        yield tap, seen.unflatten(1, (groups, C // groups))[:, :, :, :, None, :, None]


def _by_tap(masks: Tensor, kernel_size: int, groups: int, scale: int) -> Tensor:
    """[B, groups, k * k, 1, H, s, W, s]"""
    B, _, height, width = masks.shape
    return masks.reshape(B, groups, kernel_size**2, 1, height // scale, scale, width // scale, scale)


def _blocks(maps: Tensor, groups: int, scale: int) -> Tensor:
    B, C, height, width = maps.shape
    return maps.reshape(B, groups, C // groups, height // scale, scale, width // scale, scale)
