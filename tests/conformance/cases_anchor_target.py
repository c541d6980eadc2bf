"""Cases of assign_anchors, sample_anchors, rpn_targets and sample_rois."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from frcnn_fast import reference

from .build import DTYPES, generator, integer_boxes, ints, random_boxes, strided, tensor, transposed, with_odd_boxes
from .cases_anchor_decode import ONE_LEVEL, PYRAMID, grids
from .harness import Args, Case, Grids, Op, simple_op


def _assign(
    B: int = 2,
    A: int = 400,
    G: int = 6,
    *,
    kind: str = "random",
    dtype: torch.dtype = torch.float32,
    counts: list[int] | None = None,
    crowd: float = 0.0,
    anchors: str = "shared",
    sizes: bool = False,
    **scalars: object,
) -> Args:
    g = generator(41, B, A, G)
    make = integer_boxes if "integer" in kind else random_boxes
    boxes = make(g, (A,) if anchors == "shared" else (B, A))
    objects = make(g, (B, G))
    if kind.startswith("odd"):
        boxes, objects = with_odd_boxes(g, boxes), with_odd_boxes(g, objects, 0.4)
    args: Args = {
        "anchors": tensor(boxes, dtype),
        "gt_boxes": tensor(objects, dtype),
        "gt_counts": ints(*(counts if counts is not None else [G] * B)),
    }
    if sizes:
        side = 28.0 if "integer" in kind else 380.0
        args["image_sizes"] = tensor([[side, side + b] for b in range(B)])
    if crowd:
        args["crowd"] = torch.from_numpy(g.random((B, G)) < crowd)
    return args | scalars


def _assign_on(anchors: Grids, B: int = 2, G: int = 5, dtype: torch.dtype = torch.float32, **scalars: object) -> Args:
    args = _assign(B, 1, G, dtype=dtype, **scalars)  # type: ignore[arg-type]
    # Objects of the anchors' size within the picture, so that there are positives of both kinds.
    g = generator(42, B, G)
    objects = random_boxes(g, (B, G), 150.0, 130.0)
    return args | {"anchors": anchors, "gt_boxes": tensor(objects, dtype)}


def _assign_cases() -> Iterator[Case]:
    for A in (0, 1, 63, 64, 65):
        yield Case(f"A{A}", lambda A=A: _assign(1, A), small=True)
    yield Case("A20000", lambda: _assign(1, 20000, 20))
    for G in (0, 1, 33, 65, 300):
        yield Case(f"G{G}", lambda G=G: _assign(2, 300, G), small=G < 300)
    for name, dtype in DTYPES.items():
        yield Case(f"{name}-odd", lambda d=dtype: _assign(2, 300, 9, kind="odd random", dtype=d, crowd=0.2), small=True)
        yield Case(f"{name}-integer", lambda d=dtype: _assign(2, 500, 12, kind="integer", dtype=d), small=True)
    for legacy in (False, True):
        for positive, negative in ((0.7, 0.3), (0.5, 0.5), (0.6, 1 / 3), (1.0, 0.0)):
            yield Case(
                f"integer-{positive}-{negative:.2f}{'-legacy' if legacy else ''}",
                lambda y=legacy, p=positive, n=negative: _assign(
                    2, 700, 10, kind="integer", sizes=True, positive_iou=p, negative_iou=n, legacy=y
                ),
                small=positive == 0.7,
            )
    yield Case("more-objects-than-threads", lambda: _assign(1, 70, 600, crowd=0.3), small=True)
    yield Case("tiles-and-chunks", lambda: _assign(1, 1100, 300, kind="integer", overwrite=True), small=True)
    yield Case("counts", lambda: _assign(4, 200, 6, counts=[0, 1, 5, 6]), small=True)
    yield Case(
        "counts-out-of-range",
        lambda: _assign(4, 200, 6, counts=[7, -1, 6, 1 << 40]),
        small=True,
        as_if={"gt_counts": ints(0, 0, 6, 0)},
    )
    yield Case("image-sizes", lambda: _assign(3, 300, sizes=True), small=True)
    yield Case("crowd", lambda: _assign(2, 400, 8, crowd=0.5), small=True)
    yield Case("crowd-integer", lambda: _assign(2, 500, 8, kind="integer", crowd=0.5, crowd_overlap=0.5), small=True)
    yield Case("crowd-alone", lambda: _assign(2, 200, 3, crowd=1.0), small=True)
    yield Case("crowd-f64", lambda: _assign(2, 300, 8, kind="integer", crowd=0.5, dtype=torch.float64), small=True)
    yield Case("no-low-quality", lambda: _assign(2, 300, low_quality=False), small=True)
    for overwrite in (False, True):
        rule = {"overwrite": overwrite, "negative_iou": 0.2, "positive_iou": 0.6}
        name = "overwrite" if overwrite else "min-quality"
        yield Case(name, lambda r=rule: _assign(2, 300, 40, crowd=0.1, min_quality=0.4, **r), small=True)
        yield Case(
            f"{name}-integer",
            lambda r=rule: _assign(2, 300, 70, kind="integer", min_quality=0.5, **r),  # many peaks tie, or are 0.5
            small=True,
        )
        yield Case(f"{name}-f64", lambda r=rule: _assign(2, 300, 40, dtype=torch.float64, **r), small=True)
        yield Case(
            f"{name}-grid",
            lambda r=rule: _assign_on(grids(ONE_LEVEL), G=40, sizes=True, min_quality=0.4, **r),
            small=True,
        )
        yield Case(f"{name}-pyramid", lambda r=rule: _assign_on(grids(*PYRAMID), B=3, G=60, min_quality=0.3, **r))
    yield Case("overwrite-legacy", lambda: _assign(2, 300, 40, kind="integer", overwrite=True, legacy=True), small=True)
    yield Case("overwrite-identical-objects", lambda: _identical_objects() | {"overwrite": True}, small=True)
    yield Case("overwrite-identical-anchors", lambda: _identical_anchors() | {"overwrite": True}, small=True)
    yield Case("overwrite-identical-on-a-grid", lambda: _identical_on_a_grid(), small=True)
    yield Case(
        "overwrite-no-low-quality", lambda: _identical_objects() | {"overwrite": True, "low_quality": False}, small=True
    )
    yield Case("positive-iou-0", lambda: _assign(2, 300, positive_iou=0.0, negative_iou=0.0), small=True)
    yield Case("anchors-of-each-image", lambda: _assign(3, 150, anchors="own", kind="integer"), small=True)
    yield Case("objects-far-away", lambda: _far_away(), small=True)
    yield Case("identical-anchors", lambda: _identical_anchors(), small=True)
    yield Case("identical-objects", lambda: _identical_objects(), small=True)
    yield Case("grid", lambda: _assign_on(grids(ONE_LEVEL)), small=True)
    yield Case("grid-inside", lambda: _assign_on(grids(ONE_LEVEL), sizes=True), small=True)
    yield Case("pyramid", lambda: _assign_on(grids(*PYRAMID), B=3, sizes=True, crowd=0.3))
    yield Case("pyramid-f64-offset", lambda: _assign_on(grids(*PYRAMID, offset=0.5), dtype=torch.float64))
    yield Case("strided", lambda: _strided(_assign(2, 100)), small=True)


def _strided(args: Args) -> Args:
    return args | {"anchors": strided(args["anchors"]), "gt_boxes": transposed(args["gt_boxes"])}


def _far_away() -> Args:
    args = _assign(2, 200)
    return args | {"gt_boxes": args["gt_boxes"] + 1e4}


def _identical_anchors(A: int = 130, G: int = 2) -> Args:
    """Every anchor ties for the highest IoU: all are positive."""
    args = _assign(2, A, G)
    objects = tensor([[[10.0, 10.0, 60.0, 40.0], [30.0, 30.0, 90.0, 90.0]] * (G // 2)] * 2)
    return args | {"anchors": tensor([10.0, 10.0, 60.0, 70.0]).expand(A, 4).contiguous(), "gt_boxes": objects}


def _identical_objects() -> Args:
    args = _assign(2, 200, 5)
    return args | {"gt_boxes": args["gt_boxes"][:, :1].expand(2, 5, 4).contiguous()}


def _identical_on_a_grid() -> Args:
    args = _assign_on(grids(ONE_LEVEL), G=40, overwrite=True)
    return args | {"gt_boxes": args["gt_boxes"][:, torch.arange(40) // 2].contiguous()}


def _labels(B: int, A: int, shares: tuple[float, float, float], **scalars: object) -> Args:
    """shares: of ignored, negative, positive anchors."""
    g = generator(43, B, A)
    labels = torch.from_numpy(g.choice(np.array([-1, 0, 1], np.int8), (B, A), p=shares))
    return {"labels": labels, "rng": ints(12345, 678)} | scalars


def _sample_cases() -> Iterator[Case]:
    mixed = (0.2, 0.5, 0.3)
    for A in (0, 1, 63, 64, 65, 257, 2000):
        yield Case(f"A{A}", lambda A=A: _labels(2, A, mixed, batch_size=32, positive_fraction=0.5), small=True)
    yield Case("A20000", lambda: _labels(2, 20646, (0.7, 0.28, 0.02)))
    yield Case("A100000", lambda: _labels(1, 100_000, (0.1, 0.5, 0.4)))
    for name, shares in {
        "no-positives": (0.5, 0.5, 0.0),
        "no-negatives": (0.5, 0.0, 0.5),
        "all-ignored": (1.0, 0.0, 0.0),
        "few-positives": (0.0, 0.98, 0.02),
    }.items():
        yield Case(name, lambda s=shares: _labels(3, 500, s, batch_size=64, positive_fraction=0.5), small=True)
    yield Case("everything-fits", lambda: _labels(2, 100, mixed), small=True)
    yield Case("batch-1", lambda: _labels(2, 300, mixed, batch_size=1, positive_fraction=1.0), small=True)
    yield Case("max-positive-0", lambda: _labels(2, 300, mixed, batch_size=16, positive_fraction=0.0), small=True)
    yield Case(
        "max-positive-is-batch", lambda: _labels(2, 300, mixed, batch_size=50, positive_fraction=1.0), small=True
    )
    for name, rng in {
        "zero": (0, 0),
        "negative": (-1, -2),
        "beyond-32-bits": ((7 << 40) + 3, (1 << 35) + 9),
        "limits": (2**63 - 1, -(2**63)),
    }.items():
        yield Case(
            f"rng-{name}",
            lambda r=rng: _labels(2, 300, mixed, batch_size=20, positive_fraction=0.5) | {"rng": ints(*r)},
            small=True,
        )
    # The keys that would suffice of evenly strewn candidates suffice of none of these.
    yield Case("unlikely-keys", lambda: _unlikely_keys(3000), small=True)
    yield Case("unlikely-keys-A70000", lambda: _unlikely_keys(70_000))
    yield Case("stream-5", lambda: _labels(2, 300, mixed, batch_size=20, positive_fraction=0.5, stream=5), small=True)


def _unlikely_keys(A: int) -> Args:
    """Only anchors with large keys may be drawn."""
    rng = ints(12345, 678)
    keys = reference.sample_keys(np.arange(A), 0, rng.numpy(), 0)
    labels = np.full((1, A), -1, np.int8)
    last = np.argsort(keys)[-A // 8 :]
    labels[0, last] = np.arange(len(last)) % 5 == 0
    return {"labels": torch.from_numpy(labels), "rng": rng, "batch_size": 64, "positive_fraction": 0.25}


def _targets_cases() -> Iterator[Case]:
    rng = ints(99, 3)

    def case(name: str, make, small: bool = True, **scalars: object) -> Case:
        return Case(name, lambda: make() | {"rng": rng} | scalars, small=small)

    for name, dtype in DTYPES.items():
        yield case(
            name, lambda d=dtype: _assign(2, 300, 9, kind="integer", dtype=d), batch_size=64, positive_fraction=0.5
        )
    yield case("odd", lambda: _assign(3, 300, 9, kind="odd random", crowd=0.2), batch_size=64, positive_fraction=0.5)
    yield case("chunks", lambda: _assign(2, 1100, 9, kind="integer"), batch_size=64, positive_fraction=0.5)
    yield case("tiles-and-chunks", lambda: _assign(1, 1100, 300, kind="integer"))
    yield case("every-anchor-ties", lambda: _identical_anchors(1100, 20))
    yield case("counts", lambda: _assign(3, 300, 5, counts=[0, 2, 5]), batch_size=100, positive_fraction=0.2)
    yield Case(
        "counts-out-of-range",
        lambda: (
            _assign(4, 200, 6, counts=[7, -1, 6, 1 << 40]) | {"rng": rng, "batch_size": 64, "positive_fraction": 1.0}
        ),
        small=True,
        as_if={"gt_counts": ints(0, 0, 6, 0)},
    )
    yield case("grid", lambda: _assign_on(grids(ONE_LEVEL), sizes=True), batch_size=64, positive_fraction=0.5)
    yield case("pyramid", lambda: _assign_on(grids(*PYRAMID), B=3), small=False)
    yield case("A20000", lambda: _assign(2, 20000, 20), small=False)
    yield case("legacy-weights", lambda: _assign(2, 300, kind="integer", legacy=True, weights=(2.0, 3.0, 5.0, 7.0)))
    yield case("none", lambda: _assign(2, 0, 0), batch_size=8, positive_fraction=0.5)
    yield case("own-anchors", lambda: _assign(3, 200, anchors="own"), batch_size=32, positive_fraction=0.5, stream=3)
    yield case(
        "no-low-quality",
        lambda: _assign(2, 300, low_quality=False, positive_iou=0.5),
        batch_size=32,
        positive_fraction=1.0,
    )


def _rois(
    B: int = 2,
    N: int = 300,
    G: int = 6,
    *,
    kind: str = "random",
    dtype: torch.dtype = torch.float32,
    counts: list[int] | None = None,
    gt_counts: list[int] | None = None,
    crowd: float = 0.0,
    **scalars: object,
) -> Args:
    g = generator(44, B, N, G)
    make = integer_boxes if "integer" in kind else random_boxes
    objects = make(g, (B, G))
    proposals = make(g, (B, N))
    if G and "integer" not in kind:
        # A third of the proposals lie near an object.
        close = objects[np.arange(B)[:, None], g.integers(0, G, (B, N))] + g.normal(0.0, 6.0, (B, N, 4))
        proposals = np.where(g.random((B, N, 1)) < 0.3, close, proposals)
    if kind.startswith("odd"):
        proposals, objects = with_odd_boxes(g, proposals), with_odd_boxes(g, objects, 0.4)
    args: Args = {
        "proposals": tensor(proposals, dtype),
        "counts": ints(*(counts if counts is not None else [N] * B)),
        "gt_boxes": tensor(objects, dtype),
        "gt_labels": torch.from_numpy(g.integers(1, 91, (B, G))),
        "gt_counts": ints(*(gt_counts if gt_counts is not None else [G] * B)),
        "rng": ints(4, 5),
    }
    if crowd:
        args["crowd"] = torch.from_numpy(g.random((B, G)) < crowd)
    return args | scalars


def _roi_cases() -> Iterator[Case]:
    for N in (0, 1, 64, 65):
        yield Case(f"N{N}", lambda N=N: _rois(2, N, batch_size=32), small=True)
    yield Case("N2000", lambda: _rois(2, 2000, 20))
    for name, dtype in DTYPES.items():
        yield Case(
            f"{name}-odd",
            lambda d=dtype: _rois(2, 300, 8, kind="odd random", dtype=d, crowd=0.2, batch_size=64),
            small=True,
        )
        yield Case(
            f"{name}-integer", lambda d=dtype: _rois(2, 300, 8, kind="integer", dtype=d, batch_size=64), small=True
        )
    yield Case(
        "counts", lambda: _rois(4, 100, 5, counts=[0, 0, 50, 100], gt_counts=[0, 5, 1, 0], batch_size=40), small=True
    )
    yield Case(
        "counts-out-of-range",
        lambda: _rois(4, 100, 5, counts=[101, -1, 100, 50], batch_size=40),
        small=True,
        as_if={"counts": ints(0, 0, 100, 50)},
    )
    yield Case(
        "gt-counts-out-of-range",
        lambda: _rois(4, 100, 5, gt_counts=[6, -1, 5, 1 << 40], batch_size=40),
        small=True,
        as_if={"gt_counts": ints(0, 0, 5, 0)},
    )
    yield Case("G0", lambda: _rois(2, 100, 0, batch_size=40), small=True)
    yield Case("more-objects-than-threads", lambda: _rois(1, 60, 300, crowd=0.2, batch_size=64), small=True)
    yield Case("no-append", lambda: _rois(append_gt=False, batch_size=64), small=True)
    yield Case("lower-bound", lambda: _rois(negative_iou_low=0.1, batch_size=64), small=True)
    yield Case(
        "bounds-apart",
        lambda: _rois(kind="integer", positive_iou=0.6, negative_iou_high=0.4, negative_iou_low=0.25, batch_size=64),
        small=True,
    )
    # What is an object and within the background's range is an object.
    yield Case(
        "ranges-overlap",
        lambda: _rois(kind="integer", positive_iou=0.3, negative_iou_high=0.7, batch_size=64),
        small=True,
    )
    for fraction in (0.0, 0.3, 1.0):
        yield Case(f"fraction-{fraction}", lambda f=fraction: _rois(positive_fraction=f, batch_size=30), small=True)
    yield Case("crowd", lambda: _rois(crowd=0.5, batch_size=64), small=True)
    yield Case("crowd-alone", lambda: _rois(2, 100, 2, crowd=1.0, batch_size=64), small=True)
    yield Case("legacy", lambda: _rois(kind="integer", legacy=True, weights=(1.0, 2.0, 3.0, 4.0)), small=True)
    yield Case("padded-batch", lambda: _rois(2, 20, 3, batch_size=512), small=True)
    yield Case("stream-9", lambda: _rois(stream=9, batch_size=64), small=True)
    yield Case("transposed", lambda: _transposed(_rois(batch_size=64)), small=True)


def _transposed(args: Args) -> Args:
    return args | {"proposals": transposed(args["proposals"]), "gt_boxes": transposed(args["gt_boxes"])}


OPS: tuple[Op, ...] = (
    simple_op("assign_anchors", "labels:int8 matched:int32", tuple(_assign_cases()), lead="gt_boxes"),
    simple_op("sample_anchors", "indices:int64 sampled:int8 counts:int64", tuple(_sample_cases()), lead=""),
    simple_op(
        "rpn_targets",
        "indices:int64 labels:int8 targets:compute matched:int32 counts:int64",
        tuple(_targets_cases()),
        lead="gt_boxes",
    ),
    simple_op(
        "sample_rois",
        "rois:compute labels:int64 targets:compute matched:int32 counts:int64",
        tuple(_roi_cases()),
        lead="proposals",
    ),
)
