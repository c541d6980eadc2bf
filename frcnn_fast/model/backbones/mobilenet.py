"""MobileNetV3-large (Howard et al. 2019), as one map at stride 16 or as a feature pyramid. Torchvision's names."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from frcnn_fast.model.backbones.fpn import FeaturePyramid
from frcnn_fast.model.layers import ConvNorm

# Kernel, expanded channels, output channels, squeeze-and-excitation, hard swish (else ReLU), stride.
_BLOCKS = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
# Where the stages begin: the stem, the blocks with a stride, and the last convolution.
_STAGES = (0, 2, 4, 7, 13, 16)


def _conv(
    channels: int, width: int, size: int, norm: str, act: nn.Module | None, stride: int = 1, groups: int = 1
) -> ConvNorm:
    conv = nn.Conv2d(channels, width, size, stride=stride, padding=size // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return ConvNorm(conv, norm, act)


class _SqueezeExcitation(nn.Module):
    """Every channel times a factor from 0 to 1 that depends on the means of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, (channels // 4 + 4) // 8 * 8)
        if squeezed < 0.9 * (channels // 4):
            squeezed += 8
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        factor = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)), inplace=True))
        return x * F.hardsigmoid(factor)


class _InvertedResidual(nn.Module):
    def __init__(
        self, channels: int, size: int, expanded: int, out: int, excite: bool, swish: bool, stride: int, norm: str
    ) -> None:
        super().__init__()
        act: type[nn.Module] = nn.Hardswish if swish else nn.ReLU
        self.residual = stride == 1 and channels == out
        layers: list[nn.Module] = []
        if expanded != channels:
            layers.append(_conv(channels, expanded, 1, norm, act(inplace=True)))
        layers.append(_conv(expanded, expanded, size, norm, act(inplace=True), stride, groups=expanded))
        if excite:
            layers.append(_SqueezeExcitation(expanded))
        layers.append(_conv(expanded, out, 1, norm, None))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)


def _features(norm: str, count: int) -> nn.Sequential:
    """The first `count` of the network's 17 parts."""
    parts: list[nn.Module] = [_conv(3, 16, 3, norm, nn.Hardswish(inplace=True), stride=2)]
    channels = 16
    for size, expanded, out, excite, swish, stride in _BLOCKS:
        parts.append(_InvertedResidual(channels, size, expanded, out, excite, swish, stride, norm))
        channels = out
    parts.append(_conv(channels, 6 * channels, 1, norm, nn.Hardswish(inplace=True)))
    return nn.Sequential(*parts[:count])


def _freeze(features: nn.Sequential, stages: int) -> None:
    ends = sorted({min(end, len(features)) for end in (*_STAGES[1:], len(features))})
    if not 0 < stages <= len(ends):
        raise ValueError(f"freeze: got {stages} stages, but this MobileNetV3 has {len(ends)}")
    features[: ends[stages - 1]].requires_grad_(False)


class MobileNetV3(nn.Module):
    """MobileNetV3-large up to stride 16: one map of 112 channels."""

    out_channels = 112
    strides = (16,)
    frozen_stages = 3
    options = ("norm",)

    def __init__(self, norm: str = "frozen") -> None:
        super().__init__()
        self.norm = norm
        self.features = _features(norm, 13)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.features(images),)

    def freeze(self, stages: int) -> None:
        _freeze(self.features, stages)


class MobileNetV3FPN(nn.Module):
    """A pyramid of 256 channels on MobileNetV3-large's last two stages, as torchvision's detector has it: two maps at
    stride 32, of which RoI pooling reads the first, and one at 64 for the RPN alone."""

    out_channels = 256
    strides = (32, 32, 64)
    roi_levels = (0,)
    frozen_stages = 3
    options = ("norm",)

    def __init__(self, norm: str = "frozen") -> None:
        super().__init__()
        self.norm = norm
        self.body = _features(norm, 17)
        self.fpn = FeaturePyramid((160, 960), self.out_channels, norm)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x, maps = images, []
        for number, part in enumerate(self.body):
            x = part(x)
            if number in (13, 16):
                maps.append(x)
        return self.fpn(maps)

    def freeze(self, stages: int) -> None:
        _freeze(self.body, stages)

    def pretrained_names(self) -> dict[str, str]:
        names = (name for name in self.body.state_dict() if not name.endswith("num_batches_tracked"))
        return {f"body.{name}": f"features.{name}" for name in names}
