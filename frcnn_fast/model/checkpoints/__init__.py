"""Checkpoints of other libraries' detectors: their names, settings and order of classes, one module a library."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from frcnn_fast.io import load_weights
from frcnn_fast.model.build import build_detector, fill, listed
from frcnn_fast.model.checkpoints import detectron2, mmdetection, torchvision
from frcnn_fast.model.checkpoints.foreign import Foreign
from frcnn_fast.model.config import DetectorConfig
from frcnn_fast.model.detector import FasterRCNN

__all__ = ["from_checkpoint", "translated"]

LIBRARIES = (torchvision, detectron2, mmdetection)


def from_checkpoint(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    class_names: Sequence[str] | None = None,
    norm_eps: float | None = None,
    **settings: Any,
) -> FasterRCNN:
    """The detector of another library's checkpoint, ready to detect, with the results that it has there.

    torchvision: `fasterrcnn_resnet50_fpn` (and other depths), `_v2`, `fasterrcnn_mobilenet_v3_large_fpn`; detectron2,
    mmdetection (2, 3): Faster R-CNN on ResNet with FPN, or C4. Tensors tell the library, the depth of the network and
    the number of classes; what they do not tell is taken from the library's own configuration of that model, and
    `settings` correct it: a torchvision mobilenet_v3_large_320_fpn is `shorter=320, longer=640, proposals_test=(150,
    150)`, a detectron2 model on torchvision's ResNet `stride_in_1x1=False, preprocess="torch"`.

    Args:
        source: a file as `frcnn_fast.io.load_weights` reads it (.pth, .pkl, .safetensors; never runs code from it), or
            a state_dict.
        class_names: default: COCO's names where it has as many classes, else numbers. Labels are the library's own,
            1..K, where it counts the background as 0, else one more.
        norm_eps: what torchvision's frozen normalisations add to the variances. Default: 1e-5, and 0 for the COCO
            weights of `fasterrcnn_resnet50_fpn` as they were published. A model that was trained on from those and
            saved by a newer torchvision needs 0 here.
        settings: of `DetectorConfig`, on top of the library's.

    Warns of tensors without a place here, such as those of a mask head.

    Raises:
        ValueError: the file is broken, no such detector, or its tensors do not fit the settings; names them.
    """
    shown = "state_dict" if isinstance(source, Mapping) else os.fspath(source)
    tensors = source if isinstance(source, Mapping) else load_weights(source)
    found = translated(tensors, shown, norm_eps)
    if found is None:
        marks = ", ".join(f"{library.MARK} ({library.__name__.rpartition('.')[2]})" for library in LIBRARIES)
        raise ValueError(f"{shown}: no detector that is known here: expected {marks}; got {listed(list(tensors))}")
    if found.left_out:
        warnings.warn(f"{shown}: left out {listed(found.left_out)}, which have no place here", stacklevel=2)
    config = DetectorConfig(**{**found.settings, **settings})
    names = list(found.classes if class_names is None else class_names)
    if len(names) != len(found.classes):
        raise ValueError(f"class_names: got {len(names)}, but {shown} has {len(found.classes)} classes")
    return fill(lambda: build_detector(names, config), found.tensors, shown).eval()


def translated(tensors: Mapping[str, Tensor], source: str, norm_eps: float | None = None) -> Foreign | None:
    """Another library's detector in this one's terms; None where it is of none that is known here.

    Raises:
        ValueError: it lacks something; names the source.
    """
    translate = next((library.translate for library in LIBRARIES if library.MARK in tensors), None)
    if translate is None:
        return None
    try:
        found = translate(tensors, norm_eps)
        assert found.classes  # a KeyError where nothing tells their number
        return found
    except KeyError as error:
        raise ValueError(f"{source}: lacks what becomes {error.args[0]}") from error
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
