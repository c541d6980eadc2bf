"""Cases of detections."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from .build import DTYPES, clustered_boxes, generator, ints, random_boxes, tensor, transposed, with_odd_boxes
from .harness import Args, Case, Op, simple_op


def _detect(
    B: int = 2,
    N: int = 60,
    K: int = 5,
    *,
    logits: str = "random",
    proposals: str = "clustered",
    deltas: str = "random",
    agnostic: bool = False,
    dtype: torch.dtype = torch.float32,
    counts: list[int] | None = None,
    background: str = "first",
    **scalars: object,
) -> Args:
    g = generator(61, B, N, K)
    scores = g.normal(0.0, 2.0, (B, N, K + 1))
    if logits == "tied":
        scores = np.round(scores)
    elif logits == "odd":
        odd = g.choice([np.nan, np.inf, -np.inf, 200.0, -200.0], scores.shape)
        scores = np.where(g.random(scores.shape) < 0.03, odd, scores)
    elif logits == "equal":
        scores[:] = 1.0
    boxes = random_boxes(g, (B, N)) if proposals == "random" else clustered_boxes(g, (B, N))
    if proposals == "odd":
        boxes = with_odd_boxes(g, boxes)
    shifts = g.normal(0.0, 1.0, (B, N, 4 if agnostic else 4 * (K + (background == "first"))))
    if deltas == "zero":
        shifts[:] = 0.0
    elif deltas == "odd":
        shifts = np.where(g.random(shifts.shape) < 0.1, g.choice([np.nan, np.inf, -np.inf, 1e4], shifts.shape), shifts)
    return {
        "class_logits": tensor(scores, dtype),
        "box_deltas": tensor(shifts, dtype),
        "proposals": tensor(boxes, torch.float64 if dtype == torch.float64 else torch.float32),
        "counts": ints(*(counts if counts is not None else [N] * B)),
        "image_sizes": tensor([[400.0, 380.0 + b] for b in range(B)]),
    } | (scalars if background == "first" else {"background": background} | scalars)


def _cases() -> Iterator[Case]:
    for N in (0, 1, 64, 65):
        yield Case(f"N{N}", lambda N=N: _detect(1, N), small=True)
    for K in (1, 2, 20, 31, 32, 33, 80):
        yield Case(f"K{K}", lambda K=K: _detect(2, 30, K, score_threshold=0.02), small=True)
    yield Case("voc", lambda: _detect(1, 300, 20))
    yield Case("coco", lambda: _detect(2, 300, 80, score_threshold=0.01, iou_threshold=0.5))
    yield Case("every-class-of-every-box", lambda: _detect(1, 200, 20, score_threshold=0.0, max_detections=5000))
    for name, dtype in DTYPES.items():
        yield Case(name, lambda d=dtype: _detect(dtype=d), small=True)
        yield Case(
            f"{name}-odd",
            lambda d=dtype: _detect(dtype=d, logits="odd", proposals="odd", deltas="odd", min_size=5.0),
            small=True,
        )
    yield Case("tied", lambda: _detect(logits="tied", deltas="zero", proposals="odd"), small=True)
    yield Case("all-equal", lambda: _detect(logits="equal", deltas="zero"), small=True)
    yield Case("threshold-equals-score", lambda: _detect(2, 40, 3, logits="equal", score_threshold=0.25), small=True)
    yield Case("threshold-just-below", lambda: _detect(2, 40, 3, logits="equal", score_threshold=0.2499999), small=True)
    yield Case("agnostic", lambda: _detect(agnostic=True), small=True)
    yield Case("agnostic-tied-f16", lambda: _detect(agnostic=True, logits="tied", dtype=torch.float16), small=True)
    for K in (1, 5, 31, 32, 80):
        yield Case(f"last-K{K}", lambda K=K: _detect(2, 30, K, background="last", score_threshold=0.02), small=True)
    yield Case("last-odd", lambda: _detect(background="last", logits="odd", proposals="odd", deltas="odd"), small=True)
    yield Case("last-agnostic", lambda: _detect(background="last", agnostic=True, logits="tied"), small=True)
    yield Case("last-legacy", lambda: _detect(background="last", legacy=True, dtype=torch.float16), small=True)
    yield Case("counts", lambda: _detect(4, 50, counts=[0, 1, 33, 50]), small=True)
    yield Case("counts-K80", lambda: _detect(4, 30, 80, counts=[0, 1, 13, 30], score_threshold=0.02), small=True)
    yield Case(
        "counts-out-of-range",
        lambda: _detect(4, 50, counts=[51, -1, 33, 1 << 40]),
        small=True,
        as_if={"counts": ints(0, 0, 33, 0)},
    )
    yield Case("nothing-passes", lambda: _detect(score_threshold=0.99999), small=True)
    yield Case("max-detections-1", lambda: _detect(max_detections=1), small=True)
    yield Case("max-detections-beyond", lambda: _detect(2, 10, 2, max_detections=300), small=True)
    yield Case("min-size", lambda: _detect(proposals="random", min_size=60.0), small=True)
    yield Case("legacy", lambda: _detect(legacy=True, min_size=16.0), small=True)
    yield Case("weights", lambda: _detect(weights=(1.0, 1.0, 1.0, 1.0)), small=True)
    yield Case("clamp", lambda: _detect(weights=(1.0, 1.0, 1.0, 1.0), clamp=0.5), small=True)
    for threshold in (0.0, 0.5, 1.0):
        yield Case(f"iou-{threshold}", lambda t=threshold: _detect(iou_threshold=t), small=True)
    yield Case("transposed", lambda: _transposed(_detect()), small=True)


def _transposed(args: Args) -> Args:
    return args | {name: transposed(args[name]) for name in ("class_logits", "box_deltas", "proposals")}


OPS: tuple[Op, ...] = (
    simple_op(
        "detections",
        "boxes:compute scores:compute labels:int64 indices:int64 counts:int64",
        tuple(_cases()),
        lead="class_logits",
    ),
)
