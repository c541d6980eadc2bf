"""Cases of the gradient that roi_align has for boxes. All results are those of the oracle to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import frcnn_fast.ops
from frcnn_fast import reference

from .build import DTYPES, generator, tensor
from .cases_roi_pool import FORMATS, common_cases, not_finite, output_shape, pooling, wrong_images
from .cases_roi_pool_precise import EDGES, NARROW, NOTHING
from .harness import Args, Case, Op

# Of the common cases those that simulated GPUs run.
SMALL = {
    *("K0", "K1", "bins-(3,5)", "bins-(33,2)", "C1", "C33", "C65-channels_last", "f16", "f16-channels_last"),
    *("f64-channels_last", "f32-sliced", "bf16-strided", "rois-odd", "one-cell-map", "one-row-map", "transposed-rois"),
}


def _with_grad(args: Args) -> Args:
    grad = generator(55).normal(size=output_shape(args))
    return args | {"grad": tensor(grad, args["input"].dtype)}


def _boxes(rois: list, dtype: torch.dtype = torch.float32, **changed: Any) -> Args:
    args = pooling((1, 3, 6, 7), 1, 3, scale=1.0, dtype=dtype, **changed)
    return args | {"boxes": tensor([[0, *roi] for roi in rois], dtype)}


def _infinite_gradients(args: Args) -> Args:
    """Of regions that pool nothing: nothing comes of them all the same."""
    grad = args["grad"].clone()
    lost = ~args["boxes"].isfinite().all(1) | (args["boxes"][:, 0] < 0)
    grad[lost] = float("inf")
    assert lost.any()
    return args | {"grad": grad}


def _cases() -> Iterator[Case]:
    make: Callable[[Args], Args] = _with_grad
    for ratio in (-1, 0, 1, 2, 3):
        for aligned in (False, True):
            scalars: Args = {"sampling_ratio": ratio, "aligned": aligned, "rois": "odd", "K": 30}
            name = f"ratio{ratio}{'-aligned' if aligned else ''}"
            yield Case(name, lambda s=scalars: make(pooling(size=3, **s)), small=ratio != 0)
            for dtype in (torch.float32, torch.float64):
                # Samples on cells, within a cell of the border, and beyond it; then NaN in cells that none may touch.
                edges: Args = {"dtype": dtype, "sampling_ratio": ratio, "aligned": aligned}
                suffix = f"{name}-{'f64' if dtype == torch.float64 else 'f32'}"
                yield Case(f"edges-{suffix}", lambda e=edges: make(_boxes(EDGES, **e)), small=ratio in (-1, 2))
                yield Case(
                    f"edges-odd-{suffix}", lambda e=edges: make(_boxes(EDGES, values="odd", **e)), small=ratio == 2
                )
                yield Case(f"nothing-{suffix}", lambda e=edges: make(_boxes(NOTHING[:-1], values="NaN", **e)))
    for name, args, small in common_cases():
        # Lists of leaves: tests/test_roi_pool_boxes.py. The oracle takes long over the largest.
        if not name.startswith(("list", "K300")):
            yield Case(name, lambda a=args: make(a() | {"sampling_ratio": 2}), small and name in SMALL)
    for layout in FORMATS:
        for wanted, memory_format in FORMATS.items():

            def stored(layout: str = layout, kind: torch.memory_format = memory_format) -> Args:
                args = make(pooling((2, 40, 7, 9), 6, (3, 2), layout=layout, memory_format=kind))
                return args | {"grad": args["grad"].contiguous(memory_format=kind)}

            yield Case(f"{wanted}-of-{layout}", stored, small=True)
    # One sample in a bin of many cells: columns that lie apart.
    yield Case("sparse", lambda: make(pooling((1, 33, 40, 90), 9, 2, scale=1.0, sampling_ratio=1)))
    yield Case("K60-C64", lambda: make(pooling((2, 64, 38, 50), 60, sampling_ratio=2)))
    yield Case("narrow", lambda: make(_boxes(NARROW, aligned=True)), small=True)
    yield Case("enormous", lambda: make(_boxes([[-x, -x, x, x] for x in (1e4, 1e20, 1e38)], sampling_ratio=3)))
    for name in ("f64", "f16"):
        for aligned in (False, True):
            tiny: Args = {"rois": "tiny", "dtype": DTYPES[name], "aligned": aligned}
            suffix = f"{name}{'-aligned' if aligned else ''}"
            yield Case(f"tiny-rois-{suffix}", lambda t=tiny: make(pooling(size=2, **t)), small=True)
    yield Case("odd-everything", lambda: make(pooling(K=40, size=3, rois="odd", values="odd")), small=True)
    yield Case("rois-not-finite", lambda: _infinite_gradients(make(not_finite())), small=True)
    yield wrong_images(make)


def _gradient(args: Args) -> Any:
    args = dict(args)
    grad, boxes = args.pop("grad"), args["boxes"].detach().clone().requires_grad_()
    frcnn_fast.ops.roi_align(**(args | {"boxes": boxes}), box_gradients=True).backward(grad)
    return boxes.grad


def _oracle(args: Args) -> Any:
    scalars = {name: args[name] for name in ("spatial_scale", "sampling_ratio", "aligned") if name in args}
    return reference.roi_align_rois_backward(args["grad"], args["input"], args["boxes"], **scalars)


OPS: tuple[Op, ...] = (
    Op("roi_align_rois_backward", ("grad_rois:input",), tuple(_cases()), "input", call=_gradient, oracle=_oracle),
)
