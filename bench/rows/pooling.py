"""RoI features: RoIPool, RoIAlign and precise pooling on a VGG map, RoIAlign over a pyramid; forward, and forward with
backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import frcnn_fast
from bench import competitors
from bench.case import Call, Case, Competitor, Row
from bench.checks import close_to, equal_to_reference
from bench.competitors import runtimes
from bench.workloads import FPN, VGG, rois
from frcnn_fast import ops

FAMILY, PLACE = "pooling", 5

BINS = 7
CHANNELS = 512
SCALE = 1 / 16


def _features(shape: tuple[int, ...], device: str, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return x.to(device).contiguous(memory_format=layout)


def _single_level(
    op: str, K: int, B: int, backward: bool, channels_last: bool, *, largest: bool = False, boxes: bool = False
) -> Callable[[str], Case]:
    """largest: RoIAlign's maxima, boxes: its gradient of the boxes as well; torchvision has neither."""

    def make(device: str) -> Case:
        height, width = VGG.maps[0]
        x = _features((B, CHANNELS, height, width), device, channels_last)
        regions = rois(K, B).to(device)
        gradient = _features((K, CHANNELS, BINS, BINS), device, False)
        options: dict[str, Any] = {"sampling_ratio": 2} if op == "roi_align" else {}
        options |= {"mode": "max"} if largest else {}
        options |= {"box_gradients": True} if boxes else {}

        def forward(function: Any, x: Tensor, regions: Tensor) -> Tensor:
            return function(x, regions, BINS, spatial_scale=SCALE, **options)

        def both(function: Any, x: Tensor, regions: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
            leaves = [x.detach().requires_grad_(), regions.detach().requires_grad_(boxes or op == "prroi_pool")]
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            return torch.autograd.grad(forward(function, *leaves), wanted, gradient)

        def call_of(function: Any) -> Call:
            if backward:
                return lambda: both(function, x, regions, gradient)
            return lambda: forward(function, x, regions)

        def wanted() -> Any:
            # On the CPU, where autograd works in this thread and so inside this block.
            with frcnn_fast.use_backend("reference"):
                if backward:
                    return both(getattr(ops, op), x.cpu(), regions.cpu(), gradient.cpu())
                return forward(getattr(ops, op), x.cpu(), regions.cpu())

        exact = op == "prroi_pool" or ((op == "roi_pool" or largest) and not backward)
        check = equal_to_reference(lambda _: wanted()) if exact else close_to(wanted)
        against: dict[str, Competitor] = {}
        if not competitors.torchvision_missing and op != "prroi_pool" and not largest and not boxes:
            import torchvision.ops as tv

            against["torchvision"] = Competitor(call_of(getattr(tv, op)))
        if device == "cpu" and op != "prroi_pool" and not largest and not backward:
            against |= runtimes.pooled(op, x, regions, BINS, SCALE)
        moved = 4 * (x.numel() + K * CHANNELS * BINS * BINS) * (2 if backward else 1)
        each = {"roi_pool": _cells(regions), "roi_align": K * BINS * BINS * 4 * 8, "prroi_pool": 2 * _touched(regions)}
        # The gradient of the RoIs takes three sums of a cell.
        flops = CHANNELS * each[op] * ((5 if op == "prroi_pool" or boxes else 2) if backward else 1)
        return Case(call_of(getattr(ops, op)), check, against, moved, flops, fixed_shape=not backward)

    return make


def _cells(regions: Tensor) -> int:
    """Map cells that lie in the regions."""
    corners = (regions[:, 1:] * SCALE).round()
    return int(((corners[:, 2] - corners[:, 0] + 1) * (corners[:, 3] - corners[:, 1] + 1)).sum())


def _touched(regions: Tensor) -> int:
    """Map cells that the bins touch, most of them in the bins of both sides."""
    sides = (regions[:, 3:] - regions[:, 1:3]) * SCALE + 2 * BINS
    return int(sides.prod(1).sum())


def _pyramid(
    K: int, channels: int, channels_last: bool, memory_format: torch.memory_format | None = None
) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        scales = [1 / s for s in FPN.strides[:4]]
        features = [_features((1, channels, *size), device, channels_last) for size in FPN.maps[:4]]
        regions = rois(K, shape=FPN).to(device)

        def run(backend: str | None = None) -> Any:
            return ops.multiscale_roi_align(
                features, regions, BINS, scales, 2, memory_format=memory_format, backend=backend
            )

        against: dict[str, Competitor] = {}
        if not competitors.torchvision_missing:
            import torchvision.ops as tv

            pool = tv.MultiScaleRoIAlign([str(i) for i in range(4)], BINS, 2)
            named = {str(i): f for i, f in enumerate(features)}
            boxes, size = [regions[:, 1:].contiguous()], [(FPN.height, FPN.width)]
            against["torchvision"] = Competitor(lambda: pool(named, boxes, size))
        samples = K * channels * BINS * BINS * 4
        return Case(run, close_to(lambda: run("reference")), against, 4 * (samples // 4 + samples * 4), samples * 8)

    return make


def _rows() -> Iterator[Row]:
    for op, forward_times, both_times in (("roi_pool", 8.0, 4.0), ("roi_align", 4.0, 4.0)):
        for last in (False, True):
            layout = " channels_last" if last else ""
            for K in (300, 2000):
                main = K == 300
                goal = (
                    {"cpu": forward_times, **({"cuda": 15.0} if op == "roi_pool" and not last else {})} if main else {}
                )
                make = _single_level(op, K, 1, False, last)
                yield Row(op, f"{K} rois forward{layout}", make, goal=goal, headline=not last, axis=_axis(op, K, last))
                goal = {"cpu": both_times} if main else {}
                make = _single_level(op, K, 1, True, last)
                yield Row(op, f"{K} rois forward+backward{layout}", make, goal=goal, headline=not last and main)
        for K in (1, 10, 100):
            make = _single_level(op, K, 1, False, False)
            yield Row(op, f"{K} rois forward", make, goal={"cpu": 1.0}, axis=_axis(op, K, False))
        yield Row(op, "2400 rois forward b8", _single_level(op, 2400, 8, False, False))
    for last in (False, True):
        layout = " channels_last" if last else ""
        for backward in (False, True):
            work = f"forward{'+backward' if backward else ''}{layout}"
            yield Row("prroi_pool", f"300 rois {work}", _single_level("prroi_pool", 300, 1, backward, last))
            make = _single_level("roi_align", 300, 1, backward, last, largest=True)
            yield Row("roi_align", f"300 rois maxima {work}", make)
        make = _single_level("roi_align", 300, 1, True, last, boxes=True)
        yield Row("roi_align", f"300 rois forward+backward with boxes{layout}", make)
    yield Row("multiscale_roi_align", "1000 rois 256 channels", _pyramid(1000, 256, False), headline=True)
    yield Row("multiscale_roi_align", "1000 rois 256 channels channels_last", _pyramid(1000, 256, True))
    make = _pyramid(1000, 256, True, torch.contiguous_format)
    yield Row("multiscale_roi_align", "1000 rois 256 channels channels_last to contiguous", make)


def _axis(op: str, K: int, channels_last: bool) -> tuple[str, int] | None:
    return None if channels_last else (f"RoIs ({op})", K)


ROWS = tuple(_rows())
