"""What the detector asks of a backbone, and what it makes of the answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn


class Backbone(Protocol):
    """Any module with these two attributes is a backbone:

        out_channels  channels of every map
        strides       pixels per cell, one number for each map that `forward` returns; the RPN reads all maps

    `forward` takes images [B, 3, H, W] and returns the maps [B, out_channels, h, w], finest first: a tuple, a list, a
    dict in that order (torchvision's), or the tensor itself where there is only one. A map has H / stride rows, rounded
    down or up.

    What else a backbone may have:

        roi_levels          indices of the maps that RoI pooling reads; default: all. (0, 1, 2, 3) of five maps leaves
                            the coarsest one to the RPN.
        freeze(stages)      stops the training of its first so many stages (`TrainOptions.freeze`)
        frozen_stages       how many are frozen by default where published weights were loaded; default: 0
        head(pool_size, width, dropout)
                            the layers of the head that its published weights continue with (`DetectorConfig.head`), a
                            module as `FasterRCNN` takes it; None where these settings do not fit them
        pretrained_names()  {its own tensor: the tensor of a file of published weights that fills it}; default: every
                            tensor under its own name
    """

    out_channels: int
    strides: Sequence[int]

    def __call__(self, images: Tensor, /) -> Any: ...


@dataclasses.dataclass(frozen=True)
class BackboneShape:
    """What a backbone says of its maps."""

    channels: int
    rpn_strides: tuple[int, ...]  # of all maps
    roi_levels: tuple[int, ...]  # indices into them, ascending

    @property
    def roi_strides(self) -> tuple[int, ...]:
        return tuple(self.rpn_strides[level] for level in self.roi_levels)


def backbone_shape(backbone: Backbone | nn.Module) -> BackboneShape:
    """The shape of the maps of `backbone`; TypeError or ValueError where it does not say it, or not rightly."""
    name = type(backbone).__name__
    channels: Any = getattr(backbone, "out_channels", None)
    strides: Any = getattr(backbone, "strides", None)
    if not _is_count(channels) or not _is_list_of(strides, 1):
        raise TypeError(
            f"backbone: {name} has out_channels {channels!r} and strides {strides!r}, expected an int and a tuple of "
            "ints, one for each feature map that it returns"
        )
    levels: Any = getattr(backbone, "roi_levels", None)
    if levels is None:
        levels = range(len(strides))
    elif not _is_list_of(levels, 0):
        raise TypeError(f"backbone: {name} has roi_levels {levels!r}, expected a tuple of ints")
    if sorted(set(levels)) != list(levels) or levels[-1] >= len(strides):
        raise ValueError(
            f"backbone: {name} has roi_levels {levels!r}, expected ascending indices below {len(strides)}, the number "
            "of its strides"
        )
    return BackboneShape(channels, tuple(strides), tuple(levels))


def feature_maps(backbone: nn.Module, images: Tensor, shape: BackboneShape) -> tuple[Tensor, ...]:
    """The maps of `images`, as `shape` describes them: a wrong stride would silently shift every anchor.

    Raises:
        TypeError: the backbone returned something else than maps.
        ValueError: they are of another number, another depth or another stride than it says.
    """
    name, found = type(backbone).__name__, backbone(images)
    maps = list(found.values()) if isinstance(found, Mapping) else found
    if not isinstance(maps, list | tuple):
        maps = [maps]
    for feature in maps:
        if not isinstance(feature, Tensor) or feature.dim() != 4:
            kind = f"shape {tuple(feature.shape)}" if isinstance(feature, Tensor) else type(feature).__name__
            raise TypeError(f"backbone: {name} returned {kind}, expected a map [B, C, h, w] for each of its strides")
    if len(maps) != len(shape.rpn_strides):
        raise ValueError(
            f"backbone: {name} returned {len(maps)} maps, expected {len(shape.rpn_strides)}, one for each of its "
            f"strides {shape.rpn_strides}"
        )
    for level, (feature, stride) in enumerate(zip(maps, shape.rpn_strides, strict=True)):
        if feature.shape[1] != shape.channels:
            raise ValueError(
                f"backbone: map {level} of {name} has {feature.shape[1]} channels, expected its out_channels, "
                f"{shape.channels}"
            )
        for side, cells in zip(images.shape[2:], feature.shape[2:], strict=True):
            if not side // stride <= cells <= -(-side // stride):
                raise ValueError(
                    f"backbone: map {level} of {name} is {tuple(feature.shape[2:])} for images of "
                    f"{tuple(images.shape[2:])} pixels, not at its stride of {stride}: expected {side // stride} cells "
                    f"or one more along {side} pixels, got {cells}. Correct `strides`, or pad convolutions and "
                    "poolings by half their size"
                )
    return tuple(maps)


def freeze_stages(backbone: nn.Module, stages: int) -> None:
    """Stop training the first `stages` stages of a backbone; ValueError where it has no `freeze` or fewer stages."""
    if stages == 0:
        return
    freeze = getattr(backbone, "freeze", None)
    if freeze is None:
        raise ValueError(f"freeze: got {stages} stages, but {type(backbone).__name__} has no method freeze(stages)")
    freeze(stages)


def pretrained_names(backbone: nn.Module) -> dict[str, str]:
    """{tensor of the backbone: its name in a file of published weights}, for those that such a file must fill."""
    names = getattr(backbone, "pretrained_names", None)
    if names is not None:
        return dict(names())
    # A normalisation's batch counter says nothing about the weights, and old files lack it.
    return {name: name for name in backbone.state_dict() if not name.endswith("num_batches_tracked")}


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_list_of(values: Any, least: int) -> bool:
    return isinstance(values, list | tuple) and len(values) > 0 and all(_is_count(value, least) for value in values)
