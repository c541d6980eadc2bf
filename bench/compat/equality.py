"""mmdetection's models over our functions and over torchvision's: the same detections, losses and gradients; and times.

mmcv's own compiled half cannot be there. torchvision's operators stand for it, as mmcv's RoIAlign itself offers.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import frcnn_fast
from bench.compat import models

MODELS = (
    "faster_rcnn/faster-rcnn_r50_fpn_1x_coco",
    "retinanet/retinanet_r50_fpn_1x_coco",
    "mask_rcnn/mask-rcnn_r50_fpn_1x_coco",
    "dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco",
)
REPLACED = ("nms", "roi_align_forward", "roi_align_backward")


@contextlib.contextmanager
def torchvisions() -> Iterator[None]:
    """In the block, those functions of mmcv's are torchvision's operators."""
    import mmcv._ext
    import torchvision

    def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
        assert offset == 0
        return torchvision.ops.nms(boxes, scores, iou_threshold)

    def roi_align_forward(input: Tensor, rois: Tensor, output: Tensor, *_: Tensor, **named: Any) -> None:
        size = named["aligned_height"], named["aligned_width"]
        output.copy_(
            torchvision.ops.roi_align(
                input, rois, size, named["spatial_scale"], named["sampling_ratio"] or -1, named["aligned"]
            )
        )

    def roi_align_backward(
        grad: Tensor, rois: Tensor, _y: Tensor, _x: Tensor, grad_input: Tensor, **named: Any
    ) -> None:
        grad_input.copy_(
            torch.ops.torchvision._roi_align_backward(
                grad, rois, named["spatial_scale"], named["aligned_height"], named["aligned_width"],
                *grad_input.shape, named["sampling_ratio"] or -1, named["aligned"],
            )
        )  # fmt: skip

    theirs = {f.__name__: f for f in (nms, roi_align_forward, roi_align_backward)}
    ours = {name: getattr(mmcv._ext, name) for name in theirs}
    try:
        vars(mmcv._ext).update(theirs)
        yield
    finally:
        vars(mmcv._ext).update(ours)


def compare(name: str, size: tuple[int, int], rounds: int = 3) -> dict[str, Any]:
    """Equal: the same labels in the same order, boxes and scores and masks close, the loss and its gradients close."""
    with frcnn_fast.stand_in_for_mmcv():
        model = models.build(name + ".py", decided=True)
        seconds: dict[str, list[float]] = {"inference": [], "training": []}
        theirs: dict[str, list[float]] = {"inference": [], "training": []}
        found: list[tuple[Any, Any]] = []
        for _ in range(rounds):
            ours_now = results(model, size, seconds)
            with torchvisions():
                found.append((ours_now, results(model, size, theirs)))
    (detections, gradients), (wanted, wanted_gradients) = found[0]
    same = len(detections) == len(wanted) > 0 and torch.equal(detections.labels, wanted.labels)
    boxes = float((detections.bboxes - wanted.bboxes).abs().max()) if same else float("inf")
    scores = float((detections.scores - wanted.scores).abs().max()) if same else float("inf")
    far = max(
        float((gradients[key] - value).norm() / value.norm().clamp(min=1e-12))
        for key, value in wanted_gradients.items()
    )
    return {
        "subject": name,
        "against": "torchvision's operators in the same places",
        "replaced": list(REPLACED),
        "equal": bool(same and boxes < 1e-3 and scores < 1e-5 and far < 1e-4),
        "detections": len(wanted),
        "largest": {"box, pixels": boxes, "score": scores, "gradient, relative": far},
        "ratio": {
            what: round(statistics.median(theirs[what]) / statistics.median(seconds[what]), 2) for what in seconds
        },
    }


def results(model: Any, size: tuple[int, int], seconds: dict[str, list[float]]) -> tuple[Any, dict[str, Tensor]]:
    """The detections of one image, and the gradients of the loss of two."""

    def timed(what: str, step: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = step()
        seconds[what].append(time.process_time() - start)
        return result

    model.eval()
    data = models.batch(size)
    with torch.no_grad():
        detections = timed("inference", lambda: model.test_step(data))[0].pred_instances
    model.train()
    model.zero_grad()
    torch.manual_seed(1)  # of the samplers
    batch = model.data_preprocessor(models.batch(size, images=2, seed=1), True)

    def train() -> None:
        model.parse_losses(model(**batch, mode="loss"))[0].backward()

    timed("training", train)
    return detections, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
