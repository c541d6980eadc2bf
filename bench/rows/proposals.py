"""The proposal step: VGG and FPN, test and training settings, all score fields, batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bench import competitors, depth
from bench.case import Case, Competitor, Row
from bench.checks import equal_to_reference
from bench.competitors import runtimes
from bench.workloads import FIELDS, FPN, THRESHOLD, VGG, Shape, head_maps, scene
from frcnn_fast import ops

FAMILY, PLACE = "proposals", 0

MIN_SIZE = 1e-3
DECODE_FLOPS = 30


def _case(
    shape: Shape,
    field: str,
    B: int,
    before: int,
    after: int,
    filter_order: str = "after_top_n",
    maps: bool = False,
) -> Callable[[str], Case]:
    """maps: from the head's maps, not from tables; torchvision's time begins with the tables nevertheless."""

    def make(device: str) -> Case:
        s = scene(shape, field, B).to(device)
        grids = shape.grids(device)
        head: tuple[Any, Any] = (s.logits, s.deltas)
        if maps:
            head = head_maps(shape, s.logits), head_maps(shape, s.deltas)

        def run(backend: str | None = None) -> Any:
            return ops.rpn_proposals(
                *head,
                grids,
                s.image_sizes,
                pre_nms_top_n=before,
                post_nms_top_n=after,
                iou_threshold=THRESHOLD,
                min_size=MIN_SIZE,
                filter_order=filter_order,
                backend=backend,
            )

        against: dict[str, Competitor] = {}
        if not competitors.torchvision_missing:
            from bench.competitors.torchvision_steps import Rpn

            against["torchvision"] = Competitor(Rpn.of(s, before, after, MIN_SIZE).proposals)
        if device == "cpu" and B == 1:
            against |= runtimes.proposals(shape, s.logits, s.deltas, before, after, THRESHOLD)
        _, _, indices, counts = run()
        facts = depth.of_proposals(s.logits, indices, counts, shape.level_sizes)
        return Case(
            run,
            equal_to_reference(run),
            against,
            bytes=s.logits.nbytes + 16 * facts["depth"] + 28 * B * after,
            flops=s.logits.numel() + DECODE_FLOPS * facts["depth"] + depth.PAIR_FLOPS * facts["pairs"],
            facts=facts,
        )

    return make


def _rows() -> Iterator[Row]:
    for shape, kind, before, after, times, graph_us in (
        (VGG, "test", 6000, 300, 300.0, 15.0),
        (VGG, "train", 12000, 2000, 80.0, 70.0),
        (FPN, "test", 1000, 1000, 20.0, 25.0),
        (FPN, "train", 2000, 2000, 20.0, None),
    ):
        name = f"{shape.name} {kind} {before}->{after}"
        for field in FIELDS:
            if shape is FPN and field == "chain":  # its anchors outnumber the places on the snake
                continue
            main = field == "trained"
            goal = {"cpu": times, **({"cuda": graph_us} if graph_us else {})} if main else {}
            axis = (f"images ({name})", 1) if main else None
            make = _case(shape, field, 1, before, after)
            yield Row("rpn_proposals", f"{name} b1 {field}", make, goal=goal, headline=main, axis=axis)
        # The paper's order, and so our detector's; torchvision has the other one alone.
        make = _case(shape, "trained", 1, before, after, "before_top_n")
        yield Row("rpn_proposals", f"{name} b1 trained before_top_n", make, headline=shape is VGG)
        if kind == "test":
            make = _case(shape, "trained", 1, before, after, maps=True)
            yield Row("rpn_proposals", f"{name} b1 trained NCHW maps", make)
        for B in (2, 4, 8):
            make = _case(shape, "trained", B, before, after)
            yield Row("rpn_proposals", f"{name} b{B} trained", make, headline=B == 8, axis=(f"images ({name})", B))


ROWS = tuple(_rows())
