"""Detectors of random weights that find something: scores are spread, and boxes differ from their anchors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def photograph(height: int, width: int, seed: int) -> Tensor:
    """uint8 [3, H, W]: smooth patches with edges and noise, so that no two places look alike."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(3, height, width)
    for cells in (3, 9, 31):
        coarse = torch.rand(1, 3, cells, cells, generator=generator)
        image += nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    for _ in range(30):
        y, x = (int(torch.randint(0, side - 20, (), generator=generator)) for side in (height, width))
        h, w = (int(torch.randint(10, side // 2, (), generator=generator)) for side in (height, width))
        image[:, y : y + h, x : x + w] += torch.randn(3, 1, 1, generator=generator) * 0.5
    image += 0.05 * torch.randn(3, height, width, generator=generator)
    low, high = image.amin(), image.amax()
    return ((image - low) / (high - low) * 255).round().to(torch.uint8)


def calibrated(part: nn.Module, inputs: Any) -> Any:
    """What `part` makes of `inputs`, once its batch normalisations, frozen or not, have taken these inputs' statistics,
    and scales and shifts that differ from channel to channel.

    Random weights would otherwise double the values at every block. Those that end a residual branch are small, as in
    trained networks: else every block would double the rounding errors.
    """
    last = {id(m[1]) for m in part.modules() if isinstance(m, nn.Sequential) and len(m) == 2}  # with no activation

    def take_statistics(norm: Any, given: tuple[Tensor]) -> None:
        norm.running_mean.copy_(given[0].mean((0, 2, 3)))
        norm.running_var.copy_(given[0].var((0, 2, 3)))

    hooks = []
    for name, norm in part.named_modules():
        if hasattr(norm, "running_mean"):
            small = name.endswith(("bn3", "conv3.norm")) or (".block." in name and id(norm) in last)
            nn.init.uniform_(norm.weight, *((0.1, 0.3) if small else (0.5, 1.0)))
            nn.init.uniform_(norm.bias, -0.2, 0.2)
            hooks.append(norm.register_forward_pre_hook(take_statistics))
    part.eval()
    with torch.no_grad():
        found = part(inputs)
    for hook in hooks:
        hook.remove()
    return found


def spread(layer: nn.Module, inputs: Tensor, std: float, mean: float = 0.0) -> None:
    """Weights and bias by which a linear layer or a 1 x 1 convolution gives values of this mean and deviation.

    They look along the directions in which the inputs differ most. Any others would have to be large, and would enlarge
    rounding errors with what little differs there.
    """
    with torch.no_grad():
        rows = inputs.transpose(0, 1).flatten(1).T
        _, size, directions = torch.pca_lowrank(rows, q=8)
        nn.init.zeros_(layer.bias)
        weight = torch.randn(layer.weight.shape[0], 8) @ (directions / size).T
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        layer.weight.mul_(std / (rows @ weight.T).std(0).mean())
        layer.bias.copy_(mean - layer(inputs).transpose(0, 1).flatten(1).mean(1))
