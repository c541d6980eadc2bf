"""A new detector that starts from what another one, or a classifier, has learnt."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from frcnn_fast.io import is_checkpoint, load_checkpoint, load_weights
from frcnn_fast.model.build import listed, load_pretrained
from frcnn_fast.model.checkpoints import translated
from frcnn_fast.model.config import DetectorConfig
from frcnn_fast.model.detector import FasterRCNN

PathLike = str | os.PathLike[str]


@dataclasses.dataclass
class Started:
    """What a detector took over from a file.

    Attributes:
        taken: names of its tensors that were filled; of the layers that predict classes and boxes, those of which some
            classes were.
        left_out: tensors of the file that do not fit, each with the reason.
        new: its own tensors that nothing filled.
        new_classes: its classes that the file's detector does not know, where the file has one; their outputs are new.
    """

    taken: list[str]
    left_out: list[str]
    new: list[str]
    new_classes: list[str]

    def lines(self) -> list[str]:
        """For people."""
        found = [f"weights: {len(self.taken)} tensors taken over"]
        if self.new_classes:
            found.append(f"new classes: {listed(self.new_classes, 20)}")
        if self.left_out:
            found.append(f"left out, since it does not fit: {listed(self.left_out, 20)}")
        if self.new:
            found.append(f"new, since nothing fits: {listed(self.new, 20)}")
        return found


def start_from(detector: FasterRCNN, path: PathLike) -> Started:
    """Fill `detector` with what fits of a file: a run of this library (its folder or model.safetensors), a checkpoint
    that `from_checkpoint` knows, or published weights of a classifier (as `load_pretrained`).

    Of another detector, tensors of the same name and shape are taken. The layers that predict classes and boxes are
    taken class by class: by name, whatever their number and order.

    Raises:
        ValueError: the file is broken, or nothing of its backbone fits; names it.
    """
    shown = os.fspath(path)
    found = _detector_in(path)
    if found is None:
        weights = load_weights(path)
        left = load_pretrained(detector, weights, source=shown)
        return Started([name for name in weights if name not in left], left, [], [])
    config, tensors, class_names = found
    own = detector.state_dict(keep_vars=True)
    predictors = ("roi_head.cls_score.", "roi_head.bbox_pred.")
    taken, left_out = [], []
    with torch.no_grad():
        for name, tensor in tensors.items():
            place = own.get(name)
            if place is None:
                left_out.append(f"{name} (has no place here)")
            elif name.startswith(predictors) and _copy_classes(place, tensor, detector.class_names, class_names):
                taken.append(name)
            elif place.shape == tensor.shape and not name.startswith(predictors):
                place.copy_(tensor)
                taken.append(name)
            else:
                left_out.append(f"{name} {list(tensor.shape)} (here {list(place.shape)})")
    if not any(name.startswith("backbone.") for name in taken):
        raise ValueError(
            f"{shown}: its detector is on {config.backbone}, of which nothing fits {detector.config.backbone}; choose "
            f"the backbone {config.backbone}"
        )
    filled = set(taken)
    new = [name for name in own if name not in filled]
    return Started(taken, left_out, new, [name for name in detector.class_names if name not in class_names])


def config_of(path: PathLike) -> DetectorConfig | None:
    """The settings of the detector in a file that `start_from` takes; None where it has a classifier's weights."""
    found = _detector_in(path)
    return None if found is None else found[0]


def _detector_in(path: PathLike) -> tuple[DetectorConfig, Mapping[str, Tensor], Sequence[str]] | None:
    if is_checkpoint(path):
        checkpoint = load_checkpoint(path)
        return DetectorConfig.from_dict(checkpoint.config), checkpoint.tensors, checkpoint.class_names
    found = translated(load_weights(path), os.fspath(path))
    return None if found is None else (DetectorConfig(**found.settings), found.tensors, found.classes)


def _copy_classes(place: Tensor, tensor: Tensor, names: Sequence[str], from_names: Sequence[str]) -> bool:
    """Rows of a layer that predicts something for the background and every class; whether it fits."""
    if place.shape[1:] != tensor.shape[1:]:
        return False
    here, there = len(names) + 1, len(from_names) + 1
    if len(place) == len(tensor) == 4:  # one box for all classes
        place.copy_(tensor)
        return True
    if len(place) % here or len(tensor) % there or len(place) // here != len(tensor) // there:
        return False
    rows, from_rows = place.unflatten(0, (here, -1)), tensor.unflatten(0, (there, -1))
    rows[0].copy_(from_rows[0])
    for label, name in enumerate(names, start=1):
        if name in from_names:
            rows[label].copy_(from_rows[from_names.index(name) + 1])
    return True
