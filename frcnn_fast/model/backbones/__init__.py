"""The backbones that come with the library (`frcnn_fast.model.protocol` says what a backbone is).

The published ones keep the parameter names of the files that their ImageNet weights come in (torchvision's; ZF's are
Caffe's), so these load without renaming.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from frcnn_fast.model.backbones.mobilenet import MobileNetV3, MobileNetV3FPN
from frcnn_fast.model.backbones.resnet import DEPTHS, ResNetC4, ResNetFPN
from frcnn_fast.model.backbones.small import SmallBackbone
from frcnn_fast.model.backbones.squeezenet import SqueezeNet
from frcnn_fast.model.backbones.timm import PREFIX, TimmFPN
from frcnn_fast.model.backbones.vgg import VGG16, VGG16Head
from frcnn_fast.model.backbones.zf import ZF

__all__ = [
    "BACKBONES",
    "DEPTHS",
    "VGG16",
    "ZF",
    "MobileNetV3",
    "MobileNetV3FPN",
    "ResNetC4",
    "ResNetFPN",
    "SmallBackbone",
    "SqueezeNet",
    "TimmFPN",
    "VGG16Head",
    "backbone_name",
    "backbone_options",
    "build_backbone",
    "is_known",
]

# Name: class, and the arguments that make it the one of that name.
BACKBONES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "vgg16": (VGG16, {}),
    "zf": (ZF, {}),
    "squeezenet1_0": (SqueezeNet, {}),
    **{f"resnet{depth}_c4": (ResNetC4, {"depth": depth}) for depth in DEPTHS},
    **{f"resnet{depth}_fpn": (ResNetFPN, {"depth": depth}) for depth in DEPTHS},
    "mobilenet_v3_large": (MobileNetV3, {}),
    "mobilenet_v3_large_fpn": (MobileNetV3FPN, {}),
    "small": (SmallBackbone, {}),
}


def is_known(name: str) -> bool:
    """Whether `build_backbone` can make it from its name."""
    return name in BACKBONES or name.startswith(PREFIX)


def build_backbone(name: str, **options: Any) -> nn.Module:
    """The backbone called `name`, or `timm:` and a timm model, randomly initialised.

    Args:
        options: `norm` and `stride_in_1x1`, as in `DetectorConfig`; a backbone without that choice passes over them.

    Raises:
        ValueError: there is none of this name; names the known ones.
    """
    kind: type[nn.Module]
    if name.startswith(PREFIX):
        kind, fixed = TimmFPN, {"name": name.removeprefix(PREFIX)}
    elif name in BACKBONES:
        kind, fixed = BACKBONES[name]
    else:
        raise ValueError(f"backbone: got {name!r}, expected one of {', '.join(sorted(BACKBONES))}, or {PREFIX}MODEL")
    return kind(**fixed, **{key: options[key] for key in getattr(kind, "options", ()) if key in options})


def backbone_name(backbone: nn.Module) -> str:
    """The name by which `build_backbone` makes such a one; the class' name for a module of one's own."""
    if type(backbone) is TimmFPN:
        return PREFIX + backbone.model
    for name, (kind, fixed) in BACKBONES.items():
        if type(backbone) is kind and all(getattr(backbone, key) == value for key, value in fixed.items()):
            return name
    return type(backbone).__name__


def backbone_options(backbone: nn.Module) -> dict[str, Any]:
    """What `build_backbone` needs besides the name, to make such a one."""
    return {key: getattr(backbone, key) for key in getattr(type(backbone), "options", ())}
