"""RoI ops as modules, with torchvision's constructors where it has them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from frcnn_fast.ops.prroi_pool import prroi_pool
from frcnn_fast.ops.roi_pool import roi_align, roi_pool
from frcnn_fast.ops.roi_pyramid import multiscale_roi_align


class RoIPool(nn.Module):
    """See `roi_pool`."""

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_pool(input, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


class RoIAlign(nn.Module):
    """See `roi_align`."""

    def __init__(
        self, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool = False
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


class PrRoIPool(nn.Module):
    """See `prroi_pool`."""

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, features: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return prroi_pool(features, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


class MultiScaleRoIAlign(nn.Module):
    """`multiscale_roi_align` of named feature maps, whose scales are worked out from the sizes at the first call.

    featmap_names: which maps to use, in the order in which they come, finest first. canonical_level is the level from
    which a box of canonical_scale x canonical_scale pixels is pooled.
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int | Sequence[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        self.featmap_names = list(featmap_names)
        height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
        self.output_size = (height, width)
        self.sampling_ratio = sampling_ratio
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level
        self.scales: list[float] | None = None

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """x: maps by name; boxes: [L, 4] for each image, in its pixels; image_shapes: (height, width) of each image.

        All maps must have the same batch and channels. Their scales are taken for powers of two, judged by the heights
        of the maps and of the tallest image, and kept for later calls.
        """
        features = [feature for name, feature in x.items() if name in self.featmap_names]
        if not features:
            raise ValueError(f"x: expected some of the maps {self.featmap_names}, got {list(x)}")
        if self.scales is None:
            if not image_shapes:
                raise ValueError("image_shapes: expected (height, width) of at least one image, got none")
            height = max(shape[0] for shape in image_shapes)
            self.scales = [2.0 ** round(math.log2(f.shape[-2] / height)) for f in features]
        return multiscale_roi_align(
            features, boxes, self.output_size, self.scales, self.sampling_ratio,
            canonical_scale=self.canonical_scale, canonical_level=self.canonical_level,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"featmap_names={self.featmap_names}, output_size={self.output_size}, sampling_ratio={self.sampling_ratio}"
        )
