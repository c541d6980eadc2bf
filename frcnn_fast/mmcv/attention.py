"""Deformable attention over several levels (Zhu et al. 2021). Signatures are those of mmcv's compiled functions.

mmcv has the same in Python, of differentiable parts, and uses it on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from frcnn_fast._extras import require


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """[B, queries, heads * channels of a head]"""
    attention = require("mmcv.ops.multi_scale_deform_attn", "mmdet").multi_scale_deformable_attn_pytorch
    return attention(value, value_spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Into the three gradients. The forward pass runs again."""
    sources = [t.detach().requires_grad_() for t in (value, sampling_locations, attention_weights)]
    values, locations, weights = sources
    with torch.enable_grad():
        output = ms_deform_attn_forward(
            values, value_spatial_shapes, value_level_start_index, locations, weights, im2col_step
        )
    gradients = torch.autograd.grad(output, sources, grad_output.reshape(output.shape))
    for into, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), gradients):
        into.copy_(gradient)
