"""Any network of the timm library, under a feature pyramid."""

from __future__ import annotations

import re

from torch import Tensor, nn

from frcnn_fast._extras import require
from frcnn_fast.model.backbones.fpn import FeaturePyramid

PREFIX = "timm:"


class TimmFPN(nn.Module):
    """A pyramid of 256 channels on the maps of a timm model at strides 4 to 32, as many as it has of them, and one at
    twice the coarsest stride for the RPN alone.

    The model is randomly initialised; its published file of weights goes to `load_pretrained`.

    Args:
        name: timm's name, such as "resnet18" or "convnext_tiny"; a model that can be made with `features_only`.
        norm: "frozen" turns its batch normalisations into fixed scales and shifts; "batch" leaves them.

    Raises:
        ImportError: timm is not installed (the extra `timm`).
        ValueError: there is no such model, or it has no maps at such strides.
    """

    out_channels = 256
    options = ("norm",)

    def __init__(self, name: str, norm: str = "frozen") -> None:
        super().__init__()
        timm = require("timm", "timm")
        self.model, self.norm = name, norm
        try:
            info = timm.create_model(name, features_only=True).feature_info
        except (RuntimeError, AttributeError, AssertionError, TypeError) as error:
            raise ValueError(f"backbone: {PREFIX}{name} cannot be made with features_only ({error})") from error
        # The last map of every stride: networks without a pyramid of their own have several of one.
        place = {stride: i for i, stride in enumerate(info.reduction()) if 4 <= stride <= 32}
        if not place:
            raise ValueError(
                f"backbone: {PREFIX}{name} has maps at strides {info.reduction()}, expected some of 4 to 32"
            )
        self.body = timm.create_model(name, features_only=True, out_indices=tuple(place.values()))
        if norm == "frozen":
            self.body = require("timm.layers", "timm").freeze_batch_norm_2d(self.body)
        self.fpn = FeaturePyramid(self.body.feature_info.channels(), self.out_channels, norm)
        self.strides = (*place, 2 * max(place))
        self.roi_levels = tuple(range(len(place)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.fpn(self.body(images))

    def pretrained_names(self) -> dict[str, str]:
        # With features_only, "stages.0.blocks" is called "stages_0.blocks".
        return {
            f"body.{name}": re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", name)
            for name in self.body.state_dict()
            if not name.endswith("num_batches_tracked")
        }
