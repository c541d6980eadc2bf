"""RoI ops as modules, with torchvision's constructors where it has them.

torch.jit.script reads these modules, and nothing of the functions that they call: it gets the registered ops with what
those need, and they check the arguments. torch.fx takes the functions as they are, as single calls.
"""

import math
from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn

from frcnn_fast.ops.prroi_pool import prroi_pool
from frcnn_fast.ops.roi_pool import roi_align, roi_pool
from frcnn_fast.ops.roi_pyramid import multiscale_roi_align

for _leaf in ("roi_pool", "roi_align", "prroi_pool", "multiscale_roi_align", "_chosen_maps", "_pyramid_scales"):
    torch.fx.wrap(_leaf)


def _scripted_rois(rois: Tensor | list[Tensor], features: Tensor) -> Tensor:
    """`roi_tensor`."""
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    if isinstance(rois, Tensor):
        rows = rois
    else:
        parts = [features.new_empty(0, 5, dtype=dtype)]
        for image, boxes in enumerate(rois):
            parts.append(nn.functional.pad(boxes.to(dtype), [1, 0], value=float(image)))
        rows = torch.cat(parts)
    return rows.to(dtype).contiguous()


def _scripted_dense(maps: Tensor) -> Tensor:
    """`dense`."""
    return maps if maps.is_contiguous(memory_format=torch.channels_last) else maps.contiguous()


def _scripted_layout(channels_last: bool | None, maps: Tensor) -> bool:
    """`pools_channels_last`."""
    return not maps.is_contiguous() if channels_last is None else channels_last


def _as_asked(memory_format: torch.memory_format | None) -> bool | None:
    """Whether the output is to be channels_last; None: as the features are. (torch.jit has no memory formats.)"""
    return None if memory_format is None else memory_format == torch.channels_last


def _said(memory_format: torch.memory_format | None) -> str:
    return "" if memory_format is None else f", memory_format={memory_format}"


def _scripted_pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """`output_pair`."""
    if isinstance(size, int):
        return size, size
    elif isinstance(size, list):
        return size[0], size[1]
    else:
        return size


class RoIPool(nn.Module):
    """See `roi_pool`."""

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        if torch.jit.is_scripting():
            rows, (height, width) = _scripted_rois(rois, input), _scripted_pair(self.output_size)
            with_argmax = torch.is_grad_enabled() and input.requires_grad
            return torch.ops.frcnn_fast.roi_pool(
                _scripted_dense(input), rows, height, width, float(self.spatial_scale), True, with_argmax, None
            )[0]
        else:
            return roi_pool(input, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


class RoIAlign(nn.Module):
    """See `roi_align`."""

    channels_last: Optional[bool]  # noqa: UP045

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = False,
        *,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.memory_format = memory_format
        self.channels_last = _as_asked(memory_format)

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        if torch.jit.is_scripting():
            rows, (height, width) = _scripted_rois(rois, input).detach(), _scripted_pair(self.output_size)
            scalars = float(self.spatial_scale), self.sampling_ratio, self.aligned
            dense = _scripted_dense(input)
            return torch.ops.frcnn_fast.roi_align(
                dense, rows, height, width, scalars[0], scalars[1], scalars[2],
                _scripted_layout(self.channels_last, dense), None,
            )  # fmt: skip
        else:
            return roi_align(
                input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned,
                memory_format=self.memory_format,
            )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}{_said(self.memory_format)}"
        )


class PrRoIPool(nn.Module):
    """See `prroi_pool`."""

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, features: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        if torch.jit.is_scripting():
            rows, (height, width) = _scripted_rois(rois, features), _scripted_pair(self.output_size)
            return torch.ops.frcnn_fast.prroi_pool(
                _scripted_dense(features), rows, height, width, float(self.spatial_scale), None
            )
        else:
            return prroi_pool(features, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


def _chosen_maps(x: dict[str, Tensor], names: list[str]) -> list[Tensor]:
    features = []
    for name, feature in x.items():
        if name in names:
            features.append(feature)
    if len(features) == 0:
        raise ValueError(f"x: expected some of the maps {names}, got {list(x.keys())}")
    return features


def _pyramid_scales(features: list[Tensor], image_shapes: list[tuple[int, int]]) -> list[float]:
    """Cells a pixel, the nearest powers of two."""
    if not image_shapes:
        raise ValueError("image_shapes: expected (height, width) of at least one image, got none")
    height = max([shape[0] for shape in image_shapes])
    # torch.jit has no log2.
    return [2.0 ** round(math.log(feature.shape[-2] / height) / math.log(2.0)) for feature in features]


class MultiScaleRoIAlign(nn.Module):
    """`multiscale_roi_align` of named feature maps, whose scales are worked out from the sizes at the first call.

    featmap_names: which maps to use, in the order in which they come, finest first. canonical_level is the level from
    which a box of canonical_scale x canonical_scale pixels is pooled.
    """

    # What torch.jit reads: no string, so that this module postpones no annotations, and no new style of union.
    scales: Optional[list[float]]  # noqa: UP045
    channels_last: Optional[bool]  # noqa: UP045

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int | Sequence[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        super().__init__()
        self.featmap_names = list(featmap_names)
        height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
        self.output_size = (height, width)
        self.sampling_ratio = sampling_ratio
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level
        self.memory_format = memory_format
        self.channels_last = _as_asked(memory_format)
        self.scales = None

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """x: maps by name; boxes: [L, 4] for each image, in its pixels; image_shapes: (height, width) of each image.

        All maps must have the same batch and channels. Their scales are taken for powers of two, judged by the heights
        of the maps and of the tallest image, and kept for later calls.
        """
        features, scales = _chosen_maps(x, self.featmap_names), self.scales
        if scales is None:
            scales = _pyramid_scales(features, image_shapes)
            if torch.jit.is_scripting() or isinstance(scales, list):
                self.scales = scales
        if torch.jit.is_scripting():
            dense = [_scripted_dense(feature) for feature in features]
            return torch.ops.frcnn_fast.multiscale_roi_align(
                dense, _scripted_rois(boxes, dense[0]), self.output_size[0], self.output_size[1], scales,
                self.sampling_ratio, False, float(self.canonical_scale), self.canonical_level,
                _scripted_layout(self.channels_last, dense[0]), None,
            )  # fmt: skip
        else:
            return multiscale_roi_align(
                features, boxes, self.output_size, scales, self.sampling_ratio,
                canonical_scale=self.canonical_scale, canonical_level=self.canonical_level,
                memory_format=self.memory_format,
            )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"featmap_names={self.featmap_names}, output_size={self.output_size}, "
            f"sampling_ratio={self.sampling_ratio}{_said(self.memory_format)}"
        )
