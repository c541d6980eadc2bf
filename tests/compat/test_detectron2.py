"""detectron2 from its source tree (DETECTRON2_ROOT), unmodified and with nothing compiled, with our steps under it."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import frcnn_fast
from frcnn_fast import ops

ROOT = os.environ.get("DETECTRON2_ROOT")
if ROOT:
    sys.path.insert(0, ROOT)
if importlib.util.find_spec("detectron2") is None:
    pytest.skip("detectron2: DETECTRON2_ROOT names no source tree", allow_module_level=True)

from detectron2.config import get_cfg  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402

SERVED = ("rpn_proposals", "assign_anchors", "multiscale_roi_align", "detections")


@pytest.fixture(scope="module")
def model() -> Any:
    assert ROOT is not None
    cfg = get_cfg()
    cfg.merge_from_file(os.path.join(ROOT, "configs/COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        # Without trained weights the maps are in the thousands, and deltas with them: nothing would be left of NMS.
        for name, parameter in model.backbone.named_parameters():
            if name.startswith("fpn_output"):
                parameter.mul_(1e-3)
        # All scores would be near 1/81.
        torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.1)
    return model


def images(with_objects: bool) -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(4)
    found = []
    for height, width in ((160, 200), (144, 216)):
        entry: dict[str, Any] = {"image": torch.randint(0, 256, (3, height, width), generator=g, dtype=torch.uint8)}
        if with_objects:
            corner = torch.rand(5, 2, generator=g) * 90
            boxes = Boxes(torch.cat([corner, corner + 20 + torch.rand(5, 2, generator=g) * 40], 1))
            entry["instances"] = Instances((height, width), gt_boxes=boxes, gt_classes=torch.arange(5))
        found.append(entry)
    return found


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    called: set[str] = set()

    def spy(name: str, op: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            called.add(name)
            return op(*args, **kwargs)

        return call

    for name in SERVED:
        monkeypatch.setattr(ops, name, spy(name, getattr(ops, name)))
    return called


def losses_and_gradients(model: Any) -> tuple[dict[str, Tensor], list[Tensor]]:
    model.train()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    with EventStorage():
        losses = model(images(True))
    sum(losses.values()).backward()
    return losses, [p.grad for p in model.parameters() if p.grad is not None]


def test_training_is_the_same(model: Any, served: set[str]) -> None:
    theirs, their_gradients = losses_and_gradients(model)
    with frcnn_fast.patch_detectron2():
        ours, our_gradients = losses_and_gradients(model)
    assert {"rpn_proposals", "assign_anchors", "multiscale_roi_align"} <= served
    for name in ("loss_rpn_cls", "loss_rpn_loc"):
        assert torch.equal(ours[name], theirs[name]), name
    for name, loss in theirs.items():
        torch.testing.assert_close(ours[name], loss, rtol=1e-5, atol=1e-6)
    for a, b in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


@torch.no_grad()
def test_detections_are_the_same(model: Any, served: set[str]) -> None:
    model.eval()
    theirs = model(images(False))
    with frcnn_fast.patch_detectron2():
        ours = model(images(False))
    assert {"rpn_proposals", "multiscale_roi_align", "detections"} <= served
    for a, b in zip(ours, theirs, strict=True):
        a, b = a["instances"], b["instances"]
        assert len(b) > 20
        assert torch.equal(a.pred_classes, b.pred_classes)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=0, atol=1e-3)


def test_a_scripted_proposal_network_is_detectron2s() -> None:
    """What torch.jit.script compiles while patched is detectron2's own code."""
    from detectron2.modeling.proposal_generator.rpn import RPN

    with frcnn_fast.patch_detectron2():
        replaced = RPN.predict_proposals
    assert replaced.__wrapped__ is RPN.predict_proposals  # type: ignore[attr-defined]
