"""Layers that backbones and heads are made of: normalisation that can be frozen, and the paper's initialisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def gaussian_(layer: nn.Linear | nn.Conv2d, std: float) -> None:
    """The paper's start of a new layer: Gaussian weights, no bias (Ren et al. §3.1.3)."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation by statistics that never change: a scale and a shift of every channel.

    It has the tensors of `nn.BatchNorm2d` but the batch counter, all of them buffers, so that published weights load.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = scale_and_shift(self)
        return x * scale[:, None, None] + shift[:, None, None]


Norm = FrozenBatchNorm2d | nn.BatchNorm2d


def norm_layer(kind: str, channels: int) -> Norm:
    """`kind`: "frozen", or "batch", whose statistics follow the training batches."""
    return FrozenBatchNorm2d(channels) if kind == "frozen" else nn.BatchNorm2d(channels)


def scale_and_shift(norm: Norm) -> tuple[Tensor, Tensor]:
    """The two numbers a channel, both [C], that a batch normalisation by its running statistics comes to."""
    assert norm.running_mean is not None  # "batch" tracks its statistics
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


class ConvNorm(nn.Sequential):
    """A convolution without bias, its normalisation, and perhaps an activation: 0, 1 and 2."""

    def __init__(self, conv: nn.Conv2d, norm: str, act: nn.Module | None = None) -> None:
        super().__init__(conv, norm_layer(norm, conv.out_channels), *([] if act is None else [act]))

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, *act = self
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, Norm)
        x = conv_norm(x, conv, norm)
        return act[0](x) if act else x


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: Norm) -> Tensor:
    """norm(conv(x)) for a convolution without bias.

    Where the statistics stand still, the scale is folded into the weights and the shift becomes the bias: that saves
    two passes over the map, and the map that a backward pass would need.
    """
    if norm.training and isinstance(norm, nn.BatchNorm2d):
        return norm(conv(x))
    scale, shift = scale_and_shift(norm)
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)
