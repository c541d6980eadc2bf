"""Resizing, mirroring and scaling of images, with their boxes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from frcnn_fast.data.datasets import class_names_of
from frcnn_fast.data.targets import Target, TargetError, as_numbers, checked_sample, cut_warning, image_name

Sample = tuple[Tensor, Target]


class DetectionDataset(Protocol):
    """What the rest of the library asks of a data set (see `frcnn_fast.data`)."""

    class_names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


RESIZE_RULES = ("antialias", "torchvision")


def resized_shape(
    height: int, width: int, shorter: int | None, longer: int | None, rule: str = "antialias"
) -> tuple[int, int, float]:
    """The (height, width, scale) that `resize` gives an image of height × width pixels."""
    scale = 1.0
    if shorter is not None:
        scale = shorter / min(height, width)
    if longer is not None and scale * max(height, width) > longer:
        scale = longer / max(height, width)
    to_pixels = math.floor if rule == "torchvision" else round
    return max(1, to_pixels(height * scale)), max(1, to_pixels(width * scale)), scale


def resize(
    image: Tensor, shorter: int | None, longer: int | None = None, rule: str = "antialias"
) -> tuple[Tensor, float]:
    """Scale an image so that its shorter side is `shorter`, but its longer side at most `longer` pixels.

    Bilinear with antialiasing, in uint8 (within 1 of Pillow's result and several times as fast on
    channels-last memory, which the result has too). The sides are rounded to whole pixels.

    Args:
        image: uint8 [3, H, W].
        shorter: wanted length of the shorter side; None leaves it.
        longer: upper bound of the longer side; None sets no bound.
        rule: "torchvision" resizes as its detectors do: bilinear between the nearest pixels, with no rounding of their
            values (the result is float32, 0..255) and the sides rounded down.

    Returns:
        (uint8 [3, H', W'], scale): the image and the factor before rounding, for sizes given in pixels of
        the original image. Boxes are to be multiplied by W'/W and H'/H, which `DetectionView` does.
    """
    height, width = image.shape[-2:]
    new_height, new_width, scale = resized_shape(height, width, shorter, longer, rule)
    if rule == "torchvision":
        shape = (new_height, new_width)
        return torch.nn.functional.interpolate(image[None].float(), shape, mode="bilinear")[0], scale
    if (new_height, new_width) == (height, width):
        return image, scale
    pixels = image[None].contiguous(memory_format=torch.channels_last)
    resized = torch.nn.functional.interpolate(
        pixels, (new_height, new_width), mode="bilinear", antialias=True, align_corners=False
    )
    return resized[0], scale


def scale_boxes(boxes: Any, from_shape: Sequence[int], to_shape: Sequence[int]) -> Tensor:
    """Carry boxes [..., 4] from an image of from_shape (h, w) over to the same image at to_shape (h,
    w). Whole numbers become float32; arrays and lists become tensors."""
    if min(*from_shape, *to_shape) < 1:
        raise ValueError(f"sizes: got {tuple(from_shape)} and {tuple(to_shape)}, expected (h, w) of at least one pixel")
    if not isinstance(boxes, Tensor):
        boxes = as_numbers(boxes)
    if not boxes.is_floating_point():
        boxes = boxes.float()  # whole numbers would swallow the factor
    factor_y, factor_x = to_shape[0] / from_shape[0], to_shape[1] / from_shape[1]
    return boxes * boxes.new_tensor([factor_x, factor_y, factor_x, factor_y])


def boxes_to_original(boxes: Any, image_size: Sequence[int], original_size: Sequence[int]) -> Tensor:
    """Boxes [..., 4] found in a resized image of image_size (h, w), in pixels of the original_size (h, w)
    one."""
    return scale_boxes(boxes, image_size, original_size)


def horizontal_flip(image: Tensor, target: Target) -> Sample:
    """Mirror an image and its boxes left to right: x1, x2 become W - x2, W - x1 (half-open boxes)."""
    width = image.shape[-1]
    boxes = target["boxes"]
    if not boxes.is_floating_point():
        boxes = boxes.float()  # uint8 boxes would wrap around
    mirrored = {**target, "boxes": _mirrored(boxes, width)}
    if "proposals" in target:
        mirrored["proposals"] = _mirrored(target["proposals"], width)
    return image.flip(-1), mirrored


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)


class DetectionView:
    """A data set seen resized and, if wanted, doubled by mirror images.

    With `flips` the view is twice as long: item i + len(dataset) is the mirror image of item i, as in the
    paper's training (Ren et al. §3.3), and no random state is needed. The target gains `original_size`
    (height, width) and `scale` (the factor of `resize`).

    Every item is held to the rules of `checked_target`: a ValueError names the image, the key and its value. Boxes
    that stick out over their image's edge are cut; the first one is warned about.

    Args:
        dataset: the data set.
        shorter, longer: see `resize`; both None leave the images as they are.
        flips: append the mirror images.
        rule: as for `resize`.
        proposals: of all images, by image_id, [N, 4] in pixels of the image as the data set gives it; the target then
            has `proposals` at the view's size. ValueError where an image has none.
        warn: False cuts without a word, where `check_dataset` has counted the boxes already.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        shorter: int | None = None,
        longer: int | None = None,
        flips: bool = False,
        warn: bool = True,
        rule: str = "antialias",
        proposals: Mapping[str, Tensor] | None = None,
    ) -> None:
        for name, side in (("shorter", shorter), ("longer", longer)):
            if side is not None and side < 1:
                raise ValueError(f"{name} must be a positive number of pixels or None, got {side}")
        self.dataset = dataset
        self.class_names = class_names_of(dataset)
        self.shorter, self.longer, self.flips, self.rule = shorter, longer, flips, rule
        self._warn = warn
        self.proposals = proposals

    def __len__(self) -> int:
        return len(self.dataset) * (2 if self.flips else 1)

    def __getitem__(self, index: int) -> Sample:
        return self.at(index, self.shorter)

    def at(self, index: int, shorter: int | None) -> Sample:
        """Item `index` with another length of the shorter side than the view's."""
        length = len(self)
        if not -length <= index < length:
            raise IndexError(f"index {index} is outside a data set of {length} items")
        index %= length
        place, cut = index % len(self.dataset), list[str]()
        image, target = checked_sample(self.dataset[place], len(self.class_names), name=place, cut=cut)
        if self._warn and cut:
            cut_warning(cut)
            self._warn = False
        image, target = self._resized(image, target, shorter)
        return horizontal_flip(image, target) if index >= len(self.dataset) else (image, target)

    def resized(self, image: Tensor, target: Target) -> Sample:
        """A checked item at the view's size."""
        return self._resized(image, target, self.shorter)

    def _resized(self, image: Tensor, target: Target, shorter: int | None) -> Sample:
        original = (int(image.shape[-2]), int(image.shape[-1]))
        image, scale = resize(image, shorter, self.longer, self.rule)
        low, high = scale_boxes(target["boxes"], original, image.shape[-2:]).split(2, dim=-1)
        # A side of a last digit may vanish in the rounding.
        high = torch.maximum(high, torch.nextafter(low, low.new_tensor(torch.inf)))
        boxes = torch.cat([low, high], dim=-1)
        resized = {**target, "boxes": boxes, "original_size": original, "scale": scale}
        if self.proposals is not None:
            if target["image_id"] not in self.proposals:
                raise TargetError(f"image {image_name(target)}: has no proposals among those given")
            resized["proposals"] = scale_boxes(self.proposals[target["image_id"]], original, image.shape[-2:])
        return image, resized


_MEAN_AND_STD: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "caffe": ((104.0, 117.0, 123.0), (1.0, 1.0, 1.0)),
    "msra": ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0)),
    "torch": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Preprocess:
    """Turns uint8 RGB pixels into the numbers a network was trained on. It belongs to the weights.

    "caffe": BGR order, 0..255, minus (104, 117, 123); "msra": the same, minus (103.53, 116.28, 123.675); "torch": RGB,
    0..1, minus the ImageNet mean (0.485, 0.456, 0.406), divided by its standard deviation (0.229, 0.224, 0.225).
    """

    names = ("caffe", "msra", "torch")

    def __init__(self, name: str = "torch") -> None:
        if name not in self.names:
            raise ValueError(f"preprocess must be one of {', '.join(self.names)}, got {name!r}")
        self.name = name
        mean, std = _MEAN_AND_STD[name]
        unit = 255.0 if name == "torch" else 1.0
        self._bgr = name != "torch"
        self._offset = [m * unit for m in mean]
        self._factor = [1.0 / (s * unit) for s in std]

    def __call__(self, image: Tensor, out: Tensor | None = None, *, whole: bool = True) -> Tensor:
        """uint8 [..., 3, H, W] RGB to float32 of the same shape (into `out` where given). whole=False: float32, 0..255,
        which `resize` did not round."""
        if image.dtype != (torch.uint8 if whole else torch.float32) or image.dim() < 3 or image.shape[-3] != 3:
            raise ValueError(f"image must be a uint8 tensor [..., 3, H, W], got {image.dtype} {tuple(image.shape)}")
        if out is None:
            out = torch.empty(image.shape, dtype=torch.float32, device=image.device)
        # Channel by channel: the change of order costs nothing, and a plane stays in cache between the steps.
        for channel in range(3):
            source = 2 - channel if self._bgr else channel
            plane = out.select(-3, channel)
            plane.copy_(image.select(-3, source))
            plane.sub_(self._offset[channel])
            if not self._bgr:
                plane.mul_(self._factor[channel])
        return out

    def undo(self, images: Tensor) -> Tensor:
        """The uint8 RGB pixels that `__call__` made these numbers of."""
        planes = []
        for channel in range(3):
            source = 2 - channel if self._bgr else channel  # where this colour lies in `images`
            planes.append(images.select(-3, source) / self._factor[source] + self._offset[source])
        return torch.stack(planes, dim=-3).round().clamp(0, 255).to(torch.uint8)

    def __repr__(self) -> str:
        return f"Preprocess({self.name!r})"
