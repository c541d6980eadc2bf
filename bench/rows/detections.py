"""The last step: softmax, per-class decoding, threshold, NMS class by class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench import competitors
from bench.case import Case, Competitor, Row
from bench.checks import equal_to_reference
from bench.rows.proposals import DECODE_FLOPS
from bench.workloads import VGG, classified
from frcnn_fast import ops

SCORE, IOU = 0.05, 0.5
SOFTMAX_FLOPS = 25


FAMILY, PLACE = "detections", 6


def _case(N: int, classes: int, B: int) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        logits, deltas, proposals = (t.to(device) for t in classified(N, classes, B))
        proposals[..., 0::2].clamp_(max=VGG.width)
        proposals[..., 1::2].clamp_(max=VGG.height)
        counts = torch.full((B,), N, device=device)
        sizes = torch.tensor([[VGG.height, VGG.width]], dtype=torch.float32).repeat(B, 1).to(device)

        def run(backend: str | None = None) -> Any:
            return ops.detections(
                logits,
                deltas,
                proposals,
                counts,
                sizes,
                score_threshold=SCORE,
                iou_threshold=IOU,
                min_size=1e-2,
                backend=backend,
            )

        against: dict[str, Competitor] = {}
        if not competitors.torchvision_missing:
            from bench.competitors.torchvision_steps import detections

            against["torchvision"] = Competitor(detections(logits, deltas, proposals, (VGG.height, VGG.width), IOU))
        candidates = int((logits.softmax(-1)[..., 1:] > SCORE).sum())
        facts = {"candidates": candidates, "detections": run().counts.tolist()}
        moved = logits.nbytes + 16 * candidates + 16 * B * N + 32 * B * 100
        flops = SOFTMAX_FLOPS * logits.numel() + DECODE_FLOPS * candidates
        return Case(run, equal_to_reference(run), against, moved, flops, facts)

    return make


def _rows() -> Iterator[Row]:
    for classes in (21, 91):
        name = f"300 rois {classes} classes"
        yield Row("detections", f"{name} b1", _case(300, classes, 1), goal={"cpu": 10.0}, headline=True)
        yield Row("detections", f"{name} b8", _case(300, classes, 8))
    for N in (1, 10, 100):
        yield Row("detections", f"{N} rois 21 classes b1", _case(N, 21, 1), goal={"cpu": 1.0})


ROWS = tuple(_rows())
