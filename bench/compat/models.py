"""mmdetection's models with random weights, and images with objects for them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

SAMPLERS = 64  # RoIs an image in training, in the place of 512: a processor has other things to do


def configs_folder() -> Path:
    """mmdetection's own configs, which its wheel brings along."""
    spec = importlib.util.find_spec("mmdet")
    if spec is None or spec.origin is None:
        raise ImportError("mmdet is needed here and is not installed: pip install 'frcnn_fast[mmdet]'")
    return Path(spec.origin).parent / ".mim" / "configs"


def load_config(name: str) -> Any:
    """A config without files of weights."""
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    register_all_modules()
    init_default_scope("mmdet")
    config = Config.fromfile(str(configs_folder() / name))
    for node in walk(config.model):
        for key, value in list(node.items()):
            if key == "pretrained" or (
                key == "init_cfg" and isinstance(value, dict) and value.get("type") == "Pretrained"
            ):
                node[key] = None
        if "Sampler" in str(node.get("type")) and node.get("num") == 512:
            node["num"] = SAMPLERS
    return config


def walk(node: Any) -> Iterator[dict[str, Any]]:
    """Every dictionary in a config."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from walk(value)


def build(name: str, seed: int = 0, *, decided: bool = False) -> Any:
    """decided: it finds things of every score, where random weights alone find the same everywhere."""
    from mmdet.registry import MODELS

    torch.manual_seed(seed)
    config = load_config(name).model
    for node in walk(config) if decided else ():
        if "score_thr" in node:
            node["score_thr"] = 0.02
    model = MODELS.build(config)
    model.init_weights()
    for layer, module in model.named_modules() if decided else ():
        if layer.split(".")[-1] in ("fc_cls", "retina_cls", "rpn_cls"):
            torch.nn.init.normal_(module.weight, std=0.3)
            torch.nn.init.zeros_(module.bias)
    return model


def wants_masks(name: str) -> bool:
    """Models without masks do not know what to do with them."""
    kinds = " ".join(str(node.get("type")) for node in walk(load_config(name).model)).lower()
    return any(kind in kinds for kind in ("mask", "solo", "yolact", "condinst", "rtmdetins"))


def begin_training(model: Any) -> None:
    """What mmengine's runner and hooks tell a model before the first iteration."""
    from mmengine.logging import MessageHub

    hub = MessageHub.get_current_instance()
    for key, value in {"iter": 0, "epoch": 0, "max_iters": 10, "max_epochs": 1}.items():
        hub.update_info(key, value)
    for module in model.modules():
        if hasattr(module, "epoch"):
            module.epoch = 0
    model.train()


def batch(size: tuple[int, int], images: int = 1, seed: int = 0, masks: bool = True) -> dict[str, Any]:
    """What a model's test_step and train_step take: noise with five objects of 80 classes an image."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    g = torch.Generator().manual_seed(seed)
    height, width = size
    inputs, samples = [], []
    for image in range(images):
        inputs.append((torch.rand(3, height, width, generator=g) * 255).to(torch.uint8))
        corner = torch.rand(5, 2, generator=g) * torch.tensor([width * 0.6, height * 0.6])
        boxes = torch.cat(
            [corner, corner + torch.rand(5, 2, generator=g) * torch.tensor([width, height]) * 0.35 + 8], 1
        )
        drawn = np.zeros((5, height, width), np.uint8)
        for mask, (left, top, right, bottom) in zip(drawn, boxes.int().tolist()):
            mask[top:bottom, left:right] = 1
        sample = DetDataSample(
            metainfo={
                **dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), size),
                "scale_factor": (1.0, 1.0),
                "border": (0, height, 0, width),
                "img_id": image,
                "img_path": "",
            }
        )
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.randint(0, 80, (5,), generator=g))
        if masks:
            sample.gt_instances.masks = BitmapMasks(drawn, height, width)
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
        sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(drawn.max(0, keepdims=True).astype(np.int64)))
        samples.append(sample)
    return {"inputs": inputs, "data_samples": samples}
