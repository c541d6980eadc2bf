"""Cases of generate_anchors, grid_anchors, decode_clip (forward and backward), encode and rpn_proposals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

import frcnn_fast.ops
from frcnn_fast import reference

from .build import DTYPES, generator, odd_scores, random_boxes, strided, tensor, tied_scores, transposed, with_odd_boxes
from .harness import Args, Case, Grids, Op, as_tuple, simple_op

ONE_LEVEL = ((9, 13), (16, 16), ((32, 64, 128), (0.5, 1.0, 2.0)))
PYRAMID = (
    ((32, 40), (4, 4), ((32,), (0.5, 1.0, 2.0))),
    ((16, 20), (8, 8), ((64,), (0.5, 1.0, 2.0))),
    ((8, 10), (16, 17), ((128, 160), (0.5, 1.0, 2.0))),
    ((4, 5), (32, 32), ((256,), (1.0,))),
)


def grids(*levels: tuple, offset: float = 0.0, convention: str = "torchvision") -> Grids:
    rows = []
    for size, stride, (sizes, ratios) in levels:
        cells = torch.from_numpy(reference.generate_anchors(sizes, ratios, convention=convention))
        rows.append((cells, size, stride))
    return Grids(tuple(rows), offset)


def _deltas(g: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    deltas = g.normal(0.0, 0.4, (*shape, 4))
    if kind == "zero":
        deltas[:] = 0.0
    elif kind == "huge":
        deltas *= 10.0 ** g.integers(0, 6, deltas.shape)
    elif kind == "odd":
        odd = g.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 4.135, 88.0, -104.0, 1e-30], deltas.shape)
        deltas = np.where(g.random(deltas.shape) < 0.15, odd, deltas)
    return deltas


def _sliding_boxes(A: int) -> np.ndarray:
    """Rows of boxes of which each overlaps its neighbours by more than 0.7, and nobody else by that much."""
    i = np.arange(A)
    corner = np.stack([3.0 * (i % 100), 25.0 * (i // 100)], axis=-1)
    return np.concatenate([corner, corner + 20.0], axis=-1)


def _decode(
    B: int = 2,
    A: int = 200,
    *,
    kind: str = "ordinary",
    dtype: torch.dtype = torch.float32,
    anchors: str = "shared",
    sizes: list[list[float]] | None = None,
    scales: list[float] | None = None,
    **scalars: object,
) -> Args:
    g = generator(31, B, A)
    deltas = tensor(_deltas(g, (B, A), kind), dtype)
    if anchors == "sliding":
        boxes = _sliding_boxes(A)
    else:
        boxes = random_boxes(g, (A,) if anchors.endswith("shared") else (B, A))
    if anchors.startswith("identical"):
        boxes[:] = [100.0, 80.0, 180.0, 140.0]
    if anchors.startswith("odd"):
        boxes = with_odd_boxes(g, boxes)
    args: Args = {
        "deltas": deltas,
        "anchors": tensor(boxes, torch.float64 if dtype == torch.float64 else torch.float32),
        "image_sizes": tensor(sizes or [[300.0, 350.0 + 13.0 * b] for b in range(B)]),
    }
    if scales is not None:
        args["image_scales"] = tensor(scales)
    return args | scalars


def _decode_on(anchors: Grids, *, B: int = 2, dtype: torch.dtype = torch.float32, **scalars: object) -> Args:
    args = _decode(B, sum(anchors.level_sizes), dtype=dtype, **scalars)  # type: ignore[arg-type]
    return args | {"anchors": anchors}


def _decode_cases() -> Iterator[Case]:
    for A in (0, 1, 7, 64, 1000):
        yield Case(f"A{A}", lambda A=A: _decode(1, A), small=A < 1000)
    yield Case("A20000", lambda: _decode(1, 20000))
    for name, dtype in DTYPES.items():
        for kind in ("ordinary", "huge", "odd"):
            yield Case(f"{name}-{kind}", lambda d=dtype, k=kind: _decode(kind=k, dtype=d, min_size=16.0), small=True)
    yield Case("anchors-of-each-image", lambda: _decode(3, 50, anchors="own"), small=True)
    yield Case("odd-anchors", lambda: _decode(anchors="odd shared"), small=True)
    yield Case("odd-anchors-f64", lambda: _decode(anchors="odd own", dtype=torch.float64, kind="odd"), small=True)
    yield Case("zero-deltas", lambda: _decode(kind="zero", min_size=30.0), small=True)
    yield Case("weights", lambda: _decode(weights=(10.0, 10.0, 5.0, 5.0), kind="huge"), small=True)
    yield Case("weights-of-thirds", lambda: _decode(weights=(3.0, 7.0, 0.3, 1.7)), small=True)
    yield Case("clamp-1", lambda: _decode(clamp=1.0, kind="huge"), small=True)
    yield Case("no-clamp", lambda: _decode(clamp=float("inf"), kind="huge"), small=True)
    yield Case("no-clamp-odd", lambda: _decode(clamp=float("inf"), kind="odd"), small=True)
    yield Case("legacy", lambda: _decode(legacy=True, min_size=16.0), small=True)
    yield Case("legacy-zero-deltas", lambda: _decode(legacy=True, kind="zero", min_size=30.0), small=True)
    yield Case("scales", lambda: _decode(min_size=16.0, scales=[0.6, 1.7]), small=True)
    yield Case("images-of-no-size", lambda: _decode(sizes=[[0.0, 0.0], [0.0, 100.0]]), small=True)
    yield Case("one-level", lambda: _decode_on(grids(ONE_LEVEL)), small=True)
    yield Case("one-level-legacy", lambda: _decode_on(grids(ONE_LEVEL, convention="legacy"), legacy=True), small=True)
    yield Case("pyramid", lambda: _decode_on(grids(*PYRAMID)))
    yield Case("pyramid-f64", lambda: _decode_on(grids(*PYRAMID), dtype=torch.float64))
    yield Case("offset", lambda: _decode_on(grids(ONE_LEVEL, offset=0.5, convention="detectron2")), small=True)
    yield Case("offset-third-f16", lambda: _decode_on(grids(ONE_LEVEL, offset=1 / 3), dtype=torch.float16), small=True)
    yield Case("transposed", lambda: _with(_decode(), deltas=transposed), small=True)
    yield Case("strided", lambda: _with(_decode(), deltas=strided, anchors=strided), small=True)


def _with(args: Args, **layouts: object) -> Args:
    return args | {name: layout(args[name]) for name, layout in layouts.items()}  # type: ignore[operator]


def _with_grad(args: Args) -> Args:
    g = generator(32)
    deltas = args["deltas"]
    return args | {"grad": tensor(g.normal(size=deltas.shape), torch.promote_types(deltas.dtype, torch.float32))}


def _run_decode_backward(args: Args) -> Tensor:
    args = dict(args)
    grad, deltas = args.pop("grad"), args["deltas"].detach().clone().requires_grad_()
    boxes, _ = frcnn_fast.ops.decode_clip(**(args | {"deltas": deltas}))
    boxes.backward(grad)
    return deltas.grad


def _decode_backward_oracle(args: Args) -> tuple[np.ndarray, np.ndarray]:
    """In float64, at deltas that are not within rounding of a clip or clamp edge."""
    wide = {k: v.astype(np.float64) if isinstance(v, np.ndarray) else v for k, v in args.items()}
    grad = wide.pop("grad")
    wide = {k: v for k, v in wide.items() if k not in ("min_size", "image_scales")}
    # The gradients of the two ends of a side may cancel: their magnitudes are taken apart.
    low, high = np.abs(grad) * [1.0, 1.0, 0.0, 0.0], np.abs(grad) * [0.0, 0.0, 1.0, 1.0]
    ends = [np.abs(reference.decode_clip_backward(part, **wide)) for part in (low, high)]
    return reference.decode_clip_backward(grad, **wide), ends[0] + ends[1]


def _backward_cases() -> Iterator[Case]:
    for name, dtype in DTYPES.items():
        yield Case(name, lambda d=dtype: _with_grad(_decode(dtype=d)), small=True)
    yield Case("huge", lambda: _with_grad(_decode(kind="huge", weights=(10.0, 10.0, 5.0, 5.0))), small=True)
    yield Case("own-anchors-legacy", lambda: _with_grad(_decode(3, 40, anchors="own", legacy=True)), small=True)
    yield Case("one-level", lambda: _with_grad(_decode_on(grids(ONE_LEVEL))), small=True)
    yield Case("none", lambda: _with_grad(_decode(1, 0)), small=True)


def _encode(N: int, dtype: torch.dtype = torch.float32, kind: str = "random", **scalars: object) -> Args:
    g = generator(33, N)
    pair = [random_boxes(g, (N,)), random_boxes(g, (N,))]
    if kind == "odd":
        pair = [with_odd_boxes(g, b, 0.5) for b in pair]
    return {"gt_boxes": tensor(pair[0], dtype), "anchors": tensor(pair[1], dtype)} | scalars


def _encode_cases() -> Iterator[Case]:
    for N in (0, 1, 65, 3000):
        yield Case(f"N{N}", lambda N=N: _encode(N), small=N < 1000)
    for name, dtype in DTYPES.items():
        yield Case(f"{name}-odd", lambda d=dtype: _encode(300, d, "odd"), small=True)
    yield Case("legacy", lambda: _encode(100, kind="odd", legacy=True), small=True)
    yield Case("weights", lambda: _encode(100, weights=(10.0, 10.0, 5.0, 5.0)), small=True)
    yield Case("three-dimensions", lambda: {k: v.reshape(5, 20, 4) for k, v in _encode(100).items()}, small=True)
    yield Case("transposed", lambda: {k: transposed(v) for k, v in _encode(100).items()}, small=True)


def _propose(
    where: Grids | int,
    *,
    B: int = 2,
    scores: str = "random",
    kind: str = "ordinary",
    dtype: torch.dtype = torch.float32,
    pre: int = 300,
    post: int = 100,
    **scalars: object,
) -> Args:
    """where: on those grids, or that many random anchors."""
    A = where if isinstance(where, int) else sum(where.level_sizes)
    g = generator(34, B, A)
    args = _decode(B, A, kind=kind, dtype=dtype, **scalars)  # type: ignore[arg-type]
    if isinstance(where, Grids):
        args["anchors"] = where
    values = {
        "random": lambda: g.normal(size=(B, A)),
        "tied": lambda: tied_scores(g, (B, A), 5),
        "odd": lambda: odd_scores(g, (B, A)),
        "NaN": lambda: np.full((B, A), np.nan),
        "equal": lambda: np.full((B, A), 0.25),
        # A few dozen of each score, all so near that the sort looks at whole keys, and at nothing else.
        "rounded": lambda: (1.0 + 0.25 * g.random((B, A))).round(3),
        "descending": lambda: np.broadcast_to(-np.arange(A, dtype=np.float64), (B, A)),
        # Most within one score's neighbourhood, a few far off.
        "crowded": lambda: np.where(g.random((B, A)) < 0.1, g.normal(0.0, 1e6, (B, A)), 1.0 + 1e-6 * g.random((B, A))),
    }
    return {"scores": tensor(values[scores](), dtype)} | args | {"pre_nms_top_n": pre, "post_nms_top_n": post}


def stored(values: Tensor, layout: str) -> Tensor:
    """Maps [B, C, H, W] with those values, as a head, or what stands around it, may store them."""
    _, C, H, W = values.shape
    if layout == "NCHW":
        return values.contiguous()
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "rows-apart":  # a part of larger maps
        return torch.nn.functional.pad(values.contiguous(), (2, 1, 0, 3, 0, 0))[:, :, :H, 2 : 2 + W]
    if layout == "cells-apart":  # both outputs of one convolution, channels last
        return torch.nn.functional.pad(values.permute(0, 2, 3, 1), (3, 2)).permute(0, 3, 1, 2)[:, 3 : 3 + C]
    assert layout == "columns"
    return values.transpose(2, 3).contiguous().transpose(2, 3)


LAYOUTS = ("NCHW", "channels_last", "rows-apart", "cells-apart", "columns")


def _maps(args: Args, *layouts: str) -> Args:
    """The tables of `_propose` as a head's maps: a level has one of those layouts, in turn."""
    where = args["anchors"]
    B, scores, deltas, start = args["scores"].shape[0], [], [], 0
    for level, ((cells, (H, W), _), size) in enumerate(zip(where.levels, where.level_sizes)):
        k, rows, layout = len(cells), slice(start, start + size), layouts[level % len(layouts)]
        scores.append(stored(args["scores"][:, rows].reshape(B, H, W, k).permute(0, 3, 1, 2), layout))
        deltas.append(stored(args["deltas"][:, rows].reshape(B, H, W, 4 * k).permute(0, 3, 1, 2), layout))
        start += size
    return args | {"scores": scores, "deltas": deltas}


def _map_cases() -> Iterator[Case]:
    small = grids(((5, 7), *ONE_LEVEL[1:]))
    for layout in LAYOUTS:
        for order in ("before_top_n", "after_top_n"):
            yield Case(
                f"maps-{layout}-{order}",
                lambda m=layout, o=order: _maps(
                    _propose(small, scores="odd", kind="odd", filter_order=o, min_size=20.0, pre=90, post=40), m
                ),
                small=True,
            )
        # More scores than are held at once: several chunks, ties in one, ties over more than one, all tied.
        for scores in ("random", "rounded", "tied", "equal"):
            yield Case(
                f"maps-{layout}-{scores}",
                lambda m=layout, s=scores: _maps(
                    _propose(grids(((38, 63), *ONE_LEVEL[1:])), B=1, scores=s, pre=6000, post=300), m
                ),
            )
        yield Case(f"maps-{layout}-levels", lambda m=layout: _maps(_propose(grids(*PYRAMID), pre=200, post=150), m))
    for name, dtype in DTYPES.items():
        yield Case(
            f"maps-{name}",
            lambda d=dtype: _maps(_propose(small, scores="tied", dtype=d, pre=200, post=60), "NCHW"),
            small=True,
        )
    tiny = grids(((4, 6), (8, 8), ((32,), (0.5, 1.0, 2.0))), ((2, 3), (16, 17), ((64, 90), (1.0, 2.0))),
                 ((0, 2), (32, 32), ((90,), (1.0,))), ((1, 1), (64, 64), ((128,), (0.5, 1.0, 2.0))))  # fmt: skip
    for order in ("before_top_n", "after_top_n"):
        yield Case(
            f"maps-mixed-{order}",
            lambda o=order: _maps(
                _propose(tiny, B=3, scores="tied", filter_order=o, min_size=30.0, pre=60, post=50), *LAYOUTS
            ),
            small=True,
        )
    yield Case("maps-of-one-image", lambda: _with(_maps(_propose(small), "NCHW"), scores=_first_for_all), small=True)


def _first_for_all(maps: list[Tensor]) -> list[Tensor]:
    return [m[:1].expand_as(m) for m in maps]


def _propose_cases() -> Iterator[Case]:
    for A in (0, 1, 63, 64, 65):
        yield Case(f"A{A}", lambda A=A: _propose(A), small=True)
    yield Case("A5000", lambda: _propose(5000, pre=2000, post=300))
    yield Case("A5000-long-list", lambda: _propose(5000, B=1, pre=4000, post=2500))
    yield Case("long-list-legacy", lambda: _propose(400, B=1, pre=400, post=350, legacy=True), small=True)
    yield Case(
        "paper-test", lambda: _propose(grids(((38, 63), *ONE_LEVEL[1:])), B=1, pre=6000, post=300, min_size=16.0)
    )
    for order in ("before_top_n", "after_top_n"):
        short = order.removesuffix("_top_n")
        for name, dtype in DTYPES.items():
            yield Case(
                f"{short}-{name}-odd",
                lambda o=order, d=dtype: _propose(
                    400, scores="odd", kind="odd", dtype=d, min_size=20.0, filter_order=o, pre=90, post=40
                ),
                small=True,
            )
        yield Case(
            f"{short}-levels",
            lambda o=order: _propose(grids(*PYRAMID), filter_order=o, min_size=30.0, pre=120, post=150),
        )
        yield Case(
            f"{short}-tied",
            lambda o=order: _propose(300, scores="tied", kind="zero", filter_order=o, min_size=25.0, pre=70, post=40),
            small=True,
        )
        # Nearly all that compete are kept: one candidate more or less shows.
        yield Case(
            f"{short}-few",
            lambda o=order: _propose(300, filter_order=o, min_size=25.0, pre=50, post=200, iou_threshold=0.95),
            small=True,
        )
        # Most are suppressed, by boxes of many chunks before theirs too, and count among the best nevertheless.
        yield Case(
            f"{short}-suppressed",
            lambda o=order: _propose(400, filter_order=o, min_size=10.0, pre=100, post=100, iou_threshold=0.2),
            small=True,
        )
    yield Case("levels-tied-B3", lambda: _propose(grids(*PYRAMID), B=3, scores="tied", kind="zero", pre=200, post=80))
    yield Case("levels-f16", lambda: _propose(grids(*PYRAMID), dtype=torch.float16, pre=200, post=300))
    five = [130, 70, 0, 33, 67]
    yield Case("five-levels", lambda: _propose(300, level_sizes=five, pre=100, post=90), small=True)
    yield Case(
        "five-levels-tied",
        lambda: _propose(300, scores="tied", kind="zero", level_sizes=five, pre=100, post=40, iou_threshold=0.3),
        small=True,
    )
    # Many chunks of many ties; more of them than a level may have candidates; more candidates than are held at once.
    for A, pre, post in ((350, 340, 200), (450, 300, 60), (450, 430, 60)):
        for scores in ("equal", "tied", "crowded", "descending"):
            yield Case(
                f"{scores}-A{A}-{pre}-{post}",
                lambda s=scores, A=A, pre=pre, post=post: _propose(A, B=1, scores=s, pre=pre, post=post),
                small=True,
            )
    for order in ("before_top_n", "after_top_n"):
        yield Case(
            f"crowded-f64-{order}",
            lambda o=order: _propose(
                450, scores="crowded", dtype=torch.float64, pre=300, post=290, filter_order=o, min_size=30.0
            ),
            small=True,
        )
    # Every box waits for the one before it; and all of the same place.
    yield Case(
        "sliding",
        lambda: _propose(300, B=1, scores="descending", kind="zero", anchors="sliding", post=300),
        small=True,
    )
    yield Case("identical", lambda: _propose(300, kind="zero", anchors="identical shared", post=300), small=True)
    yield Case("all-kept", lambda: _propose(370, B=1, iou_threshold=1.0, pre=370, post=370), small=True)
    yield Case(
        "all-kept-f64",
        lambda: _propose(370, B=1, iou_threshold=1.0, dtype=torch.float64, pre=370, post=370),
        small=True,
    )
    yield Case("level-sizes", lambda: _propose(300, level_sizes=[100, 1, 0, 199], pre=40, post=60), small=True)
    yield Case("level-smaller-than-pre", lambda: _propose(300, level_sizes=[10, 290], pre=1000, post=60), small=True)
    yield Case("grid", lambda: _propose(grids(ONE_LEVEL), pre=150, post=50), small=True)
    yield Case("legacy", lambda: _propose(300, legacy=True, min_size=16.0, kind="huge"), small=True)
    yield Case("all-too-small", lambda: _propose(100, min_size=1e4), small=True)
    yield Case("scores-NaN", lambda: _propose(100, scores="NaN"), small=True)
    yield Case("scales", lambda: _propose(200, min_size=16.0, scales=[0.5, 3.0]), small=True)
    yield Case("anchors-of-each-image", lambda: _propose(200, B=3, anchors="own"), small=True)
    yield Case("post-1", lambda: _propose(200, post=1), small=True)
    yield Case("pre-1", lambda: _propose(200, pre=1), small=True)
    for threshold in (0.0, 0.3, 1.0):
        yield Case(f"threshold-{threshold}", lambda t=threshold: _propose(250, post=250, iou_threshold=t), small=True)
    yield Case("transposed", lambda: _with(_propose(150), deltas=transposed, scores=transposed), small=True)


def _generate_cases() -> Iterator[Case]:
    for convention in ("torchvision", "detectron2", "legacy"):
        for sizes, ratios in (((128, 256, 512), (0.5, 1.0, 2.0)), ((18, 30), (1.3, 2.0)), ((45,), (1.0,))):
            name = f"{convention}-{len(sizes)}x{len(ratios)}-{sizes[0]}"
            args: Args = {"sizes": sizes, "ratios": ratios, "convention": convention}
            yield Case(name, lambda a=args: dict(a), small=True)


def _grid_cases() -> Iterator[Case]:
    cells = torch.from_numpy(reference.generate_anchors((32, 64), (0.5, 1.0, 2.0), convention="detectron2"))
    for size, stride, offset in (((3, 5), 16, 0.0), ((3, 5), (8, 16), 0.5), ((0, 5), 16, 0.0), ((7, 1), (3, 5), 0.3)):
        args: Args = {"cell_anchors": cells, "grid_size": size, "stride": stride, "offset": offset}
        yield Case(f"{size[0]}x{size[1]}-offset-{offset}", lambda a=args: dict(a), small=True)
    yield Case("f64", lambda: {"cell_anchors": cells.double(), "grid_size": (4, 6), "stride": 7}, small=True)


OPS: tuple[Op, ...] = (
    simple_op("generate_anchors", "anchors:float32", tuple(_generate_cases()), lead=""),
    simple_op("grid_anchors", "anchors:input", tuple(_grid_cases()), lead="cell_anchors"),
    simple_op("decode_clip", "boxes:compute valid:bool", tuple(_decode_cases()), lead="deltas"),
    Op(
        "decode_clip_backward",
        ("grad_deltas:input",),
        tuple(_backward_cases()),
        lead="deltas",
        call=_run_decode_backward,
        oracle=lambda args: as_tuple(_decode_backward_oracle(args)),
        precise=True,
    ),
    simple_op("encode", "targets:compute", tuple(_encode_cases()), lead="gt_boxes"),
    simple_op(
        "rpn_proposals",
        "boxes:compute scores:input indices:int64 counts:int64",
        (*_propose_cases(), *_map_cases()),
        lead="deltas",
    ),
)
