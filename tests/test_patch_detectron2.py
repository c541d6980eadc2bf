"""The adapters of detectron2 without detectron2: held to recorded answers of its own code, over stand-ins for its few
classes. With its source tree: tests/compat/test_detectron2.py."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import frcnn_fast
from frcnn_fast import ops
from frcnn_fast.patch import detectron2 as adapters

SIZE, LEVELS = (70, 90), 2
CLAMP = math.log(1000.0 / 16)


class Boxes:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)


class Instances:
    def __init__(self, image_size: tuple[int, int], **fields: Any) -> None:
        self.image_size = image_size
        vars(self).update(fields)


class Matcher:
    labels, thresholds = [0, -1, 1], [-math.inf, 0.3, 0.7, math.inf]
    allow_low_quality_matches = True


class ROIAlign:
    def __init__(self, spatial_scale: float) -> None:
        self.spatial_scale, self.sampling_ratio, self.aligned = spatial_scale, 0, True


class Box2BoxTransform:
    def __init__(self, *weights: float) -> None:
        self.weights, self.scale_clamp = weights, CLAMP


class FastRCNNOutputLayers:
    box2box_transform = Box2BoxTransform(10.0, 10.0, 5.0, 5.0)
    test_score_thresh, test_nms_thresh, test_topk_per_image = 0.1, 0.5, 12

    def predict_boxes(self) -> None: ...

    def predict_probs(self) -> None: ...


class Rpn(SimpleNamespace):
    box2box_transform, nms_thresh, min_box_size = Box2BoxTransform(1.0, 1.0, 1.0, 1.0), 0.7, 6.0
    pre_nms_topk, post_nms_topk = {True: 60, False: 30}, {True: 60, False: 20}
    training, anchor_matcher, anchor_boundary_thresh = False, Matcher(), -1.0

    def _subsample_labels(self, labels: Tensor) -> Tensor:
        return labels


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    contents: dict[str, dict[str, Any]] = {
        "detectron2": {},
        "detectron2.structures": {"Boxes": Boxes, "Instances": Instances},
        "detectron2.modeling": {},
        "detectron2.modeling.matcher": {"Matcher": Matcher},
        "detectron2.modeling.roi_heads": {},
        "detectron2.modeling.roi_heads.fast_rcnn": {"FastRCNNOutputLayers": FastRCNNOutputLayers},
        "detectron2.layers": {"ROIAlign": ROIAlign},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "recorded" / "detectron2.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def anchors_of(recorded: dict[str, Tensor]) -> list[Boxes]:
    return [Boxes(recorded[f"anchors_{level}"]) for level in range(LEVELS)]


def levels_of(recorded: dict[str, Tensor], name: str) -> list[Tensor]:
    return [recorded[f"{name}_{level}"] for level in range(LEVELS)]


def test_proposals_are_the_recorded_ones(recorded: dict[str, Tensor]) -> None:
    (found,) = adapters._predict_proposals(
        Rpn(), anchors_of(recorded), levels_of(recorded, "logits"), levels_of(recorded, "deltas"), [SIZE]
    )
    assert len(recorded["proposals"]) == 20
    assert torch.equal(found.objectness_logits, recorded["objectness"])
    torch.testing.assert_close(found.proposal_boxes.tensor, recorded["proposals"], rtol=0, atol=2e-5)
    assert found.image_size == SIZE


def test_a_proposal_of_the_least_size_is_dropped() -> None:
    anchors = [Boxes(torch.tensor([[0.0, 0.0, 6.0, 9.0], [0.0, 0.0, 6.0 + 2**-21, 9.0]]))]
    for least, kept in ((6.0, 1), (5.9999, 2), (0.0, 2)):
        (found,) = adapters._predict_proposals(
            Rpn(min_box_size=least, nms_thresh=1.0), anchors, [torch.zeros(1, 2)], [torch.zeros(1, 2, 4)], [SIZE]
        )
        assert len(found.proposal_boxes) == kept


def test_a_diverged_training_is_detectron2s(recorded: dict[str, Tensor]) -> None:
    logits = [level.clone() for level in levels_of(recorded, "logits")]
    logits[1][0, 3] = math.nan
    arguments = anchors_of(recorded), logits, levels_of(recorded, "deltas"), [SIZE]
    assert adapters._predict_proposals(Rpn(training=True), *arguments) is NotImplemented
    assert len(adapters._predict_proposals(Rpn(), *arguments)) == 1


def test_labels_are_the_recorded_ones(recorded: dict[str, Tensor]) -> None:
    instances = [
        Instances(SIZE, gt_boxes=Boxes(recorded["gt_boxes"])),
        Instances(SIZE, gt_boxes=Boxes(torch.zeros(0, 4))),
    ]
    labels, matched = adapters._label_and_sample_anchors(Rpn(), anchors_of(recorded), instances)
    objects = recorded["labels"] == 1
    assert objects.any()
    assert torch.equal(labels[0], recorded["labels"])
    assert torch.equal(matched[0][objects], recorded["matched"][objects])
    assert not labels[1].any()
    assert not matched[1].any()


def test_detections_are_the_recorded_ones(recorded: dict[str, Tensor]) -> None:
    predictions = recorded["class_logits"], recorded["box_deltas"]
    proposals = [Instances(SIZE, proposal_boxes=Boxes(recorded["rois"]))]
    (found,), (kept,) = adapters._inference(FastRCNNOutputLayers(), predictions, proposals)
    assert len(recorded["scores"]) == 12
    assert torch.equal(found.pred_classes, recorded["classes"])
    assert torch.equal(kept, recorded["kept"])
    torch.testing.assert_close(found.scores, recorded["scores"], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.pred_boxes.tensor, recorded["boxes"], rtol=0, atol=2e-5)


def test_regions_are_pooled_on_their_level() -> None:
    g = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, 3, 64 // s, 64 // s, generator=g) for s in (4, 8)]
    corner = torch.rand(6, 2, generator=g) * 150
    rois = torch.cat([corner, corner + 60], 1)
    pooler = SimpleNamespace(
        level_poolers=[ROIAlign(1 / 4), ROIAlign(1 / 8)], output_size=(5, 5), canonical_box_size=56, canonical_level=3
    )
    found = adapters._pool(pooler, maps, [Boxes(rois[:4]), Boxes(rois[4:])])
    coarse = ops.roi_align(maps[1], [rois[:4], rois[4:]], 5, 1 / 8, 0, True)  # 60 pixels: one level above 56's
    assert torch.equal(found, coarse)


@pytest.mark.parametrize(
    "change",
    [
        {"box2box_transform": SimpleNamespace()},
        {"use_sigmoid_ce": True},
        {"test_topk_per_image": -1},
        {"predict_probs": None},
    ],
)
def test_other_heads_are_detectron2s(recorded: dict[str, Tensor], change: dict[str, Any]) -> None:
    head = type("Head", (FastRCNNOutputLayers,), change)()
    proposals = [Instances(SIZE, proposal_boxes=Boxes(recorded["rois"]))]
    predictions = recorded["class_logits"], recorded["box_deltas"]
    assert adapters._inference(head, predictions, proposals) is NotImplemented
    subclass = [Instances(SIZE, proposal_boxes=type("RotatedBoxes", (Boxes,), {})(recorded["rois"]))]
    assert adapters._inference(FastRCNNOutputLayers(), predictions, subclass) is NotImplemented


def test_a_missing_detectron2_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="put its source tree on PYTHONPATH"):
        frcnn_fast.patch_detectron2()
