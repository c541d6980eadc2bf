"""What VGG-16 and SqueezeNet share: one list of layers."""

from __future__ import annotations

from torch import Tensor, nn


class Features(nn.Module):
    """One map of 512 channels at stride 16, from one list of layers under torchvision's name for it."""

    out_channels = 512
    strides = (16,)
    frozen_stages = 0
    stage_ends: tuple[int, ...]  # a stage: the layers between two poolings
    features: nn.Sequential

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.features(images),)

    def freeze(self, stages: int) -> None:
        if not 0 < stages <= len(self.stage_ends):
            raise ValueError(f"freeze: got {stages} stages, but {type(self).__name__} has {len(self.stage_ends)}")
        for parameter in self.features[: self.stage_ends[stages - 1]].parameters():
            parameter.requires_grad_(False)
