"""The runtimes that the benchmark measures us against answer as we do, where their conventions are ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.competitors import runtimes
from bench.workloads import THRESHOLD, VGG, flat_boxes, rois, scene
from frcnn_fast import ops

pytestmark = pytest.mark.skipif(
    not {runtimes.OPENVINO, runtimes.ONNXRUNTIME, runtimes.OPENCV}.difference(
        reason.split(":")[0] for reason in runtimes.missing()
    ),
    reason="none of the runtimes is installed (`make bench-env`)",
)
KEPT = {
    runtimes.OPENVINO: lambda rows: rows[0][: int(rows[2][0]), 2],
    runtimes.ONNXRUNTIME: lambda rows: rows[0][:, 2],
    runtimes.OPENCV: lambda indices: indices,
}


@pytest.mark.parametrize("field", ["trained", "random", "low_overlap"])
@pytest.mark.parametrize("N", [1, 1000])
def test_nms(field: str, N: int) -> None:
    boxes, scores = flat_boxes(field, N)
    exists = (boxes[:, 2:] > boxes[:, :2]).all(1)  # of boxes without area OpenCV keeps one
    boxes, scores = boxes[exists], scores[exists]
    wanted = ops.nms(boxes, scores, THRESHOLD).tolist()
    for who, competitor in runtimes.nms(boxes, scores, THRESHOLD).items():
        assert KEPT[who](competitor.call()).tolist() == wanted, who


@pytest.mark.parametrize("op", ["roi_pool", "roi_align"])
def test_pooling(op: str) -> None:
    features, regions = torch.randn(2, 16, *VGG.maps[0]), rois(20, B=2)
    options: dict[str, Any] = {"sampling_ratio": 2} if op == "roi_align" else {}
    wanted = getattr(ops, op)(features, regions, 7, spatial_scale=1 / 16, **options)
    for who, competitor in runtimes.pooled(op, features, regions, 7, 1 / 16).items():
        found = torch.as_tensor(competitor.call()[0])
        torch.testing.assert_close(found, wanted, msg=lambda text, who=who: f"{who}: {text}")


@pytest.mark.skipif(bool(runtimes.openvino_missing), reason=runtimes.openvino_missing or "OpenVINO is there")
def test_proposals_are_ours_half_a_stride_further() -> None:
    s = scene(VGG, "trained", 1)
    (competitor,) = runtimes.proposals(VGG, s.logits, s.deltas, 6000, 300, THRESHOLD).values()
    boxes: Tensor = torch.as_tensor(competitor.call()[0])[:, 1:]
    ours = ops.rpn_proposals(
        s.logits, s.deltas, VGG.grids("cpu"), s.image_sizes, pre_nms_top_n=6000, post_nms_top_n=300,
        iou_threshold=THRESHOLD, min_size=1.0,
    )  # fmt: skip
    assert len(boxes) == 300
    first = ours.boxes[0, 0] + VGG.strides[0] / 2
    torch.testing.assert_close(boxes[0], first.clamp(max=VGG.width - 1), atol=1.5, rtol=0)
