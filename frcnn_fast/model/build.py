"""From settings and files to a detector, and back."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frcnn_fast.io import load_checkpoint, save_checkpoint
from frcnn_fast.model.backbones import backbone_name, backbone_options, build_backbone, is_known
from frcnn_fast.model.config import DetectorConfig
from frcnn_fast.model.detector import FasterRCNN
from frcnn_fast.model.protocol import pretrained_names


def build_detector(
    class_names: Sequence[str],
    config: DetectorConfig | None = None,
    *,
    backbone: nn.Module | None = None,
    head: nn.Module | None = None,
) -> FasterRCNN:
    """A new detector for `class_names` (without the background).

    Args:
        config: settings; default the paper's, VGG-16 with its own fc6 and fc7.
        backbone, head: modules of your own. config.backbone then becomes the backbone's name, its class' where it is
            none of ours, so that a checkpoint knows that it needs one.
    """
    config = config or DetectorConfig()
    if backbone is None:
        backbone = build_backbone(config.backbone, norm=config.norm, stride_in_1x1=config.stride_in_1x1)
    else:
        config = dataclasses.replace(config, backbone=backbone_name(backbone), **backbone_options(backbone))
    return FasterRCNN(backbone, len(class_names) + 1, config, head=head, class_names=class_names)


def load_pretrained(detector: FasterRCNN, weights: Mapping[str, Tensor], source: str = "weights") -> list[str]:
    """Copy published classifier weights into the backbone, and into the head where it has layers of the same names.

    The file must have every tensor that the backbone asks for. Those without a place here (the 1,000-class layer) are
    left out.

    Args:
        weights: tensors by torchvision's names, as `frcnn_fast.io.load_weights` reads them.
        source: how an error calls them.

    Returns:
        The names that were left out.

    Raises:
        ValueError: one of these is missing, or has another shape; names them.
    """
    tensors, body = detector.backbone.state_dict(keep_vars=True), detector.roi_head.body.state_dict(keep_vars=True)
    names = pretrained_names(detector.backbone)
    missing = [name for name in names.values() if name not in weights]
    if missing:
        raise ValueError(
            f"{source}: lacks {listed(missing)} of {type(detector.backbone).__name__}; it has {listed(list(weights))}"
        )
    # By the file's names.
    places = {**{name: tensors[own] for own, name in names.items()}, **{n: body[n] for n in body if n in weights}}
    wrong = [
        f"{name} {list(weights[name].shape)} (expected {list(place.shape)})"
        for name, place in places.items()
        if weights[name].shape != place.shape
    ]
    if wrong:
        raise ValueError(f"{source}: does not fit {type(detector.backbone).__name__}: {listed(wrong)}")
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(weights[name])
    return [name for name in weights if name not in places]


def save_detector(path: str | os.PathLike[str], detector: FasterRCNN, extra: Mapping[str, Any] | None = None) -> None:
    """Write the detector to a checkpoint file, atomically (see `frcnn_fast.io.save_checkpoint`)."""
    save_checkpoint(
        path,
        detector.state_dict(),
        class_names=detector.class_names,
        config=detector.config.to_dict(),
        extra=extra,
    )


def load_detector(
    path: str | os.PathLike[str],
    *,
    backbone: nn.Module | None = None,
    head: nn.Module | None = None,
    device: torch.device | str = "cpu",
) -> FasterRCNN:
    """The detector of a run, ready to detect (in eval mode).

    Args:
        path: the run's folder, or a checkpoint file.
        backbone, head: needed where the run was trained with modules of your own.

    Raises:
        ValueError: the file is missing, broken, or its tensors do not fit; names the file and the tensors.
    """
    checkpoint = load_checkpoint(path)
    try:
        config = DetectorConfig.from_dict(checkpoint.config)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: its description of the model is broken ({error})") from error
    if backbone is None and not is_known(config.backbone):
        raise ValueError(
            f"{os.fspath(path)}: was trained with a backbone of its own, {config.backbone}; pass one as `backbone`"
        )
    build = functools.partial(build_detector, checkpoint.class_names, config, backbone=backbone, head=head)
    return fill(build, checkpoint.tensors, os.fspath(path)).to(device).eval()


def fill(build: Callable[[], FasterRCNN], tensors: Mapping[str, Tensor], source: str) -> FasterRCNN:
    """The detector that `build` makes, with these weights: every one of its own, and no others.

    Raises:
        ValueError: they do not fit; names the source and the tensors.
    """
    try:
        with torch.device("meta"):  # absurd sizes cost no memory
            expected = build().state_dict()
    except (ValueError, TypeError, RuntimeError, MemoryError, OverflowError) as error:
        raise ValueError(f"{source}: its description of the model is broken ({error})") from error
    wrong = [f"{name} is missing" for name in expected if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            wrong.append(f"{name} has no place")
        elif tensor.shape != expected[name].shape:
            wrong.append(f"{name} is {list(tensor.shape)}, expected {list(expected[name].shape)}")
    if wrong:
        raise ValueError(f"{source}: the weights do not fit the detector: {listed(wrong)}")
    detector = build()
    detector.load_state_dict(tensors)
    return detector


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first few of them, for a message."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown or "nothing"
