"""From the small to the whole: proposals for a real photograph against Selective Search, and a VGG-16 detector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import frcnn_fast
from bench import competitors
from bench.case import Call, Case, Competitor, Row, Unavailable
from bench.checks import equal, equal_to_reference
from bench.workloads import THRESHOLD, VGG, Shape, scene
from frcnn_fast import ops

FAMILY, PLACE = "whole", 8

PAPER_PROPOSALS_MS = 10.0  # Ren et al. 2015, table 5: the proposal step of VGG-16 on a K40
PAPER_DETECTOR_MS = 198.0  # and the whole detector


def _photograph(device: str) -> Case:
    reason = competitors.selective_search_missing()
    photographs = competitors.photographs()
    if reason or not photographs:
        raise Unavailable(reason or "FRCNN_DATA is not set or has no photographs")
    import cv2

    from bench.competitors.selective_search import competitors as searches

    height, width = cv2.imread(str(photographs[0])).shape[:2]
    scale = min(600 / min(height, width), 1000 / max(height, width))
    shape = Shape("photograph", round(height * scale), round(width * scale), VGG.sizes, VGG.strides)
    s = scene(shape).to(device)
    grids = shape.grids(device)

    def run(backend: str | None = None) -> Any:
        return ops.rpn_proposals(
            s.logits,
            s.deltas,
            grids,
            s.image_sizes,
            pre_nms_top_n=6000,
            post_nms_top_n=300,
            iou_threshold=THRESHOLD,
            min_size=16.0,
            backend=backend,
        )

    against: dict[str, Competitor] = searches(photographs[0])
    facts = {
        "photograph": f"{photographs[0].name}, {width}x{height}",
        "network input": f"{shape.width}x{shape.height}",
        "kept": run()[3].tolist(),
        "note": "ours: the proposal step alone, on outputs like a trained network's; Selective Search is all it takes",
        "paper, proposals on a K40, ms": PAPER_PROPOSALS_MS,
    }
    return Case(run, equal_to_reference(run), against, facts=facts)


def _detector(device: str) -> Case:
    from frcnn_fast.model import build_detector

    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    detector = build_detector([str(i) for i in range(20)]).to(device).eval()
    for module in detector.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):  # boxes and anchors stay float32
            module.to(torch.bfloat16)
    g = torch.Generator().manual_seed(1)
    images = torch.randn(1, 3, VGG.height, VGG.width, generator=g).mul(60).to(device, torch.bfloat16)
    images = images.contiguous(memory_format=torch.channels_last)
    sizes = torch.tensor([[VGG.height, VGG.width]], dtype=torch.float32, device=device)
    scales = torch.ones(1, device=device)

    def run() -> Any:
        with torch.inference_mode():
            return tuple(detector(images, sizes, image_scales=scales))

    _make_decided(detector.roi_head.cls_score, run)

    def check(got: Any) -> None:
        with frcnn_fast.use_backend("reference"):
            equal(got, run(), "the reference")

    facts = {"weights": "random", "detections": run()[3].tolist(), "paper on a K40, ms": PAPER_DETECTOR_MS}
    return Case(run, check, {}, bytes=739_000_000, flops=449_000_000_000, facts=facts)


def _make_decided(layer: nn.Linear, run: Call) -> None:
    """Random weights find nothing likely, and the last step would have nothing to do: spreads the class scores."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    run()
    hook.remove()
    with torch.no_grad():
        layer.weight.mul_(2.0 / seen[0].float().std())


def _rows() -> Iterator[Row]:
    yield Row("proposals of a photograph", "vgg test 6000->300", _photograph, headline=True)
    goal = {"cuda": 1500.0}
    yield Row("detector", "vgg16 600x1000 bfloat16 b1", _detector, goal=goal, backends=("cuda",), headline=True)


ROWS = tuple(_rows())
