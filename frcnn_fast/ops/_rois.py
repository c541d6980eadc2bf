"""What the RoI ops share: boxes as rows, memory layouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frcnn_fast.ops import _checks


def roi_tensor(
    boxes: Tensor | Sequence[Tensor], features: Tensor, name: str = "boxes", *, differentiable: bool = False
) -> Tensor:
    """The one door where a user's `boxes`, [R, 5] or a list of [L, 4] for each image, become `rois`: contiguous [R, 5]
    rows (image, x1, y1, x2, y2) in the compute dtype of `features`, checked; gradients flow back where differentiable.
    name: the argument's, for its errors."""
    if isinstance(boxes, Tensor):
        _checks.check_float(name, boxes, "[R, 5], rows of (image, x1, y1, x2, y2)", 2, 5)
        rois = boxes
    elif isinstance(boxes, (list, tuple)):
        rois = _rows(boxes, features, name)
    else:
        raise TypeError(f"{name}: expected a tensor [R, 5] or a list of tensors [L, 4], got {_checks.describe(boxes)}")
    _checks.check_same(name, rois, "the features", features, dtype=False)
    if rois.requires_grad and not differentiable:
        rois = rois.detach()
    if rois.dtype is not _checks.compute_dtype(features):
        rois = rois.to(_checks.compute_dtype(features))
    if not rois.is_contiguous():
        rois = rois.contiguous()
    if _checks.CHECK_DEVICE_DATA and rois.is_cuda and not torch.compiler.is_compiling():
        images = rois[:, 0]
        wrong = (images != images.trunc()) | (images < -1) | (images >= features.shape[0])
        if bool(wrong.any()):
            k = int(wrong.nonzero()[0])
            raise ValueError(
                f"{name}[{k}] names image {float(images[k]):g}, expected 0 to {features.shape[0] - 1}, or -1 (padding)"
            )
    return rois


def _rows(boxes: Sequence[Any], features: Tensor, name: str) -> Tensor:
    B = features.shape[0]
    if len(boxes) != B:
        raise ValueError(f"{name}: expected a list of {B} tensors, one an image, got {len(boxes)}")
    rows = []
    for image, b in enumerate(boxes):
        if not isinstance(b, Tensor) and hasattr(b, "__dlpack__"):
            b = torch.from_dlpack(b)
        _checks.check_float(f"{name}[{image}]", b, "[L, 4]", 2, 4)
        _checks.check_same(f"{name}[{image}]", b, "the features", features, dtype=False)
        # Before the index goes in: not every half can hold it.
        rows.append(torch.nn.functional.pad(b.to(_checks.compute_dtype(features)), (1, 0), value=image))
    if not rows:
        return features.new_empty((0, 5), dtype=_checks.compute_dtype(features))
    return rows[0] if B == 1 else torch.cat(rows)


def output_pair(output_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width), both at least 1."""
    if isinstance(output_size, (tuple, list)):
        if len(output_size) != 2:
            raise ValueError(f"output_size: expected one number or (height, width), got {output_size!r}")
        height, width = output_size
    else:
        height = width = output_size
    return _checks.check_positive("output_size", height), _checks.check_positive("output_size", width)


def is_channels_last(maps: Tensor) -> bool:
    """Which of the two layouts a dense tensor has; contiguous where it is both."""
    return not maps.is_contiguous()


def dense(maps: Tensor) -> Tensor:
    """The tensor itself if contiguous or channels_last, else a contiguous copy."""
    if maps.is_contiguous() or maps.is_contiguous(memory_format=torch.channels_last):
        return maps
    return maps.contiguous()


def pools_channels_last(memory_format: torch.memory_format | None, features: Tensor) -> bool:
    """Whether what is pooled from the (dense) features is to be channels_last; None: as they are."""
    if memory_format is None:
        return is_channels_last(features)
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(
            "memory_format: expected torch.contiguous_format, torch.channels_last or None (as the features), "
            f"got {memory_format!r}"
        )
    return memory_format == torch.channels_last


def empty_maps(shape: Sequence[int], dtype: torch.dtype, like: Tensor, channels_last: bool) -> Tensor:
    """Uninitialised [n, C, h, w] on the device of `like`."""
    if not channels_last:
        return like.new_empty(*shape, dtype=dtype)
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)
