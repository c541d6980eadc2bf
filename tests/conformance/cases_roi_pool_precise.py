"""Cases of prroi_pool, forward and backward. All results are those of the oracle to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import frcnn_fast.ops
from frcnn_fast import reference

from .build import DTYPES, generator, tensor
from .cases_roi_pool import common_cases, not_finite, output_shape, pooling, wrong_images
from .harness import Args, Case, Op


def _precise(args: Args) -> Args:
    """RoIPool's arguments by this op's names."""
    return {{"input": "features", "boxes": "rois"}.get(name, name): value for name, value in args.items()}


def _with_grads(args: Args) -> Args:
    """The same with a gradient of the output."""
    grad = generator(54).normal(size=output_shape(args))
    return _precise(args) | {"grad": tensor(grad, args["input"].dtype)}


def _boxes(rois: list, dtype: torch.dtype = torch.float32, **changed: Any) -> Args:
    args = pooling((1, 3, 6, 7), 1, 3, scale=1.0, dtype=dtype, **changed)
    return args | {"boxes": tensor([[0, *roi] for roi in rois], dtype)}


# Whose edges lie on cells, within a cell, within one cell of the border on either side, and on and beyond it.
EDGES = [
    [1, 2, 4, 5],
    [2, 2, 3, 3],
    [1.25, 1.5, 1.75, 1.625],
    [-0.5, -0.25, 0.5, 0.75],
    [-1, -1, 2, 2],
    [-3, -2, 0, 0],
    [4.5, 3.5, 6.5, 5.5],
    [5, 4, 7, 6],
    [6, 5, 9, 8],
    [-4, -4, 12, 12],
]
# That pool nothing: no side, inverted, beyond the map, longer than numbers get.
NOTHING = [
    [2, 1, 2, 3],
    [1, 3, 4, 3],
    [2, 2, 2, 2],
    [4, 1, 2, 3],
    [1, 4, 3, 2],
    [7, 1, 9, 3],
    [1, 6, 3, 8],
    [-4, 1, -1, 3],
    [1, -5, 3, -1],
    [-3e38, 0, 3e38, 4],
]
# A side of a few units in the last place of its coordinates: some bins are left without any.
NARROW = [[1, 1, 1 + 4e-7, 3], [1, 1, 3, 1 + 4e-7], [4, 4, 4 + 1e-6, 4 + 1e-6], [1e-30, 0, 3e-30, 3e-30]]


# Of the common cases those that simulated GPUs run: the kernels that sum up and gather are RoIAlign's, whose cases are
# all run there.
SMALL = {
    *("K0", "K1", "bins-(3,5)", "C1", "C33", "C65-channels_last", "f16", "f16-channels_last", "f64-channels_last"),
    *("f32-sliced", "bf16-strided", "rois-odd", "one-cell-map", "one-row-map", "transposed-rois"),
}


def _cases(make: Callable[[Args], Args]) -> Iterator[Case]:
    for name, args, small in common_cases():
        # Lists of leaves: tests/test_prroi_pool.py. The oracle takes long over the largest.
        if not name.startswith(("list", "K300")):
            yield Case(name, lambda a=args: make(a()), small and name in SMALL)
    yield Case("bins-(10,2)", lambda: make(pooling((1, 3, 9, 9), 3, (10, 2))), small=True)
    yield Case("K60-C64", lambda: make(pooling((2, 64, 38, 50), 60)))
    for name, dtype in (("f32", torch.float32), ("f64", torch.float64)):
        for values in ("random", "odd"):
            yield Case(f"edges-{values}-{name}", lambda v=values, d=dtype: make(_boxes(EDGES, d, values=v)), small=True)
        # NaN everywhere: a cell too many is seen.
        for kind, rois in (("edges", EDGES), ("nothing", NOTHING)):
            yield Case(f"{kind}-NaN-{name}", lambda r=rois, d=dtype: make(_boxes(r, d, values="NaN")), small=True)
    yield Case("narrow", lambda: make(_boxes(NARROW)), small=True)
    yield Case("narrow-f64", lambda: make(_boxes(NARROW, torch.float64)), small=True)
    yield Case("enormous", lambda: make(_boxes([[-x, -x, x, x] for x in (1e4, 1e9, 1e20, 1e38)])), small=True)
    for name in ("f64", "f16"):
        yield Case(f"tiny-rois-{name}", lambda d=DTYPES[name]: make(pooling(rois="tiny", dtype=d, size=2)), small=True)
    yield Case("odd-everything", lambda: make(pooling(K=40, size=3, rois="odd", values="odd")), small=True)
    yield Case("rois-not-finite", lambda: make(not_finite()), small=True)
    yield wrong_images(make, "rois")


def _for_oracle(args: Args) -> Args:
    args = dict(args)
    size = args.pop("output_size")
    args["output_height"], args["output_width"] = (size, size) if isinstance(size, int) else size
    return args


def _gradients(args: Args) -> Any:
    args = dict(args)
    grad, leaves = (
        args.pop("grad"),
        {name: args[name].detach().clone().requires_grad_() for name in ("features", "rois")},
    )
    frcnn_fast.ops.prroi_pool(**(args | leaves)).backward(grad)
    return tuple(leaf.grad for leaf in leaves.values())


def _gradients_oracle(args: Args) -> Any:
    grad, features, rois, scale = args["grad"], args["features"], args["rois"], args.get("spatial_scale", 1.0)
    return (
        reference.prroi_pool_backward(grad, rois, features.shape, False, scale),
        reference.prroi_pool_rois_backward(grad, features, rois, scale),
    )


OPS: tuple[Op, ...] = (
    Op(
        "prroi_pool",
        ("output:input",),
        tuple(_cases(_precise)),
        "features",
        call=lambda args: frcnn_fast.ops.prroi_pool(**args),
        oracle=lambda args: reference.prroi_pool(**_for_oracle(args)),
    ),
    Op(
        "prroi_pool_backward",
        ("grad_features:input", "grad_rois:input"),
        tuple(_cases(_with_grads)),
        "features",
        call=_gradients,
        oracle=_gradients_oracle,
    ),
)
