"""NMS by itself: dynamic, class by class, and padded with early exit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench import competitors, depth
from bench.case import Case, Competitor, Row
from bench.checks import equal_to_reference
from bench.competitors import runtimes
from bench.workloads import FIELDS, THRESHOLD, flat_boxes
from frcnn_fast import ops

FAMILY, PLACE = "NMS", 1


def _nms(field: str, N: int) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        boxes, scores = (t.to(device) for t in flat_boxes(field, N))

        def run(backend: str | None = None) -> Any:
            return ops.nms(boxes, scores, THRESHOLD, backend=backend)

        against: dict[str, Competitor] = {}
        if not competitors.torchvision_missing:
            import torchvision.ops as tv

            against["torchvision"] = Competitor(lambda: tv.nms(boxes, scores, THRESHOLD))
        if device == "cpu":
            against |= runtimes.nms(boxes, scores, THRESHOLD)
        facts = depth.of_nms(boxes, scores, run(), THRESHOLD)
        flops = depth.PAIR_FLOPS * depth.pairs(facts["kept"], N)
        # Its result has as many rows as boxes are kept: the host must wait for the count.
        return Case(run, equal_to_reference(run), against, 20 * N + 8 * facts["kept"], flops, facts, fixed_shape=False)

    return make


def _nms_spread(N: int) -> Callable[[str], Case]:
    """Boxes that hardly overlap, so that nearly all are kept: a peer's time would grow with N squared."""

    def make(device: str) -> Case:
        generator = torch.Generator().manual_seed(0)
        centre = torch.rand(N, 2, generator=generator) * 10 * N**0.5
        side = torch.rand(N, 2, generator=generator) * 30 + 10
        boxes = torch.cat([centre - side / 2, centre + side / 2], 1).to(device)
        scores = torch.rand(N, generator=generator).to(device)

        def run(backend: str | None = None) -> Any:
            return ops.nms(boxes, scores, THRESHOLD, backend=backend)

        def check(kept: Any) -> None:
            """The first of them, by a list that is met whole."""
            one_class = torch.zeros(1, N, dtype=torch.int64, device=device)
            first, _ = ops.nms_padded(boxes[None], scores[None], THRESHOLD, 5000, class_ids=one_class)
            assert torch.equal(kept[:5000], first[0])

        facts = {"of": N, "kept": len(run())}
        return Case(run, check, {}, 20 * N + 8 * facts["kept"], depth.PAIR_FLOPS * N, facts, fixed_shape=False)

    return make


def _batched_nms(N: int, classes: int) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        boxes, scores = (t.to(device) for t in flat_boxes("trained", N))
        ids = torch.randint(classes, (N,), generator=torch.Generator().manual_seed(1)).to(device)

        def run(backend: str | None = None) -> Any:
            return ops.batched_nms(boxes, scores, ids, THRESHOLD, backend=backend)

        against: dict[str, Competitor] = {}
        if not competitors.torchvision_missing:
            import torchvision.ops as tv

            against["torchvision"] = Competitor(lambda: tv.batched_nms(boxes, scores, ids, THRESHOLD))
        keep = run()
        count = torch.bincount(ids, minlength=classes).tolist()
        kept = torch.bincount(ids[keep], minlength=classes).tolist()
        flops = depth.PAIR_FLOPS * sum(map(depth.pairs, kept, count))
        facts = {"of": N, "kept": len(keep), "depth": depth.last_rank(scores, keep), "classes": classes}
        return Case(run, equal_to_reference(run), against, 28 * N + 8 * len(keep), flops, facts, fixed_shape=False)

    return make


def _nms_padded(field: str, N: int, n: int) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        boxes, scores = (t.to(device) for t in flat_boxes(field, N))

        def run(backend: str | None = None) -> Any:
            return ops.nms_padded(boxes[None], scores[None], THRESHOLD, n, backend=backend)

        keep, count = run()
        facts = depth.of_nms(boxes, scores, keep[0, : int(count)], THRESHOLD)
        against: dict[str, Competitor] = {}
        if not competitors.torchvision_missing:
            import torchvision.ops as tv

            from bench.competitors.torchvision_steps import nms_to_depth

            against["torchvision"] = Competitor(lambda: tv.nms(boxes, scores, THRESHOLD)[:n])
            against["torchvision, to the depth needed"] = nms_to_depth(boxes, scores, facts["depth"])
        flops = depth.PAIR_FLOPS * depth.pairs(facts["kept"], facts["depth"])
        return Case(run, equal_to_reference(run), against, 4 * N + 16 * facts["depth"] + 8 * n, flops, facts)

    return make


def _soft_nms(method: str, N: int, n: int) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        boxes, scores = (t.to(device) for t in flat_boxes("trained", N))
        scores = scores.sigmoid()

        def run(backend: str | None = None) -> Any:
            return ops.soft_nms(boxes[None], scores[None], n, method=method, backend=backend)

        kept = int(run().num_keep)
        flops = depth.PAIR_FLOPS * kept * N
        return Case(run, equal_to_reference(run), {}, 20 * N + 12 * n, flops, {"of": N, "kept": kept})

    return make


def _rows() -> Iterator[Row]:
    for N in (1, 10, 100, 1000, 3000, 6000, 12000, 20000):
        goal = {"cpu": 40.0 if N == 6000 else 1.0}
        headline = N in (100, 1000, 6000)
        yield Row(
            "nms", f"{N} boxes trained", _nms("trained", N), goal=goal, headline=headline, axis=("boxes (nms)", N)
        )
        goal = {"cpu": 10.0 if N == 6000 else 1.0}
        name = f"{N} boxes 80 classes"
        axis = ("boxes (batched_nms)", N)
        yield Row("batched_nms", name, _batched_nms(N, 80), goal=goal, headline=headline and N > 100, axis=axis)
    for N in (100_000, 1_000_000):
        yield Row("nms", f"{N} boxes spread", _nms_spread(N))
    for method in ("linear", "gaussian"):
        yield Row("soft_nms", f"1000->100 {method}", _soft_nms(method, 1000, 100))
    for field in FIELDS:
        if field != "trained":
            yield Row("nms", f"6000 boxes {field}", _nms(field, 6000))
        for N, n in ((6000, 300), (12000, 2000)):
            yield Row("nms_padded", f"{N}->{n} {field}", _nms_padded(field, N, n), headline=field == "trained")


ROWS = tuple(_rows())
