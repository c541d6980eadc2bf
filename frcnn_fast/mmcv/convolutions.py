"""Deformable and masked convolutions. Signatures are those of mmcv's compiled functions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from frcnn_fast._extras import require


class _Shape(NamedTuple):
    """As torchvision's operators take it."""

    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int
    groups: int
    offset_groups: int

    def output_size(self, input: Tensor, weight: Tensor) -> tuple[int, int]:
        return (
            (input.shape[2] + 2 * self.pad_h - self.dilation_h * (weight.shape[2] - 1) - 1) // self.stride_h + 1,
            (input.shape[3] + 2 * self.pad_w - self.dilation_w * (weight.shape[3] - 1) - 1) // self.stride_w + 1,
        )


def _operator(name: str) -> torch._ops.OpOverloadPacket:
    require("torchvision", "mmdet")  # which registers it
    return getattr(torch.ops.torchvision, name)


def _forward(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, shape: _Shape
) -> Tensor:
    return _operator("deform_conv2d")(*_operands(input, weight, offset, mask, bias), *shape, mask is not None)


def _backward(
    grad: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, shape: _Shape
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the input, the weight, the offsets, the mask and the bias."""
    operands = _operands(input, weight, offset, mask, bias)
    found = _operator("_deform_conv2d_backward")(grad.contiguous(), *operands, *shape, mask is not None)
    _forget_the_edge(found[2], offset, weight, shape)
    return found


def _operands(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None) -> list[Tensor]:
    """What is not there is a tensor all the same."""
    mask = input.new_zeros(input.shape[0], 1) if mask is None else mask
    bias = input.new_zeros(weight.shape[0]) if bias is None else bias
    return [t.contiguous() for t in (input, weight, offset, mask, bias)]


def _forget_the_edge(grad_offset: Tensor, offset: Tensor, weight: Tensor, shape: _Shape) -> None:
    """A sample exactly one cell before the map has no derivative in mmcv, and that of the next cell in torchvision.

    It happens to every convolution with padding before its offsets have learnt anything: they are 0.
    """
    kernel_h, kernel_w = weight.shape[2:]
    B, _, height, width = offset.shape
    place = offset.reshape(B, -1, kernel_h, kernel_w, 2, height, width)
    grad = grad_offset.view(place.shape)
    for axis, (cells, taps, stride, pad, dilation) in enumerate(
        (
            (height, kernel_h, shape.stride_h, shape.pad_h, shape.dilation_h),
            (width, kernel_w, shape.stride_w, shape.pad_w, shape.dilation_w),
        )
    ):
        start = torch.arange(cells, device=offset.device) * stride - pad
        tap = torch.arange(taps, device=offset.device) * dilation
        if axis == 0:
            unmoved = start[:, None] + tap[:, None, None, None]  # [kernel_h, 1, height, 1]
        else:
            unmoved = start + tap[:, None, None]  # [kernel_w, 1, width]
        along = grad[:, :, :, :, axis]
        along.masked_fill_(place[:, :, :, :, axis] + unmoved.to(offset.dtype) == -1, 0)


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Into output [B, K, H_out, W_out] (Dai et al. 2017)."""
    shape = _Shape(dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    output.copy_(_forward(input, weight, offset, None, None, shape))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Into gradInput and gradOffset."""
    shape = _Shape(dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    found = _backward(gradOutput, input, weight, offset, None, None, shape)
    gradInput.copy_(found[0])
    gradOffset.copy_(found[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Adds to gradWeight, times scale."""
    shape = _Shape(dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    weight = torch.zeros_like(gradWeight)  # its values do not matter to its own gradient
    gradWeight.add_(_backward(gradOutput, input, weight, offset, None, None, shape)[1], alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Into output [B, K, H_out, W_out] (Zhu et al. 2019)."""
    shape = _Shape(stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    size = shape.output_size(input, weight)
    taps = deformable_group * kernel_h * kernel_w
    offset, mask = _as_read(offset, 2 * taps, size), _as_read(mask, taps, size)
    output.copy_(_forward(input, weight, offset, mask, bias if with_bias else None, shape))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Into grad_input, grad_weight, grad_bias (with_bias), grad_offset and grad_mask."""
    shape = _Shape(stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    size = (grad_output.shape[2], grad_output.shape[3])
    taps = deformable_group * kernel_h * kernel_w
    offset, mask = _as_read(offset, 2 * taps, size), _as_read(mask, taps, size)
    found = _backward(grad_output, input, weight, offset, mask, bias if with_bias else None, shape)
    grad_input.copy_(found[0])
    grad_weight.copy_(found[1])
    _write_back(grad_offset, found[2])
    _write_back(grad_mask, found[3])
    if with_bias:
        grad_bias.copy_(found[4])


def _as_read(maps: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """An image's offsets (or masks) as mmcv reads them: the first channels * H * W numbers in memory.

    Where they are of the output's size, that is what they are. DyHead hands in those of another level's map.
    """
    if maps.shape[1:] == (channels, *size):
        return maps
    needed = channels * size[0] * size[1]
    if maps[0].numel() < needed:
        raise ValueError(
            f"offset, mask: expected [B, {channels}, {size[0]}, {size[1]}], the output's height and width, or more "
            f"numbers an image, got {list(maps.shape)}"
        )
    return maps.flatten(1)[:, :needed].reshape(len(maps), channels, *size)


def _write_back(grad: Tensor, found: Tensor) -> None:
    """The gradient of `_as_read`; numbers that were not read have none."""
    if grad.shape == found.shape:
        grad.copy_(found)
        return
    flat = grad.new_zeros(len(grad), grad[0].numel())
    flat[:, : found[0].numel()] = found.flatten(1)
    grad.copy_(flat.view(grad.shape))


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Into col [C * kernel_h * kernel_w, n]: what a convolution of stride 1 sees of im [1, C, H, W] at n cells."""
    padded = torch.nn.functional.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows, columns].reshape(col.shape))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """The columns [C, n] into those cells of im [1, C, height, width]."""
    im[0][:, mask_h_idx, mask_w_idx] = col
