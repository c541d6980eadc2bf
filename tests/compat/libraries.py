"""Models of the other libraries, as their configurations make them, with no weights from anywhere."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

# Name of a list of names: how its model is made. `options` are the library's own.
MODELS: dict[str, Callable[..., nn.Module]] = {}


def _model(name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    def register(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        MODELS[name] = make
        return make

    return register


def is_there(name: str) -> bool:
    """Whether the library of the model `name` is installed."""
    needed = {"torchvision": ["torchvision"], "detectron2": ["detectron2"], "mmdetection": ["mmdet", "mmcv"]}
    return all(importlib.util.find_spec(module) for module in needed[name.partition("-")[0]])


@_model("torchvision-fasterrcnn_resnet50_fpn")
def _torchvision_v1(**options: Any) -> nn.Module:
    return _torchvision("fasterrcnn_resnet50_fpn", options)


@_model("torchvision-fasterrcnn_resnet50_fpn_v2")
def _torchvision_v2(**options: Any) -> nn.Module:
    return _torchvision("fasterrcnn_resnet50_fpn_v2", options)


@_model("torchvision-fasterrcnn_mobilenet_v3_large_fpn")
def _torchvision_mobilenet(**options: Any) -> nn.Module:
    return _torchvision("fasterrcnn_mobilenet_v3_large_fpn", options)


def _torchvision(name: str, options: dict[str, Any]) -> nn.Module:
    from torchvision.models import detection

    return getattr(detection, name)(weights=None, weights_backbone=None, **options)


def frozen_as_published(model: nn.Module) -> nn.Module:
    """torchvision's model as it is where it starts from weights: all but v2 freeze the backbone's normalisations."""
    from torchvision.ops import FrozenBatchNorm2d

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
                frozen.load_state_dict(child.state_dict())
                setattr(module, name, frozen)
    return model


@_model("detectron2-faster_rcnn_R_50_FPN")
def _detectron2_fpn(**options: Any) -> nn.Module:
    return _detectron2("faster_rcnn_R_50_FPN_3x", options)


@_model("detectron2-faster_rcnn_R_50_C4")
def _detectron2_c4(**options: Any) -> nn.Module:
    return _detectron2("faster_rcnn_R_50_C4_3x", options)


def _detectron2(name: str, options: dict[str, Any]) -> nn.Module:
    import detectron2
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    cfg = get_cfg()
    cfg.merge_from_file(str(Path(detectron2.__file__).parents[1] / "configs" / "COCO-Detection" / f"{name}.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.merge_from_list([item for pair in options.items() for item in pair])
    return build_model(cfg)


@_model("mmdetection-faster-rcnn_r50_fpn")
def _mmdetection_fpn(**options: Any) -> nn.Module:
    return _mmdetection("faster-rcnn_r50_fpn_1x_coco", options)


@_model("mmdetection-faster-rcnn_r50-caffe-c4")
def _mmdetection_c4(**options: Any) -> nn.Module:
    return _mmdetection("faster-rcnn_r50-caffe_c4-1x_coco", options)


def _mmdetection(name: str, options: dict[str, Any]) -> nn.Module:
    from frcnn_fast.mmcv import stand_in_for_mmcv

    with stand_in_for_mmcv():
        import mmdet
        from mmdet.registry import MODELS as REGISTRY
        from mmdet.utils import register_all_modules
        from mmengine.config import Config

        register_all_modules()
        folder = Path(mmdet.__file__).parent / ".mim" / "configs" / "faster_rcnn"
        cfg = Config.fromfile(folder / f"{name}.py")
        cfg.merge_from_dict({**options, "model.backbone.init_cfg": None})
        return REGISTRY.build(cfg.model)
