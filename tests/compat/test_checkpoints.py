"""detectron2's and mmdetection's detectors, by their checkpoints: the same boxes, labels and order.

detectron2 has no package for today's torch: its test runs where a checkout of it lies on the path.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frcnn_fast import stand_in_for_mmcv
from frcnn_fast.model import from_checkpoint
from tests.compat.libraries import MODELS, is_there
from tests.compat.random_detectors import calibrated, photograph, spread
from tests.compat.test_torchvision import assert_same

CLASSES = 11
SETTINGS: dict[str, Any] = {"proposals_test": (300, 100), "max_detections": 50}
SHAPE = (256, 352)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def spread_rpn(hidden: Tensor, scores: nn.Module, deltas: nn.Module) -> None:
    spread(scores, hidden, 2.0, -1.0)
    spread(deltas, hidden, 0.04)


def spread_head(hidden: Tensor, scores: nn.Module, deltas: nn.Module) -> None:
    spread(scores, hidden, 1.5)
    spread(deltas, hidden, 0.3)


def assert_found_again(model: nn.Module, pixels: Tensor, expected: dict[str, Tensor]) -> None:
    ours = from_checkpoint(model.state_dict(), **SETTINGS)
    found = ours(pixels, torch.tensor([SHAPE])).to_list()[0]
    assert_same(found, expected)
    assert ours.class_names == [str(label) for label in range(1, CLASSES + 1)]


@pytest.mark.skipif(not is_there("detectron2"), reason="detectron2 (a checkout on the path)")
@pytest.mark.parametrize("name", ["detectron2-faster_rcnn_R_50_FPN", "detectron2-faster_rcnn_R_50_C4"])
def test_detectron2(name: str) -> None:
    options = {"PRE_NMS_TOPK_TEST": 300, "POST_NMS_TOPK_TEST": 100}
    model: Any = MODELS[name](
        **{f"MODEL.RPN.{key}": value for key, value in options.items()},
        **{"MODEL.ROI_HEADS.NUM_CLASSES": CLASSES, "TEST.DETECTIONS_PER_IMAGE": 50},
    ).eval()
    inputs = [{"image": photograph(*SHAPE, seed=608).flip(0)}]  # its images are BGR
    images = model.preprocess_image(inputs)
    features = calibrated(model.backbone, images.tensor)
    rpn, head = model.proposal_generator, model.roi_heads
    maps = [features[key] for key in rpn.in_features]
    nn.init.kaiming_normal_(rpn.rpn_head.conv.weight)
    spread_rpn(rpn.rpn_head.conv(maps[0]), rpn.rpn_head.objectness_logits, rpn.rpn_head.anchor_deltas)
    boxes = [found.proposal_boxes for found in rpn(images, features, None)[0]]
    if hasattr(head, "box_pooler"):
        hidden = head.box_head(head.box_pooler([features[key] for key in head.box_in_features], boxes))
    else:
        pooled = head.pooler([features[key] for key in head.in_features], boxes)
        hidden = calibrated(head.res5, pooled).mean((2, 3))
    spread_head(hidden, head.box_predictor.cls_score, head.box_predictor.bbox_pred)
    (found,) = model.inference(inputs, do_postprocess=False)
    expected = {"boxes": found.pred_boxes.tensor, "scores": found.scores, "labels": found.pred_classes + 1}
    assert_found_again(model, images.tensor, expected)


@pytest.mark.skipif(not is_there("mmdetection"), reason="mmdet (make test-compat)")
@pytest.mark.parametrize("name", ["mmdetection-faster-rcnn_r50_fpn", "mmdetection-faster-rcnn_r50-caffe-c4"])
def test_mmdetection(name: str) -> None:
    with stand_in_for_mmcv():
        from mmdet.structures import DetDataSample

        model: Any = MODELS[name](
            **{
                "model.test_cfg.rpn.nms_pre": 300,
                "model.test_cfg.rpn.max_per_img": 100,
                "model.test_cfg.rcnn.max_per_img": 50,
                "model.roi_head.bbox_head.num_classes": CLASSES,
            }
        ).eval()
        sample = DetDataSample(
            metainfo={"img_shape": SHAPE, "ori_shape": SHAPE, "scale_factor": (1, 1), "batch_input_shape": SHAPE}
        )
        image = photograph(*SHAPE, seed=608).flip(0)  # read as BGR
        pixels = model.data_preprocessor({"inputs": [image], "data_samples": [sample]})["inputs"]
        maps = calibrated(_Features(model), pixels)
        rpn, head = model.rpn_head, model.roi_head
        nn.init.kaiming_normal_(rpn.rpn_conv.weight)
        spread_rpn(F.relu(rpn.rpn_conv(maps[0])), rpn.rpn_cls, rpn.rpn_reg)
        rois = F.pad(rpn.predict(maps, [sample], rescale=False)[0].bboxes, (1, 0))
        pooled = head.bbox_roi_extractor(maps[: head.bbox_roi_extractor.num_inputs], rois)
        if head.with_shared_head:
            hidden = calibrated(head.shared_head, pooled).mean((2, 3))
        else:
            hidden = pooled.flatten(1)
            for layer in head.bbox_head.shared_fcs:
                hidden = F.relu(layer(hidden))
        spread_head(hidden, head.bbox_head.fc_cls, head.bbox_head.fc_reg)
        found = model.predict(pixels, [sample], rescale=False)[0].pred_instances
    expected = {"boxes": found.bboxes, "scores": found.scores, "labels": found.labels + 1}
    assert_found_again(model, pixels, expected)


class _Features(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Any:
        return self.model.extract_feat(pixels)
