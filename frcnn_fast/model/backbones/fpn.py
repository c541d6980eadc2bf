"""Feature pyramid (Lin et al. 2017) over the maps of a bottom-up network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from frcnn_fast.model.layers import ConvNorm


def _conv(channels: int, width: int, size: int, norm: str) -> nn.Sequential:
    """With a bias, or with batch normalisation where the backbone has it."""
    conv = nn.Conv2d(channels, width, size, padding=size // 2, bias=norm != "batch")
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is None:
        return ConvNorm(conv, norm)
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv)


class FeaturePyramid(nn.Module):
    """From maps [B, channels[i], h, w], finest first, to as many of `width` channels, and a last one for the RPN alone:
    every second cell of the coarsest. Parameters have torchvision's names.

    Every map is added to the one above it, enlarged to its size by repeating cells, and passes a 3 x 3 convolution.
    """

    def __init__(self, channels: Sequence[int], width: int = 256, norm: str = "frozen") -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList([_conv(c, width, 1, norm) for c in channels])
        self.layer_blocks = nn.ModuleList([_conv(width, width, 3, norm) for _ in channels])

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        above: Tensor | None = None
        for x, inner, layer in zip(
            reversed(maps), reversed(self.inner_blocks), reversed(self.layer_blocks), strict=True
        ):
            x = inner(x)
            if above is not None:
                x = x + F.interpolate(above, size=x.shape[-2:], mode="nearest")
            found.insert(0, layer(x))
            above = x
        return (*found, F.max_pool2d(found[-1], 1, 2))
