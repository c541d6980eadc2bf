"""Cases of box_iou, nms, batched_nms and nms_padded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import frcnn_fast.ops
from frcnn_fast import reference

from .build import (
    DTYPES,
    clustered_boxes,
    generator,
    integer_boxes,
    ints,
    odd_scores,
    random_boxes,
    strided,
    tensor,
    tied_scores,
    transposed,
    with_odd_boxes,
)
from .harness import Args, Arrays, Case, Op, simple_op


def _padded(
    B: int,
    N: int,
    *,
    kind: str = "clustered",
    scores: str = "random",
    dtype: torch.dtype = torch.float32,
    threshold: float = 0.5,
    max_output: int = 200,
    classes: int = 0,
    counts: list[int] | None = None,
    legacy: bool = False,
    layout: str = "contiguous",
    seed: int = 0,
) -> Args:
    g = generator(seed, B, N)
    make = {"clustered": clustered_boxes, "integer": integer_boxes, "random": random_boxes}
    boxes = make[kind.removeprefix("odd ")](g, (B, N))
    if kind.startswith("odd "):
        boxes = with_odd_boxes(g, boxes)
    values = {
        "random": lambda: g.normal(size=(B, N)),
        "tied": lambda: tied_scores(g, (B, N)),
        "odd": lambda: odd_scores(g, (B, N)),
    }
    args: Args = {
        "boxes": tensor(boxes, dtype),
        "scores": tensor(values[scores](), dtype),
        "iou_threshold": threshold,
        "max_output": max_output,
        "legacy": legacy,
    }
    if layout == "strided":
        args["boxes"], args["scores"] = strided(args["boxes"]), strided(args["scores"])
    elif layout == "transposed":
        args["boxes"], args["scores"] = transposed(args["boxes"]), transposed(args["scores"])
    if classes:
        # Identifiers are not small consecutive numbers: sparse, negative and beyond 32 bits.
        names = np.array([0, -1, 7, 1 << 40, -(1 << 40), 3, 90, 5, 2, 1][:classes])
        args["class_ids"] = torch.from_numpy(g.choice(names, (B, N)))
    if counts is not None:
        args["counts"] = ints(*counts)
    return args


def _padded_cases() -> Iterator[Case]:
    for N in (0, 1, 2, 63, 64, 65, 127, 129):
        yield Case(f"N{N}", lambda N=N: _padded(1, N), small=True)
    for N in (1000, 5000):
        yield Case(f"N{N}", lambda N=N: _padded(1, N, max_output=N))
    yield Case("N5000-stops-early", lambda: _padded(2, 5000, kind="random", max_output=100))
    yield Case("no-images", lambda: _padded(0, 10), small=True)
    for name, dtype in DTYPES.items():
        yield Case(f"{name}-clustered", lambda d=dtype: _padded(3, 150, dtype=d, scores="tied"), small=True)
        yield Case(f"{name}-odd", lambda d=dtype: _padded(2, 200, kind="odd random", scores="odd", dtype=d), small=True)
        yield Case(f"{name}-N1500", lambda d=dtype: _padded(2, 1500, dtype=d, classes=5, max_output=300))
    for threshold in (0.0, 0.3, 1 / 3, 0.5, 0.7, 1.0, 2.0):
        for legacy in (False, True):
            yield Case(
                f"integer-boxes-at-{threshold:.2f}{'-legacy' if legacy else ''}",
                lambda t=threshold, y=legacy: _padded(
                    2, 300, kind="integer", scores="tied", threshold=t, legacy=y, max_output=300
                ),
                small=threshold in (0.3, 0.5),
            )
    yield Case("f64-integer-boxes-at-0.30", lambda: _padded(1, 300, kind="integer", dtype=torch.float64, threshold=0.3))
    for classes in (1, 3, 10):
        yield Case(f"classes-{classes}", lambda c=classes: _padded(2, 260, classes=c, scores="tied"), small=True)
    yield Case("classes-N3000", lambda: _padded(1, 3000, classes=10, max_output=3000))
    yield Case("counts", lambda: _padded(4, 100, counts=[0, 1, 64, 100]), small=True)
    yield Case(
        "counts-classes-odd", lambda: _padded(3, 130, kind="odd clustered", counts=[0, 65, 129], classes=3), small=True
    )
    yield Case(
        "counts-out-of-range",
        lambda: _padded(4, 100, counts=[101, -1, 64, 1 << 40]),
        small=True,
        as_if={"counts": ints(0, 0, 64, 0)},
    )
    yield Case("max-output-1", lambda: _padded(3, 200, max_output=1), small=True)
    yield Case("max-output-beyond-N", lambda: _padded(2, 65, max_output=1000), small=True)
    yield Case("max-output-64", lambda: _padded(1, 700, kind="random", threshold=0.3, max_output=64), small=True)
    yield Case("nothing-suppressed", lambda: _padded(1, 300, kind="random", threshold=1.0, max_output=300), small=True)
    yield Case("all-identical", _identical, small=True)
    yield Case("sliding-chain", _chain, small=True)
    yield Case("chain-across-blocks", _long_chain)
    yield Case("all-scores-NaN", _all_nan, small=True)
    for N in (5, 700):
        yield Case(f"no-finite-box-N{N}", lambda N=N: _not_finite(N, N), small=N == 5)
    yield Case("the-best-are-not-finite", lambda: _not_finite(700, 600))
    yield Case("areas-overflow", _overflowing, small=True)
    yield Case("areas-of-one-unit", _tiny, small=True)
    yield Case("centres-overflow", _far, small=True)
    for lying in (False, True):
        yield Case(f"nested-across-{'rows' if lying else 'columns'}", lambda y=lying: _nested(y), small=True)
    yield Case("strided", lambda: _padded(2, 100, layout="strided"), small=True)
    yield Case("transposed", lambda: _padded(2, 100, layout="transposed"), small=True)


def _identical() -> Args:
    args = _padded(2, 200)
    args["boxes"] = tensor([10.0, 10.0, 30.0, 40.0]).expand(2, 200, 4)
    return args


def _slide(N: int) -> Args:
    """Each box overlaps its neighbours alone above the threshold: every second one is kept."""
    left = 10.0 * np.arange(N)
    boxes = np.stack([left, np.zeros(N), left + 30.0, np.full(N, 30.0)], axis=1)[None]
    return {
        "boxes": tensor(boxes),
        "scores": tensor(-np.arange(N)[None]),
        "iou_threshold": 0.4,
        "max_output": N,
    }


def _chain() -> Args:
    return _slide(150)


def _long_chain() -> Args:
    """The order is shuffled, so that each decision depends on others far away."""
    args = _slide(4500)
    order = torch.from_numpy(generator(5).permutation(4500))
    return args | {"boxes": args["boxes"][:, order], "scores": args["scores"][:, order]}


def _all_nan() -> Args:
    args = _padded(2, 70)
    return args | {"scores": torch.full_like(args["scores"], float("nan"))}


def _not_finite(N: int, n: int) -> Args:
    """The n boxes of the best scores are not finite."""
    args = _padded(1, N, max_output=N)
    best = args["scores"].argsort(descending=True)[:, :n]
    args["boxes"][0, best[0], 2] = torch.tensor([float("nan"), float("inf")])[torch.arange(n) % 2]
    return args


def _overflowing() -> Args:
    """Every box twice. Areas that overflow or vanish make the IoU of the two NaN, which suppresses nothing."""
    g = generator(9)
    boxes = random_boxes(g, (1, 40)) * 10.0 ** g.choice([-30, -20, 0, 17, 20, 30], (1, 40, 1))
    return {
        "boxes": tensor(np.concatenate([boxes, boxes], axis=1)),
        "scores": tensor(g.normal(size=(1, 80))),
        "iou_threshold": 0.5,
        "max_output": 80,
    }


def _tiny() -> Args:
    """Boxes in a row, each with the smallest number for an area: the IoU of two is 0 or 1, whatever they share."""
    g = generator(11)
    left = g.uniform(0, 30, 300)
    boxes = np.stack([left, np.zeros(300), left + 1, np.ones(300)], axis=1)[None] * 4.2e-23
    return {
        "boxes": tensor(boxes),
        "scores": tensor(g.normal(size=(1, 300))),
        "iou_threshold": 0.7,
        "max_output": 300,
    }


def _far() -> Args:
    """The last two overlap. The doubled centre of the one overflows, that of the other is zero."""
    args = _padded(1, 300, kind="random", threshold=0.3, max_output=302)
    long = tensor([[-1.7e38, 0.0, 1.7e38, 0.1], [-3.4e38, 0.0, -1e36, 0.1]])
    args["boxes"] = torch.cat([args["boxes"] - 500, long[None]], dim=1)
    args["scores"] = torch.cat([args["scores"], tensor([[-100.0, -101.0]])], dim=1)
    return args


def _nested(lying: bool) -> Args:
    """Pairs, one box half of the other, from its one end or from its other: as far apart as boxes of that IoU can be.
    The larger ones are kept first."""
    g = generator(12)
    n = 90
    left, top = g.uniform(0, 4000, n), 40.0 * np.arange(n)
    whole = np.stack([left, top, left + 1000, top + 30], axis=1)
    half = whole.copy()
    half[0::2, 0] += 490
    half[1::2, 2] -= 490
    boxes = np.concatenate([whole, half])[None]
    return {
        "boxes": tensor(boxes[..., [1, 0, 3, 2]] if lying else boxes),
        "scores": tensor(-np.arange(2 * n)[None]),
        "iou_threshold": 0.5,
        "max_output": 2 * n,
    }


def _single(N: int, idxs: bool = False, **kwargs: object) -> Args:
    args = _padded(1, N, classes=4 if idxs else 0, **kwargs)  # type: ignore[arg-type]
    single: Args = {"boxes": args["boxes"][0], "scores": args["scores"][0]}
    if idxs:
        single["idxs"] = args["class_ids"][0]
    return single | {"iou_threshold": args["iou_threshold"]}


def _single_cases(idxs: bool) -> Iterator[Case]:
    for N in (0, 1, 64, 65):
        yield Case(f"N{N}", lambda N=N: _single(N, idxs), small=True)
    yield Case("N5000", lambda: _single(5000, idxs, kind="random"))
    for name, dtype in DTYPES.items():
        yield Case(
            f"{name}", lambda d=dtype: _single(300, idxs, kind="odd clustered", scores="odd", dtype=d), small=True
        )
    yield Case("ties", lambda: _single(300, idxs, kind="integer", scores="tied", threshold=0.3), small=True)
    yield Case("strided", lambda: _single(100, idxs, layout="strided"), small=True)


def _pair(N: int, M: int, dtype: torch.dtype = torch.float32, kind: str = "random", legacy: bool = False) -> Args:
    g = generator(21, N, M)
    make = integer_boxes if kind == "integer" else random_boxes
    boxes = [make(g, (n,)) for n in (N, M)]
    if kind == "odd":
        boxes = [with_odd_boxes(g, b, 0.5) for b in boxes]
    return {"boxes1": tensor(boxes[0], dtype), "boxes2": tensor(boxes[1], dtype), "legacy": legacy}


def _iou_cases() -> Iterator[Case]:
    for N, M in ((0, 5), (5, 0), (1, 1), (33, 65)):
        yield Case(f"{N}x{M}", lambda N=N, M=M: _pair(N, M), small=True)
    yield Case("1000x300", lambda: _pair(1000, 300))
    for name, dtype in DTYPES.items():
        yield Case(f"{name}-odd", lambda d=dtype: _pair(40, 50, d, "odd"), small=True)
    for legacy in (False, True):
        tail = "-legacy" if legacy else ""
        yield Case(f"integer-values{tail}", lambda y=legacy: _pair(60, 60, kind="integer", legacy=y), small=True)
        yield Case(f"int64{tail}", lambda y=legacy: _pair(60, 60, torch.int64, "integer", y), small=True)
    yield Case("int32", lambda: _pair(20, 30, torch.int32, "integer"), small=True)
    yield Case("strided", lambda: {k: strided(v) for k, v in _pair(20, 30).items() if k != "legacy"}, small=True)


def _with_grad(args: Args) -> Args:
    shape = len(args["boxes1"]), len(args["boxes2"])
    return args | {"grad": tensor(generator(22).normal(size=shape), args["boxes1"].dtype)}


def _iou_backward_cases() -> Iterator[Case]:
    """Only float32 and float64: the gradient of a half is rounded once more."""
    for N, M in ((0, 5), (5, 0), (1, 1), (33, 65)):
        yield Case(f"{N}x{M}", lambda N=N, M=M: _with_grad(_pair(N, M)), small=True)
    for name in ("f32", "f64"):
        for kind in ("odd", "integer"):
            for legacy in (False, True):
                yield Case(
                    f"{name}-{kind}{'-legacy' if legacy else ''}",
                    lambda d=DTYPES[name], k=kind, y=legacy: _with_grad(_pair(40, 50, d, k, y)),
                    small=True,
                )


def _run_iou_backward(args: Args) -> tuple[Tensor, ...]:
    args = dict(args)
    grad = args.pop("grad")
    leaves = [args[name].detach().clone().requires_grad_() for name in ("boxes1", "boxes2")]
    frcnn_fast.ops.box_iou(*leaves, legacy=args["legacy"]).backward(grad)
    return tuple(leaf.grad for leaf in leaves)


def _iou_backward_oracle(args: Args) -> Arrays:
    first, second, grad = args["boxes1"], args["boxes2"], args["grad"]
    return (
        reference.box_iou_backward(grad, first, second, legacy=args["legacy"]),
        reference.box_iou_backward(grad.T, second, first, legacy=args["legacy"]),
    )


def _soft(method: str, *, score_threshold: float = 0.05, sigma: float = 0.5, **rest: Any) -> Args:
    args = _padded(**rest)
    args["scores"] = (args["scores"].abs() / 4).to(args["scores"].dtype)
    return args | {"method": method, "sigma": sigma, "score_threshold": score_threshold}


def _soft_cases() -> Iterator[Case]:
    for method in ("linear", "gaussian", "hard"):
        for N in (0, 1, 31, 33, 64, 65, 129):
            yield Case(
                f"{method}-N{N}",
                lambda m=method, N=N: _soft(m, B=1, N=N, max_output=40),
                small=N in (0, 1, 33, 65, 129),
            )
        yield Case(f"{method}-N3000", lambda m=method: _soft(m, B=2, N=3000, max_output=500))
        for name, dtype in DTYPES.items():
            yield Case(
                f"{method}-{name}-tied",
                lambda m=method, d=dtype: _soft(m, B=2, N=90, dtype=d, scores="tied", max_output=60),
                small=True,
            )
        yield Case(
            f"{method}-integer-boxes",
            lambda m=method: _soft(m, B=2, N=70, kind="integer", scores="tied", threshold=0.5, max_output=70),
            small=True,
        )
        yield Case(
            f"{method}-legacy-strided",
            lambda m=method: _soft(m, B=2, N=50, legacy=True, layout="strided", max_output=50),
            small=True,
        )
    yield Case("odd", lambda: _soft("linear", B=2, N=100, kind="odd random", scores="odd", max_output=90), small=True)
    yield Case("odd-gaussian", lambda: _soft("gaussian", B=2, N=100, kind="odd clustered", scores="odd"), small=True)
    yield Case("all-kept", lambda: _soft("gaussian", B=1, N=80, score_threshold=0.0, max_output=100), small=True)
    yield Case("nothing-kept", lambda: _soft("linear", B=2, N=40, score_threshold=100.0, max_output=10), small=True)
    yield Case("max-output-0", lambda: _soft("linear", B=2, N=40, max_output=0), small=True)
    yield Case("no-images", lambda: _soft("linear", B=0, N=10), small=True)
    yield Case("counts", lambda: _soft("linear", B=4, N=70, counts=[0, 1, 33, 70], max_output=70), small=True)
    yield Case(
        "counts-out-of-range",
        lambda: _soft("hard", B=3, N=40, counts=[41, -1, 20], max_output=40),
        small=True,
        as_if={"counts": ints(0, 0, 20)},
    )


OPS: tuple[Op, ...] = (
    simple_op("box_iou", "iou:compute", tuple(_iou_cases()), lead="boxes1"),
    Op(
        "box_iou_backward",
        ("grad_boxes1:input", "grad_boxes2:input"),
        tuple(_iou_backward_cases()),
        lead="boxes1",
        call=_run_iou_backward,
        oracle=_iou_backward_oracle,
    ),
    simple_op("nms", "keep:int64", tuple(_single_cases(False)), lead="boxes"),
    simple_op("batched_nms", "keep:int64", tuple(_single_cases(True)), lead="boxes"),
    simple_op("nms_padded", "keep:int64 num_keep:int64", tuple(_padded_cases()), lead="boxes"),
    simple_op("soft_nms", "keep:int64 kept_scores:compute num_keep:int64", tuple(_soft_cases()), lead="boxes"),
)
