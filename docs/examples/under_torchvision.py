"""torchvision's own detector, unchanged, with our ops under it: the same boxes, sooner.

pip install 'frcnn_fast[torchvision]' ; python docs/examples/under_torchvision.py
"""

import time

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import frcnn_fast


def main() -> None:
    torch.manual_seed(0)
    # Any detector of torchvision's; this one is small and has random weights.
    backbone = nn.Sequential(nn.Conv2d(3, 32, 5, 4, 2), nn.ReLU(), nn.Conv2d(32, 64, 5, 4, 2), nn.ReLU())
    backbone.out_channels = 64  # type: ignore[assignment]  # what torchvision asks for
    anchors, pool = AnchorGenerator(((32, 64, 128),), ((0.5, 1.0, 2.0),)), MultiScaleRoIAlign(["0"], 7, 2)
    model = FasterRCNN(backbone, 5, min_size=240, rpn_anchor_generator=anchors, box_roi_pool=pool).eval()
    for layer in (model.rpn.head.cls_logits, model.roi_heads.box_predictor.cls_score):
        nn.init.normal_(layer.weight, std=1.0)  # else all scores were alike, and their order chance
    images = [torch.rand(3, 240, 320)]
    with torch.no_grad():
        before = timed(model, images)
        with frcnn_fast.patch_torchvision():
            after = timed(model, images)
    assert torch.equal(before["labels"], after["labels"])
    assert torch.allclose(before["boxes"], after["boxes"], atol=1e-2)
    print(f"{len(after['boxes'])} detections, the same")


def timed(model: torch.nn.Module, images: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    model(images)  # the first call allocates
    start = time.perf_counter()
    (found,) = model(images)
    print(f"{1e3 * (time.perf_counter() - start):.1f} ms")
    return found


if __name__ == "__main__":
    main()
