"""torchvision's detectors, by their checkpoints: the same boxes, labels and order from the same image."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from frcnn_fast import Detector
from frcnn_fast.model import from_checkpoint
from tests.compat.random_detectors import calibrated, photograph, spread

detection = pytest.importorskip("torchvision.models.detection", reason="torchvision (make test-compat)")

MODELS = ["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn"]
SHAPES = [(300, 420), (427, 320)]


# The same settings on this side.
SETTINGS: dict[str, Any] = {"shorter": 256, "longer": 400, "proposals_test": (300, 150), "max_detections": 50}


def random_detector(name: str, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    # A small network's features differ more from image to image: its classes are spread over the tests' own.
    seeds = [sum(shape) for shape in SHAPES] if "mobilenet" in name else [9, 10]
    model = getattr(detection, name)(weights=None, weights_backbone=None, **options)
    photographs = [photograph(*shape, seed=place) / 255 for shape, place in zip(SHAPES, seeds, strict=True)]
    images, _ = model.transform(photographs)
    features = calibrated(model.backbone, images.tensors)
    maps = list(features.values())
    head = model.rpn.head
    with torch.no_grad():
        for layer in [m for m in head.conv.modules() if isinstance(m, nn.Conv2d)]:
            nn.init.kaiming_normal_(layer.weight)
        hidden = head.conv(maps[0])
        spread(head.cls_logits, hidden, 2.0, -1.0)
        spread(head.bbox_pred, hidden, 0.04)
        model.eval()
        proposals, _ = model.rpn(images, features)
        pooled = model.roi_heads.box_roi_pool(features, proposals, images.image_sizes)
        hidden = calibrated(model.roi_heads.box_head, pooled)
        spread(model.roi_heads.box_predictor.cls_score, hidden, 1.5)
        spread(model.roi_heads.box_predictor.bbox_pred, hidden, 0.3)
    return model.eval()


@pytest.fixture(scope="module", params=MODELS)
def theirs(request) -> nn.Module:
    return random_detector(
        request.param,
        num_classes=12,
        min_size=256,
        max_size=400,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_test=150,
        box_detections_per_img=50,
    )


def assert_same(
    ours: dict[str, Any], theirs: dict[str, Any], boxes: float = 1e-3, scores: float = 1e-4, least: int = 24
) -> None:
    assert len(theirs["labels"]) >= least, f"{len(theirs['labels'])} detections say too little"
    assert len(theirs["labels"].unique()) >= 3
    assert ours["labels"].tolist() == theirs["labels"].tolist()
    assert (ours["boxes"] - theirs["boxes"]).abs().max() <= boxes
    assert (ours["scores"] - theirs["scores"]).abs().max() <= scores


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_detections(theirs, shape):
    ours = from_checkpoint(theirs.state_dict(), **SETTINGS)
    image = photograph(*shape, seed=sum(shape))
    with torch.no_grad():
        expected = theirs([image / 255])[0]
    found = Detector(ours)(image)
    assert_same({"boxes": found.boxes, "scores": found.scores, "labels": found.labels}, expected)


def test_the_same_in_double_precision(theirs):
    """Without rounding that a network of random weights enlarges, nothing is left."""
    double = copy.deepcopy(theirs).double()
    ours = from_checkpoint(theirs.state_dict(), **SETTINGS).double()
    image = photograph(256, 358, seed=720) / 255  # not resized
    with torch.no_grad():
        expected = double([image.double()])[0]
        batch = double.transform([image.double()])[0]
        found = ours(batch.tensors, torch.tensor(batch.image_sizes)).to_list()[0]
    assert_same(found, expected, boxes=1e-8, scores=1e-10)


def test_the_same_from_a_file(theirs, tmp_path):
    """As a training script of theirs writes it: under a key, with other things beside."""
    torch.save({"model": theirs.state_dict(), "epoch": 3}, tmp_path / "model.pth")
    ours = from_checkpoint(tmp_path / "model.pth", **SETTINGS)
    assert ours.class_names == [str(label) for label in range(1, 12)]
    state = ours.state_dict()
    again = from_checkpoint(theirs.state_dict(), **SETTINGS).state_dict()
    assert all(torch.equal(state[name], again[name]) for name in again)
