"""Records what detectron2's own code answers: `DETECTRON2_ROOT=... python -m tests.compat.record_detectron2`.

tests/test_patch_detectron2.py holds the adapters to it where detectron2 is not installed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

PATH = Path(__file__).parents[1] / "recorded" / "detectron2.npz"
SIZE = (70, 90)
LEVELS = (48, 12)
CLASSES = 3


def boxes(g: torch.Generator, n: int) -> torch.Tensor:
    corner = torch.rand(n, 2, generator=g) * torch.tensor([80.0, 60.0])
    return torch.cat([corner, corner + 4 + torch.rand(n, 2, generator=g) * 30], 1)


def main() -> None:
    sys.path.insert(0, os.environ["DETECTRON2_ROOT"])
    from detectron2.modeling.box_regression import Box2BoxTransform
    from detectron2.modeling.matcher import Matcher
    from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
    from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
    from detectron2.structures import Boxes, pairwise_iou

    g = torch.Generator().manual_seed(3)
    record: dict[str, Any] = {}
    anchors = [boxes(g, n) for n in LEVELS]
    logits = [torch.randn(1, n, generator=g) for n in LEVELS]
    deltas = [torch.randn(1, n, 4, generator=g) * 0.3 for n in LEVELS]
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    decoded = [transform.apply_deltas(d[0], a)[None] for d, a in zip(deltas, anchors)]
    (found,) = find_top_rpn_proposals(decoded, logits, [SIZE], 0.7, 30, 20, 6.0, False)
    for level, (a, s, d) in enumerate(zip(anchors, logits, deltas)):
        record |= {f"anchors_{level}": a, f"logits_{level}": s, f"deltas_{level}": d}
    record |= {"proposals": found.proposal_boxes.tensor, "objectness": found.objectness_logits}

    gt_boxes = boxes(g, 4)
    matcher = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)
    index, labels = matcher(pairwise_iou(Boxes(gt_boxes), Boxes(torch.cat(anchors))))
    record |= {"gt_boxes": gt_boxes, "labels": labels, "matched": gt_boxes[index]}

    rois = boxes(g, 15)
    scores = torch.randn(15, CLASSES + 1, generator=g) * 2
    shifts = torch.randn(15, 4 * CLASSES, generator=g)
    head = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    (result,), (kept,) = fast_rcnn_inference(
        [head.apply_deltas(shifts, rois)], [scores.softmax(-1)], [SIZE], 0.1, 0.5, 12
    )
    record |= {"rois": rois, "class_logits": scores, "box_deltas": shifts, "boxes": result.pred_boxes.tensor}
    record |= {"scores": result.scores, "classes": result.pred_classes, "kept": kept}
    PATH.parent.mkdir(exist_ok=True)
    np.savez_compressed(PATH, **{name: value.numpy() for name, value in record.items()})


if __name__ == "__main__":
    main()
