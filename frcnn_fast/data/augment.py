"""Random changes of the training images: torchvision's transforms, albumentations, or a function of one's own."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frcnn_fast._extras import require
from frcnn_fast.data.datasets import class_names_of, quick_target
from frcnn_fast.data.targets import Target, TargetError, checked_image, checked_sample, image_name
from frcnn_fast.data.transforms import DetectionDataset, Sample

_ROWS = ("boxes", "labels", "difficult", "area")  # entries with a row an object


class AugmentedDetection:
    """A data set whose items are changed at random by `transforms`. Boxes are cut at the edge of the new image, and
    objects of which less than `min_visible` is left are dropped.

    Training draws what is random by the seed and the image's place in the order, whichever worker loads it, so a
    resumed run draws the same. `transforms` may take its randomness from Python's, NumPy's or torch's generators.

    Args:
        dataset: any data set.
        transforms: one of

            - a transform of `torchvision.transforms.v2` (or a `Compose`): it is given an `Image` and a dict with
              `BoundingBoxes`; transforms to tensors, to floats and normalisation are not for it, since the detector
              preprocesses by itself;
            - an `albumentations.Compose` whose `bbox_params` have the format "pascal_voc";
            - a function of (image, target) that returns another such pair, by the rules of `frcnn_fast.data`.

        min_visible: share of a box's area that must be left, in [0, 1].

    Raises:
        ValueError: `transforms` is none of these; from an item, that what comes back breaks the rules of
            `checked_target`; names the image.
    """

    def __init__(self, dataset: DetectionDataset, transforms: Any, *, min_visible: float = 0.1) -> None:
        if not callable(transforms):
            raise ValueError(f"transforms: got {transforms!r}, expected a function of (image, target)")
        if not 0 <= min_visible <= 1:
            raise ValueError(f"min_visible must be in [0, 1], got {min_visible}")
        self.dataset, self.class_names = dataset, class_names_of(dataset)
        self.transforms, self.min_visible = transforms, min_visible
        self._call = _kind_of(transforms)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        image, target = checked_sample(self.dataset[index], len(self.class_names), name=index, cut=[])
        name = image_name(target, index)
        try:
            image, target = self._call(self.transforms, image, target)
        except TargetError:
            raise
        except Exception as error:  # what a transform of the user's raises is a mistake there, not a torn file
            raise TargetError(f"image {name}: transforms failed ({type(error).__name__}: {error})") from error
        image = checked_image(image, name)
        return image, self._visible(target, int(image.shape[1]), int(image.shape[2]))

    def _visible(self, target: Target, height: int, width: int) -> Target:
        """The objects of which enough is left, cut at the image's edge."""
        boxes = target["boxes"]
        if not isinstance(boxes, Tensor) or boxes.dim() != 2 or boxes.shape[1:] != (4,):
            return target  # its view will say what is wrong
        low, high = boxes[:, :2].clamp(min=0), torch.minimum(boxes[:, 2:], boxes.new_tensor([width, height]))
        whole = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        left = (high - low).clamp(min=0).prod(1)
        kept = (left > 0) & (left >= self.min_visible * whole)
        rows = {key: target[key][kept] for key in _ROWS if isinstance(target.get(key), Tensor) and key != "boxes"}
        return {**target, **rows, "boxes": torch.cat([low, high], dim=1)[kept]}

    def target(self, index: int) -> Target:
        """The target of item `index` before it is changed; for what looks at a data set without opening images."""
        quick = quick_target(self.dataset, index)
        return quick[0] if quick is not None else self.dataset[index][1]

    def image_size(self, index: int) -> tuple[int, int] | None:
        """(height, width) of image `index` before it is changed, where the data set tells without decoding it."""
        quick = quick_target(self.dataset, index)
        return quick[1] if quick is not None else None


def unchanged(dataset: DetectionDataset) -> DetectionDataset:
    """The data set without its transforms, where it is an `AugmentedDetection`: images whose place is known."""
    while isinstance(dataset, AugmentedDetection):
        dataset = dataset.dataset
    return dataset


def imported_transforms(path: str) -> Any:
    """What the function of an import path, "module:function", returns when it is called without arguments.

    Raises:
        ValueError: there is no such function, or it fails; says which.
    """
    module, colon, name = path.partition(":")
    if not colon or not module or not name:
        raise ValueError(f"transforms: got {path!r}, expected module:function, for example my_package.augment:build")
    try:
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
        return function()
    except Exception as error:
        raise ValueError(f"transforms: {path}: {type(error).__name__}: {error}") from error


def _kind_of(transforms: Any) -> Callable[[Any, Tensor, Target], tuple[Any, Target]]:
    modules = [kind.__module__ for kind in type(transforms).__mro__]
    if any(module.startswith("torchvision.transforms.v2") for module in modules):
        return _by_torchvision
    if any(module.partition(".")[0] == "albumentations" for module in modules):
        processors = getattr(transforms, "processors", {})
        form = getattr(getattr(processors.get("bboxes"), "params", None), "format", None)
        if form != "pascal_voc":
            raise ValueError(
                f"transforms: its bbox_params have the format {form!r}, expected albumentations.Compose([...], "
                "bbox_params=albumentations.BboxParams(format='pascal_voc', label_fields=['rows']))"
            )
        return _by_albumentations
    return lambda function, image, target: function(image, target)


def _by_torchvision(transforms: Any, image: Tensor, target: Target) -> tuple[Any, Target]:
    tv_tensors = require("torchvision.tv_tensors", "torchvision")
    size = (int(image.shape[1]), int(image.shape[2]))
    boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
    # What drops boxes drops the "labels" with them; as row numbers they carry every other entry along.
    rows = torch.arange(len(boxes))
    changed, found = transforms(tv_tensors.Image(image), {"boxes": boxes, "labels": rows})
    form = getattr(getattr(found["boxes"], "format", None), "name", "XYXY")
    if form != "XYXY":
        raise ValueError(f"the boxes come back in the format {form}, expected XYXY")
    boxes = found["boxes"].as_subclass(Tensor).to(torch.float32)
    return changed.as_subclass(Tensor), _with_rows(target, boxes, found["labels"])


def _by_albumentations(transforms: Any, image: Tensor, target: Target) -> tuple[Any, Target]:
    fields = transforms.processors["bboxes"].params.label_fields or []
    rows = list(range(len(target["labels"])))
    if hasattr(transforms, "set_random_seed"):  # its generators are its own
        transforms.set_random_seed(random.getrandbits(31))
    # A box with its row behind it, where there is no other field to carry it.
    boxes = [[*box, row] for box, row in zip(target["boxes"].tolist(), rows, strict=True)]
    carried = dict.fromkeys(fields, rows)
    found = transforms(
        image=np.ascontiguousarray(image.permute(1, 2, 0).numpy()),
        bboxes=[box[:4] for box in boxes] if fields else boxes,
        **carried,
    )
    kept = found[fields[0]] if fields else [box[4] for box in found["bboxes"]]
    left = torch.tensor([list(box)[:4] for box in found["bboxes"]], dtype=torch.float32).reshape(-1, 4)
    pixels = torch.from_numpy(np.ascontiguousarray(found["image"])).permute(2, 0, 1)
    return pixels, _with_rows(target, left, torch.tensor([int(row) for row in kept], dtype=torch.int64))


def _with_rows(target: Target, boxes: Tensor, rows: Tensor) -> Target:
    """The target with new boxes, whose other entries are those of the old rows."""
    taken = {key: target[key][rows] for key in _ROWS if isinstance(target.get(key), Tensor) and key != "boxes"}
    return {**target, **taken, "boxes": boxes}
