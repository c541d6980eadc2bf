"""Which of mmdetection's published models run, by what their configs name: nothing is built, and a GPU is assumed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from bench.compat import models
from frcnn_fast.mmcv.table import SERVED

# What the functions of mmcv's compiled half are needed for, the most wanted first; a share counts all lines above it.
GROUPS = {
    "nms": ("nms",),
    "roi_align": ("roi_align_forward", "roi_align_backward"),
    "soft-NMS": ("softnms",),
    "nms_match": ("nms_match",),
    "focal loss": ("sigmoid_focal_loss_forward", "sigmoid_focal_loss_backward"),
    "deformable attention": ("ms_deform_attn_forward", "ms_deform_attn_backward"),
    "deformable convolution": (
        "deform_conv_forward", "deform_conv_backward_input", "deform_conv_backward_parameters",
        "modulated_deform_conv_forward", "modulated_deform_conv_backward",
    ),
    "masked convolution": ("masked_im2col_forward", "masked_col2im_forward"),
    "CARAFE": ("carafe_forward", "carafe_backward"),
    "deformable RoI pooling": ("deform_roi_pool_forward", "deform_roi_pool_backward"),
    "synchronised batch normalisation": (
        "sync_bn_forward_mean", "sync_bn_forward_var", "sync_bn_forward_output", "sync_bn_backward_param",
        "sync_bn_backward_data",
    ),
}  # fmt: skip

# By the type that a config names.
_NEEDS = {
    "nms": ("nms",),
    "soft_nms": ("soft-NMS",),
    "RoIAlign": ("roi_align",),
    **dict.fromkeys(("DCN", "DCNv1", "DCNv2", "SAC"), ("deformable convolution",)),
    **dict.fromkeys(
        ("RepPointsHead", "StageCascadeRPNHead", "VFNetHead", "TOODHead", "FoveaHead", "CentripetalHead", "DyHead",
         "ATSSVLFusionHead"),
        ("deformable convolution",),
    ),
    **dict.fromkeys(("GARPNHead", "GARetinaHead"), ("deformable convolution", "masked convolution", "nms")),
    **dict.fromkeys(
        ("DeformableDETR", "DINO", "DDQDETR", "GroundingDINO", "MSDeformAttnPixelDecoder"), ("deformable attention",)
    ),
    **dict.fromkeys(("FPN_CARAFE", "carafe"), ("CARAFE",)),
    **dict.fromkeys(("DeformRoIPoolPack", "ModulatedDeformRoIPoolPack"), ("deformable RoI pooling",)),
    "MMSyncBN": ("synchronised batch normalisation",),
}  # fmt: skip
_NEEDS_IN_TRAINING = {"ScoreHLRSampler": ("nms_match",), "FocalLoss": ("focal loss",)}


def published() -> list[str]:
    """The configs of the zoo's models, each once."""
    import yaml

    root = models.configs_folder().parent
    found: dict[str, None] = {}
    for file in yaml.safe_load((root / "model-index.yml").read_text())["Import"]:
        content = yaml.safe_load((root / file).read_text())
        for model in content.get("Models", []) if isinstance(content, dict) else content:
            config = Path(unquote(model["Config"]))
            if config.parts[0] != "configs":  # one file says it without its folder
                config = Path(file).parent / config.name
            found.setdefault(str(config.relative_to("configs").with_suffix("")))
    return list(found)


def needs(config: Any) -> tuple[set[str], set[str]]:
    """The groups that inference needs, and those that training needs."""
    inference: set[str] = set()
    training: set[str] = set()
    for node in models.walk(config.model.to_dict()):
        for kind in _kinds(node):
            inference |= set(_NEEDS.get(kind, ()))
            training |= set(_NEEDS_IN_TRAINING.get(kind, ()))
    return inference, inference | training


def _kinds(node: dict[str, Any]) -> Iterator[str]:
    if isinstance(node.get("type"), str):
        yield node["type"]
    # Named without a type, or by the heads' own defaults.
    if "nms" in node or "nms_cfg" in node or "iou_threshold" in node:
        yield "nms"


def scan(names: Iterable[str]) -> dict[str, Any]:
    """The share of models, in percent, that are served by the groups up to each line."""
    found, failed, root = {}, {}, str(models.configs_folder())
    for name in names:
        try:
            found[name] = needs(models.load_config(name + ".py"))
        except Exception as error:  # a config that is not there, or that no version of Python reads
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0].replace(root, 'configs')[:90]}"
    lines, so_far = [], set[str]()
    for group in (None, *GROUPS):
        if group is not None:
            so_far.add(group)
        shares = [100 * sum(each[i] <= so_far for each in found.values()) / len(found) for i in (0, 1)]
        served = group is None or all(name in SERVED for name in GROUPS[group])
        lines.append(
            {
                "and": group or "nothing",
                "served": served,
                "inference": round(shares[0], 1),
                "training": round(shares[1], 1),
                "models": 0 if group is None else sum(group in each[1] for each in found.values()),
            }
        )
    return {"models": len(found), "unreadable": failed, "lines": lines}


def unforeseen(entry: dict[str, Any]) -> set[str]:
    """Functions that a family has called (families.py), and that its config does not make one expect."""
    expected = needs(models.load_config(entry["config"] + ".py"))[1]
    return {name for name in entry["functions"] if not any(name in GROUPS[group] for group in expected)}
