"""ResNet (He et al. 2016), as one map at stride 16 (C4) or as a feature pyramid (FPN).

Parameters have torchvision's names, so ImageNet weights load without renaming.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from frcnn_fast.model.backbones.fpn import FeaturePyramid
from frcnn_fast.model.layers import ConvNorm, conv_norm, norm_layer

# Blocks of layer1 ... layer4, and whether they are bottlenecks.
DEPTHS = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True), 101: ((3, 4, 23, 3), True)}


def _conv(channels: int, width: int, size: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(channels, width, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class _Block(nn.Module):
    """A residual block: convolutions with normalisation beside a shortcut."""

    def __init__(self, channels: int, out: int, stride: int, norm: str) -> None:
        super().__init__()
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = ConvNorm(_conv(channels, out, 1, stride), norm)

    def shortcut(self, x: Tensor) -> Tensor:
        return x if self.downsample is None else self.downsample(x)


class BasicBlock(_Block):
    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, norm: str, stride_in_1x1: bool) -> None:
        super().__init__(channels, width, stride, norm)
        self.conv1, self.bn1 = _conv(channels, width, 3, stride), norm_layer(norm, width)
        self.conv2, self.bn2 = _conv(width, width, 3), norm_layer(norm, width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        return F.relu(conv_norm(y, self.conv2, self.bn2) + self.shortcut(x), inplace=True)


class Bottleneck(_Block):
    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, norm: str, stride_in_1x1: bool) -> None:
        out = self.expansion * width
        super().__init__(channels, out, stride, norm)
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1, self.bn1 = _conv(channels, width, 1, first), norm_layer(norm, width)
        self.conv2, self.bn2 = _conv(width, width, 3, second), norm_layer(norm, width)
        self.conv3, self.bn3 = _conv(width, out, 1), norm_layer(norm, out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        y = F.relu(conv_norm(y, self.conv2, self.bn2), inplace=True)
        return F.relu(conv_norm(y, self.conv3, self.bn3) + self.shortcut(x), inplace=True)


def _layer(depth: int, number: int, norm: str, stride_in_1x1: bool) -> nn.Sequential:
    """layer1 ... layer4 of the network of this depth."""
    counts, bottlenecks = DEPTHS[depth]
    block: type[BasicBlock] | type[Bottleneck] = Bottleneck if bottlenecks else BasicBlock
    width = 64 * 2 ** (number - 1)
    channels = 64 if number == 1 else width // 2 * block.expansion
    blocks = [block(channels, width, 1 if number == 1 else 2, norm, stride_in_1x1)]
    blocks += [block(width * block.expansion, width, 1, norm, stride_in_1x1) for _ in range(1, counts[number - 1])]
    return nn.Sequential(*blocks)


class ResNet(nn.Module):
    """The convolutions of a ResNet up to `layers`; `forward` returns the map of each layer.

    Args:
        depth: 18, 34, 50 or 101.
        layers: how many of layer1 ... layer4 (strides 4, 8, 16, 32).
        norm: "frozen" or "batch".
        stride_in_1x1: Caffe's network: a layer's stride lies in its first 1 x 1 convolution, not in the 3 x 3 one.
    """

    def __init__(self, depth: int, layers: int, norm: str = "frozen", stride_in_1x1: bool = False) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth: got {depth}, expected one of {', '.join(map(str, DEPTHS))}")
        self.depth, self.layers, self.norm, self.stride_in_1x1 = depth, layers, norm, stride_in_1x1
        self.conv1, self.bn1 = _conv(3, 64, 7, 2), norm_layer(norm, 64)
        for number in range(1, layers + 1):
            self.add_module(f"layer{number}", _layer(depth, number, norm, stride_in_1x1))

    @property
    def channels(self) -> list[int]:
        """Of the maps."""
        return [(256 if DEPTHS[self.depth][1] else 64) * 2**number for number in range(self.layers)]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = F.relu(conv_norm(images, self.conv1, self.bn1), inplace=True)
        x, maps = F.max_pool2d(x, 3, 2, padding=1), []
        for number in range(1, self.layers + 1):
            x = self.get_submodule(f"layer{number}")(x)
            maps.append(x)
        return tuple(maps)

    def freeze(self, stages: int) -> None:
        """Stage 1: conv1; stage n: layer n - 1."""
        if not 0 < stages <= self.layers + 1:
            raise ValueError(f"freeze: got {stages} stages, but {type(self).__name__} has {self.layers + 1}")
        self.conv1.requires_grad_(False)
        self.bn1.requires_grad_(False)
        for number in range(1, stages):
            self.get_submodule(f"layer{number}").requires_grad_(False)


class ResNetC4(ResNet):
    """conv1 ... layer3: one map at stride 16. The head continues with layer4 on every region's cells."""

    strides = (16,)
    frozen_stages = 2  # conv1 and layer1
    options = ("norm", "stride_in_1x1")

    def __init__(self, depth: int = 50, norm: str = "frozen", stride_in_1x1: bool = False) -> None:
        super().__init__(depth, 3, norm, stride_in_1x1)
        self.out_channels = self.channels[-1]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return super().forward(images)[-1:]

    def head(self, pool_size: int, width: int, dropout: float) -> nn.Module | None:
        return ResNetHead(self.depth, self.norm, self.stride_in_1x1)


class ResNetHead(nn.Module):
    """layer4 of a ResNet on pooled regions, averaged over their cells."""

    def __init__(self, depth: int, norm: str = "frozen", stride_in_1x1: bool = False) -> None:
        super().__init__()
        self.layer4 = _layer(depth, 4, norm, stride_in_1x1)
        self.out_features = 2048 if DEPTHS[depth][1] else 512

    def forward(self, x: Tensor) -> Tensor:
        return self.layer4(x).mean((2, 3))


class ResNetFPN(nn.Module):
    """A feature pyramid of 256 channels on layer1 ... layer4: strides 4, 8, 16, 32, and 64 for the RPN alone."""

    out_channels = 256
    strides = (4, 8, 16, 32, 64)
    roi_levels = (0, 1, 2, 3)
    frozen_stages = 2
    options = ("norm", "stride_in_1x1")

    def __init__(self, depth: int = 50, norm: str = "frozen", stride_in_1x1: bool = False) -> None:
        super().__init__()
        self.depth, self.norm, self.stride_in_1x1 = depth, norm, stride_in_1x1
        self.body = ResNet(depth, 4, norm, stride_in_1x1)
        self.fpn = FeaturePyramid(self.body.channels, self.out_channels, norm)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.fpn(self.body(images))

    def freeze(self, stages: int) -> None:
        self.body.freeze(stages)

    def pretrained_names(self) -> dict[str, str]:
        return body_names(self.body)


def body_names(body: nn.Module) -> dict[str, str]:
    """`pretrained_names` of a backbone whose published part is its `body`."""
    return {f"body.{name}": name for name in body.state_dict() if not name.endswith("num_batches_tracked")}
