"""Cases of roi_pool, roi_align and multiscale_roi_align, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import frcnn_fast.ops
from frcnn_fast import reference

from .build import DTYPES, generator, random_boxes, strided, tensor
from .harness import Args, Case, Op


def _rois(g: np.random.Generator, K: int, B: int, extent: float, kind: str) -> np.ndarray:
    boxes = random_boxes(g, (K,), extent, extent * 0.6)
    if kind == "integer":
        boxes = np.round(boxes)
    elif kind == "half":
        # Corners at .5 after scaling: round half away from zero, on both sides of zero.
        boxes = np.round(boxes) + 0.5
    elif kind == "tiny":
        boxes[:, 2:] = boxes[:, :2] + g.uniform(0.0, 0.5, (K, 2))
    elif kind == "odd":
        inverted = g.random(K) < 0.3
        boxes[inverted] = boxes[inverted][:, [2, 3, 0, 1]]
        far = g.random(K) < 0.3
        boxes[far] += g.choice([-10.0, 10.0], (int(far.sum()), 1)) * extent
        flat = g.random(K) < 0.2
        boxes[flat, 2:] = boxes[flat, :2]
    images = g.integers(-1 if kind == "odd" else 0, B, K) if B else np.full(K, -1)
    return np.concatenate([images[:, None], boxes], axis=1)


def _values(g: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    values = g.normal(size=shape)
    if kind == "tied":
        return g.choice([-1.0, 0.0, -0.0, 2.0], shape)
    if kind == "odd":
        odd = g.choice([np.nan, np.inf, -np.inf, 0.0, -0.0], shape)
        return np.where(g.random(shape) < 0.2, odd, values)
    if kind == "NaN":
        return np.where(g.random(shape) < 0.7, np.nan, -np.inf)
    return values


def pooling(
    shape: tuple[int, int, int, int] = (2, 5, 17, 23),
    K: int = 12,
    size: Any = (7, 7),
    *,
    scale: float = 0.25,
    rois: str = "random",
    values: str = "random",
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    **scalars: object,
) -> Args:
    g = generator(51, *shape, K)
    feature = tensor(_values(g, shape, values), dtype)
    if layout == "channels_last":
        feature = feature.to(memory_format=torch.channels_last)
    elif layout == "strided":
        feature = strided(feature)
    elif layout == "sliced":
        feature = feature[:, 1:, 2:, 3:]
    boxes = tensor(_rois(g, K, shape[0], max(shape[2:]) / scale, rois), dtype)
    return {"input": feature, "boxes": boxes, "output_size": size, "spatial_scale": scale} | scalars


def common_cases() -> Iterator[tuple[str, Callable[[], Args], bool]]:
    """Name, arguments, small: for RoIPool and RoIAlign alike."""
    for K in (0, 1, 2, 33):
        yield f"K{K}", lambda K=K: pooling(K=K), True
    yield "K300-C64", lambda: pooling((2, 64, 38, 50), 300), False
    for size in (1, (2, 2), (3, 5), 14):
        yield f"bins-{size}".replace(" ", ""), lambda s=size: pooling(size=s), True
    for size in ((33, 2), (1, 40)):  # more bins a side than a warp has lanes
        yield f"bins-{size}".replace(" ", ""), lambda s=size: pooling((1, 5, 9, 11), 20, s), True
    for C in (1, 31, 33, 64):
        yield f"C{C}", lambda C=C: pooling((1, C, 9, 9), 6, 2), True
    for layout in ("contiguous", "channels_last"):  # channels enough to fill a program with one RoI
        yield f"C65-{layout}", lambda y=layout: pooling((1, 65, 5, 5), 3, (4, 9), layout=y), True
    for C in (40, 72):
        yield f"C{C}-channels_last", lambda C=C: pooling((1, C, 9, 9), 6, 2, layout="channels_last"), True
    for name, dtype in DTYPES.items():
        yield name, lambda d=dtype: pooling(dtype=d), True
        for layout in ("channels_last", "strided", "sliced"):
            yield f"{name}-{layout}", lambda d=dtype, y=layout: pooling((2, 8, 10, 11), 7, 3, dtype=d, layout=y), True
    for rois in ("integer", "half", "tiny", "odd"):
        yield f"rois-{rois}", lambda r=rois: pooling(K=40, size=3, rois=r), True
    yield "rois-odd-f64", lambda: pooling(K=40, size=(3, 2), rois="odd", dtype=torch.float64), True
    yield "scale-1-16", lambda: pooling((1, 4, 20, 31), 20, scale=1 / 16), True
    yield "scale-1", lambda: pooling((1, 4, 20, 31), 20, scale=1.0), True
    yield "one-cell-map", lambda: pooling((2, 3, 1, 1), 10, 2), True
    yield "one-row-map", lambda: pooling((2, 3, 1, 30), 10, 3), True
    yield "list-of-boxes", lambda: _as_list(pooling()), True
    yield "list-with-an-empty-image", lambda: _as_list(pooling((3, 4, 9, 9), 8), 3), True
    yield "same-roi-often", _same_roi, True
    yield "transposed-rois", _transposed_rois, True


def _as_list(args: Args, images: int = 2) -> Args:
    rois = args["boxes"]
    lists = [rois[rois[:, 0] == b][:, 1:].contiguous() for b in range(images)]
    lists[-1] = lists[-1][:0]
    return args | {"boxes": lists}


def wrong_images(make: Callable[[Args], Args], boxes: str = "boxes") -> Case:
    """Images 2 (of 2), -2, 0.5, NaN and one that no integer holds. boxes: the argument's name."""
    args = make(pooling(K=12, size=3))
    rois, padded = args[boxes].clone(), args[boxes].clone()
    rois[:10:2, 0] = tensor([2.0, -2.0, 0.5, float("nan"), 1e30])
    padded[:10:2, 0] = -1.0
    return Case("images-out-of-range", lambda: args | {boxes: rois}, small=True, as_if={boxes: padded})


def _same_roi() -> Args:
    args = pooling(K=1, size=2)
    return args | {"boxes": args["boxes"].repeat(50, 1)}


def _transposed_rois() -> Args:
    args = pooling()
    return args | {"boxes": args["boxes"].t().contiguous().t()}


def _pool_cases(make: Callable[[Args], Args] = lambda args: args) -> Iterator[Case]:
    for name, args, small in common_cases():
        yield Case(name, lambda a=args: make(a()), small)
    for values in ("tied", "odd", "NaN"):
        for dtype in ("f32", "f16"):
            yield Case(
                f"values-{values}-{dtype}",
                lambda v=values, d=dtype: make(pooling(K=25, size=2, values=v, dtype=DTYPES[d])),
                small=True,
            )
    yield Case("odd-everything", lambda: make(pooling(K=60, size=3, rois="odd", values="odd")), small=True)
    for values in ("tied", "odd", "NaN"):
        # Enough boxes for their maxima to be found in a map that was loaded as a whole.
        many = {"K": 40, "size": 3, "rois": "odd", "values": values}
        yield Case(f"many-boxes-{values}", lambda m=many: make(pooling((1, 31, 9, 14), **m)), small=True)
        yield Case(f"many-boxes-{values}-f64", lambda m=many: make(pooling(dtype=torch.float64, **m)), small=True)
    yield Case("a-map-as-large-as-shared-memory", lambda: make(pooling((1, 3, 72, 88), 16, 2, scale=1.0)), small=True)
    for copies in (1, 4):
        yield Case(f"largest-bins-x{copies}", lambda n=copies: make(_growing(n)), small=True)
    yield Case("one-number", lambda: make(_growing(1, C=1)), small=True)
    for rois in ("random", "half", "tiny", "odd"):
        plain: Args = {"rounded": False, "rois": rois, "K": 40, "values": "odd"}
        yield Case(f"not-rounded-{rois}", lambda p=plain: make(pooling(size=(3, 2), **p)), small=True)
        other = plain | {"dtype": torch.float64, "layout": "channels_last"}
        yield Case(f"not-rounded-{rois}-f64", lambda p=other: make(pooling((2, 8, 9, 14), size=5, **p)), small=True)
    yield Case("not-rounded-f16", lambda: make(pooling(dtype=DTYPES["f16"], rounded=False)), small=True)
    yield Case("not-rounded-largest-bins", lambda: make(_growing(4) | {"rounded": False}), small=True)
    yield Case("not-rounded-not-finite", lambda: make(not_finite() | {"rounded": False}), small=True)
    yield Case("not-rounded-no-sides", lambda: make(_sideless()), small=True)
    yield Case("rois-not-finite", lambda: make(not_finite()), small=True)
    yield wrong_images(make)


def _growing(copies: int, C: int = 3) -> Args:
    """Each cell larger than the one before, so that a bin's maximum is its last cell, and (of several channels) a
    channel of NaN, where there is none; boxes of one bin each, of 15 x 16 cells, of one row or column more, and others
    up to the whole map."""
    H, W = 33, 41
    values = np.arange(C * H * W).reshape(1, C, H, W) / 64
    values[:, 1:2] = np.nan
    sizes = [(17, 15), (15, 17), (16, 15), (16, 16), (8, 32), (W, 2), (W, H)]
    rois = [[0.0, 1.0, 0.0, float(w), float(h - 1)] for w, h in sizes]
    return {
        "input": tensor(values),
        "boxes": tensor(rois * copies),
        "output_size": 1,
        "spatial_scale": 1.0,
    }


def _sideless() -> Args:
    """Boxes whose width, or height, is 0 once 1 has been added, at whole cells and between them."""
    args = pooling(K=24, size=2, scale=0.5, rounded=False)
    rois = args["boxes"].clone()
    rois[::2, 3], rois[1::2, 4] = rois[::2, 1] - 1, rois[1::2, 2] - 1
    rois[:8] = rois[:8].round()
    return args | {"boxes": rois}


def not_finite() -> Args:
    return _without_corners(pooling(K=10, size=2))


def _without_corners(args: Args) -> Args:
    rois = args["boxes"].clone()
    rois[0, 1], rois[1, 4], rois[2, 3], rois[3, 2] = float("nan"), float("inf"), float("-inf"), float("nan")
    return args | {"boxes": rois}


FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def _layout_cases(
    make: Callable[[Args], Args], of: Callable[[str], Iterator[tuple[str, Callable[[], Args], bool]]]
) -> Iterator[Case]:
    """Maps of either layout, results (and their gradients) of either. of(layout): name, what is pooled, small."""
    for given in FORMATS:
        for name, args, small in of(given):
            for wanted, memory_format in FORMATS.items():

                def stored(args: Callable[[], Args] = args, kind: torch.memory_format = memory_format) -> Args:
                    made = make(args() | {"memory_format": kind})
                    return made | {"grad": made["grad"].contiguous(memory_format=kind)} if "grad" in made else made

                yield Case(f"{name}-{wanted}-of-{given}", stored, small)


def _maps(layout: str) -> Iterator[tuple[str, Callable[[], Args], bool]]:
    """Channels for the kernels that read channels_last maps in place, and others."""
    for C in (19, 32, 80):
        yield f"C{C}", lambda C=C: pooling((2, C, 7, 9), 6, (3, 2), layout=layout, sampling_ratio=2), C < 80
    yield "C32-f16", lambda: pooling((1, 32, 7, 9), 5, 3, layout=layout, dtype=torch.float16), False
    yield "one-bin", lambda: pooling((1, 32, 7, 9), 5, 1, layout=layout), True
    for size in ((9, 8), (3, 40)):  # bins by vectors, more than two warps' and more than the test build has room for
        yield f"{size[0]}x{size[1]}-bins", lambda s=size: pooling((1, 40, 7, 9), 3, s, layout=layout), True
    yield "one-channel", lambda: pooling((1, 1, 7, 9), 5, 3, layout=layout), False
    # Enough of them for the map to be loaded as a whole.
    yield "many", lambda: pooling((1, 32, 6, 7), 60, 2, layout=layout, rois="odd", sampling_ratio=2), False
    yield "C32-not-finite", lambda: _without_corners(pooling((2, 32, 7, 9), 10, 2, layout=layout)), False


def _align_cases(make: Callable[[Args], Args] = lambda args: args) -> Iterator[Case]:
    for ratio in (-1, 0, 1, 2, 3):
        for aligned in (False, True):
            yield Case(
                f"ratio{ratio}{'-aligned' if aligned else ''}",
                lambda r=ratio, a=aligned: make(pooling(sampling_ratio=r, aligned=a, rois="odd", K=30, size=3)),
                small=True,
            )
    for name, args, small in common_cases():
        yield Case(name, lambda a=args: make(a() | {"sampling_ratio": 2}), small)
    for name in ("f64", "f16"):
        for aligned in (False, True):
            yield Case(
                f"tiny-rois-{name}{'-aligned' if aligned else ''}",
                lambda d=DTYPES[name], a=aligned: make(pooling(rois="tiny", dtype=d, aligned=a, size=2)),
                small=True,
            )
    yield wrong_images(make)
    yield from _layout_cases(make, _maps)
    yield Case("adaptive-K100", lambda: make(pooling((2, 16, 38, 50), 100)))
    yield Case("infinite-values", lambda: make(pooling(values="odd", sampling_ratio=2, size=2)), small=True)


def _max_cases(make: Callable[[Args], Args] = lambda args: args) -> Iterator[Case]:
    for ratio in (-1, 1, 2, 3):
        for aligned in (False, True):
            scalars: Args = {"sampling_ratio": ratio, "aligned": aligned, "rois": "odd", "K": 30}
            name = f"ratio{ratio}{'-aligned' if aligned else ''}"
            yield Case(name, lambda s=scalars: make(pooling(size=3, **s)), small=True)
            yield Case(f"{name}-odd", lambda s=scalars: make(pooling(size=2, values="odd", **s)), small=True)
            yield Case(f"{name}-tied", lambda s=scalars: make(pooling(size=2, values="tied", **s)), small=True)
    # None above 0, so that samples outside the map are the largest.
    yield Case("below-zero", lambda: make(_below_zero(pooling(rois="odd", K=40, size=3, sampling_ratio=2))), small=True)
    inverted: Args = {"rois": "odd", "aligned": True, "sampling_ratio": 3, "scale": 0.5}
    yield Case("below-zero-inverted", lambda: make(_below_zero(pooling(K=40, size=2, **inverted))), small=True)
    yield Case("values-NaN", lambda: make(pooling(values="NaN", sampling_ratio=2)), small=True)
    yield Case("rois-not-finite", lambda: make(not_finite() | {"sampling_ratio": 2}), small=True)
    for name, args, small in common_cases():
        yield Case(name, lambda a=args: make(a() | {"sampling_ratio": 2}), small)
    yield wrong_images(make)


def _below_zero(args: Args) -> Args:
    """-1 and -2, and 0 here and there."""
    values = -(args["input"].abs() > 0.5).to(args["input"].dtype) - 1
    return args | {"input": torch.where(args["input"] > 1.5, torch.zeros_like(values), values)}


def _pyramid(
    K: int = 40,
    *,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    rois: str = "random",
    **scalars: object,
) -> Args:
    """Two images of 256x256 at strides 4 ... 32; RoI sides from 4 to 400 pixels reach every level."""
    g = generator(52, K)
    features = [tensor(g.normal(size=(2, 6, 256 // s, 256 // s)), dtype) for s in (4, 8, 16, 32)]
    if channels_last:
        features = [f.to(memory_format=torch.channels_last) for f in features]
    boxes = _rois(g, K, 2, 200.0, rois)
    growth = 2.0 ** g.uniform(-3.0, 1.5, (K, 1))
    boxes[:, 3:] = boxes[:, 1:3] + (boxes[:, 3:] - boxes[:, 1:3]) * growth
    return {
        "features": features,
        "boxes": tensor(boxes, dtype),
        "output_size": 3,
        "spatial_scales": [1 / 4, 1 / 8, 1 / 16, 1 / 32],
        "sampling_ratio": 2,
    } | scalars


def _pyramids(layout: str) -> Iterator[tuple[str, Callable[[], Args], bool]]:
    def first() -> Args:
        args = _pyramid(15)
        one, *others = args["features"]
        return args | {"features": [one.contiguous(memory_format=FORMATS[layout]), *others]}

    yield "all", lambda: _pyramid(15, channels_last=layout == "channels_last"), True
    yield "first", first, False


def _exact_levels() -> Args:
    """Squares whose side is exactly a level's, one pixel less and one more; and RoIs whose area is exactly the least of
    a level (a power of two wide, so that the product is exact), and the float below it."""
    rows = [(s + d, s + d) for s in (56, 112, 224, 448) for d in (-1, 0, 1)]
    for width, side in ((128, 112), (256, 224), (512, 448)):
        least = np.float32((side * 2.0**-1e-6) ** 2)
        rows += [(width, area / width) for area in (least, np.nextafter(least, np.float32(0)))]
    boxes = np.zeros((len(rows), 5))
    boxes[:, 3:] = rows
    return _pyramid() | {"boxes": tensor(boxes)}


def _pyramid_cases(make: Callable[[Args], Args] = lambda args: args) -> Iterator[Case]:
    for K in (0, 1, 40):
        yield Case(f"K{K}", lambda K=K: make(_pyramid(K)), small=True)
    for name, dtype in DTYPES.items():
        yield Case(name, lambda d=dtype: make(_pyramid(15, dtype=d)), small=True)
    yield Case("channels-last", lambda: make(_pyramid(channels_last=True)), small=True)
    yield Case("aligned-adaptive", lambda: make(_pyramid(12, aligned=True, sampling_ratio=-1)), small=True)
    yield Case("odd-rois", lambda: make(_pyramid(rois="odd")), small=True)
    yield Case("exact-levels", lambda: make(_exact_levels()), small=True)
    yield Case("canonical", lambda: make(_pyramid(canonical_scale=64, canonical_level=3)), small=True)
    yield from _layout_cases(make, _pyramids)
    yield Case("K500", lambda: make(_pyramid(500, output_size=7)))


def output_shape(args: Args) -> tuple[int, ...]:
    size = args["output_size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    boxes, lead = args["boxes"], args["input"] if "input" in args else args["features"][0]
    return (len(boxes) if isinstance(boxes, Tensor) else sum(map(len, boxes)), lead.shape[1], *size)


def _with_grad(args: Args) -> Args:
    lead = args["input"] if "input" in args else args["features"][0]
    return args | {"grad": tensor(generator(53).normal(size=output_shape(args)), lead.dtype)}


def _through(op: str) -> Callable[[Args], Any]:
    """Runs the op and its backward; returns the gradient of each feature map."""

    def call(args: Args) -> Any:
        args = dict(args)
        grad = args.pop("grad")
        name = "features" if "features" in args else "input"
        maps = args[name] if name == "features" else [args[name]]
        leaves = [f.detach().clone().requires_grad_() for f in maps]
        args[name] = leaves if name == "features" else leaves[0]
        getattr(frcnn_fast.ops, op)(**args).backward(grad)
        return tuple(leaf.grad for leaf in leaves)

    return call


def _stored_as_asked(op: str) -> Callable[[Args], Tensor]:
    def call(args: Args) -> Tensor:
        output = getattr(frcnn_fast.ops, op)(**args)
        lead = args["input"] if "input" in args else args["features"][0]
        as_lead = torch.contiguous_format if lead.is_contiguous() else torch.channels_last
        wanted = args.get("memory_format", as_lead)
        if lead.is_contiguous(memory_format=as_lead):  # neither: unsaid
            assert output.is_contiguous(memory_format=wanted), f"{op}: expected {wanted}, got {output.stride()}"
        return output

    return call


def _wide(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], np.ndarray):
        return [v.astype(np.float64) for v in value]
    return value.astype(np.float64)


def _for_oracle(args: Args) -> Args:
    """The arguments as the oracle takes them: boxes as rows, two sizes, no layout."""
    args = dict(args)
    args.pop("memory_format", None)
    args["rois"] = reference.rois_of(args.pop("boxes"))
    size = args.pop("output_size")
    args["output_height"], args["output_width"] = (size, size) if isinstance(size, int) else size
    return args


def _forward_oracle(op: str) -> Callable[[Args], Any]:
    """Feature values in float64, geometry in the backends' precision."""

    def oracle(args: Args) -> Any:
        args = _for_oracle(args)
        name = "features" if "features" in args else "input"
        wide = _wide(args[name])
        sizes = [np.abs(f) for f in wide] if name == "features" else np.abs(wide)
        run = getattr(reference, op)
        return run(**(args | {name: wide})), run(**(args | {name: sizes}))

    return oracle


def _backward_oracle(op: str) -> Callable[[Args], Any]:
    def oracle(args: Args) -> Any:
        args = _for_oracle(args)
        grad = args.pop("grad").astype(np.float64)
        run = getattr(reference, f"{op}_backward")
        if op == "roi_pool":
            argmax = reference.roi_pool(**args)[1]
            args = {"argmax": argmax, "rois": args["rois"], "input": args["input"]}
        else:
            del args["output_height"], args["output_width"]
        if op == "multiscale_roi_align":
            features = args.pop("features")
            args["input_shapes"] = [side for f in features for side in f.shape]
            args["channels_last"] = [False for _ in features]
            return (*run(grad, **args), *run(np.abs(grad), **args))
        args["input_shape"] = args.pop("input").shape
        return run(grad, **args), run(np.abs(grad), **args)

    return oracle


def _largest(args: Args) -> Args:
    return args | {"mode": "max"}


def _max_backward_oracle(args: Args) -> Any:
    """The places in the backends' precision, the sums in float64."""
    args = _for_oracle(args)
    grad = args.pop("grad").astype(np.float64)
    _, y, x = reference.roi_align_max(**args)
    known = (y, x, args["rois"], args["input"].shape)
    return reference.roi_align_max_backward(grad, *known), reference.roi_align_max_backward(np.abs(grad), *known)


def _op(name: str, cases: Iterator[Case], *, backward: bool, lead: str = "input") -> Op:
    return Op(
        f"{name}_backward" if backward else name,
        ("grad:input*",) if backward else ("output:input",),
        tuple(cases),
        lead,
        call=_through(name) if backward else _stored_as_asked(name),
        oracle=_backward_oracle(name) if backward else _forward_oracle(name),
        precise=True,
    )


OPS: tuple[Op, ...] = (
    Op(
        "roi_pool",
        ("output:input",),
        tuple(_pool_cases()),
        "input",
        call=lambda args: frcnn_fast.ops.roi_pool(**args),
        oracle=lambda args: reference.roi_pool(**_for_oracle(args))[0],
    ),
    _op("roi_pool", _pool_cases(_with_grad), backward=True),
    _op("roi_align", _align_cases(), backward=False),
    _op("roi_align", _align_cases(_with_grad), backward=True),
    Op(
        "roi_align_max",
        ("output:input",),
        tuple(_max_cases()),
        "input",
        call=lambda args: frcnn_fast.ops.roi_align(**_largest(args)),
        oracle=lambda args: reference.roi_align_max(**_for_oracle(args))[0],
    ),
    Op(
        "roi_align_max_backward",
        ("grad:input*",),
        tuple(_max_cases(_with_grad)),
        "input",
        call=lambda args: _through("roi_align")(_largest(args)),
        oracle=_max_backward_oracle,
        precise=True,
    ),
    _op("multiscale_roi_align", _pyramid_cases(), backward=False, lead="features"),
    _op("multiscale_roi_align", _pyramid_cases(_with_grad), backward=True, lead="features"),
)
