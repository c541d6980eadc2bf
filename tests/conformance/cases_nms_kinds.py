"""Cases of generalized, distance and complete IoU: of every pair, as losses, and the gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

import frcnn_fast.ops
from frcnn_fast import reference

from .build import DTYPES, generator, integer_boxes, random_boxes, strided, tensor, with_odd_boxes
from .harness import Args, Arrays, Case, Op

KINDS = ("generalized", "distance", "complete")


def _pair(N: int, M: int, dtype: torch.dtype = torch.float32, kind: str = "random") -> Args:
    g = generator(31, N, M)
    make = integer_boxes if kind in ("integer", "inverted") else random_boxes
    boxes = [make(g, (n,)) for n in (N, M)]
    if kind == "odd":
        boxes = [with_odd_boxes(g, b, 0.5) for b in boxes]
    if kind == "inverted":
        boxes = [b[:, [2, 1, 0, 3]] for b in boxes]
    if kind == "unit":
        boxes = [b / 512 for b in boxes]
    return {"boxes1": tensor(boxes[0], dtype), "boxes2": tensor(boxes[1], dtype)}


def _pairs_of_rows(N: int, dtype: torch.dtype = torch.float32, kind: str = "random") -> Args:
    """Half of the second boxes are near the first ones, a few are the same."""
    args = _pair(N, N, dtype, kind)
    g = generator(32, N)
    near = args["boxes1"].double() + torch.from_numpy(g.integers(-3, 4, (N, 4)))
    chosen = torch.from_numpy(g.integers(0, 5, N))[:, None]
    second = torch.where(chosen < 2, near, args["boxes2"].double())
    second = torch.where(chosen == 2, args["boxes1"].double(), second)
    return args | {"boxes2": second.to(dtype)}


def _without_a_loss(kind: str) -> Iterator[Case]:
    extra = {} if kind == "generalized" else {"eps": 1e-3}
    for N, M in ((0, 5), (5, 0), (1, 1), (33, 65)):
        yield Case(f"{N}x{M}", lambda N=N, M=M: _pair(N, M), small=True)
    yield Case("500x300", lambda: _pair(500, 300))
    for name, dtype in DTYPES.items():
        yield Case(f"{name}-odd", lambda d=dtype: _pair(40, 50, d, "odd"), small=True)
        yield Case(f"{name}-unit", lambda d=dtype: _pair(20, 30, d, "unit"), small=name == "f64")
    for values in ("integer", "inverted"):
        yield Case(f"{values}-values", lambda v=values: _pair(60, 60, kind=v) | extra, small=True)
    yield Case("int64", lambda: _pair(20, 30, torch.int64, "integer"), small=True)
    yield Case("strided", lambda: {name: strided(t) for name, t in _pair(20, 30).items()}, small=True)


def _losses() -> Iterator[Case]:
    for N in (0, 1, 65, 257):
        yield Case(f"{N}", lambda N=N: _pairs_of_rows(N), small=N != 257)
    yield Case("70000", lambda: _pairs_of_rows(70000))  # threads
    for name, dtype in DTYPES.items():
        yield Case(f"{name}-odd", lambda d=dtype: _pairs_of_rows(150, d, "odd"), small=True)
        yield Case(f"{name}-unit", lambda d=dtype: _pairs_of_rows(40, d, "unit"), small=name == "f64")
    for values in ("integer", "inverted"):
        yield Case(f"{values}-eps", lambda v=values: _pairs_of_rows(100, kind=v) | {"eps": 0.25}, small=True)
    yield Case("eps-0", lambda: _pairs_of_rows(30, kind="integer") | {"eps": 0.0}, small=True)
    yield Case("strided", lambda: {name: strided(t) for name, t in _pairs_of_rows(30).items()}, small=True)


def _with_grad(args: Args, kind: str, eps: float, *size: int) -> Args:
    grad = generator(33, *size).normal(size=size)
    return args | {"grad": tensor(grad, args["boxes1"].dtype), "kind": kind, "eps": eps}


def _backward_cases(loss: bool) -> Iterator[Case]:
    """Only float32 and float64: the gradient of a half is rounded once more."""

    def make(size: tuple[int, ...], kind: str, eps: float, dtype: torch.dtype, values: str) -> Args:
        args = _pairs_of_rows(size[0], dtype, values) if loss else _pair(size[0], size[1], dtype, values)
        return _with_grad(args, kind, eps, *size)

    sizes = ((0,), (1,), (65,), (300,)) if loss else ((0, 5), (5, 0), (1, 1), (33, 65), (20, 300))
    for kind in KINDS:
        eps = 0.0 if kind == "generalized" and not loss else 1e-7
        for size in sizes:
            yield Case(
                f"{kind}-{'x'.join(map(str, size))}",
                lambda s=size, k=kind, e=eps: make(s, k, e, torch.float32, "random"),
                small=300 not in size,
            )
        for name in ("f32", "f64"):
            for values in ("odd", "integer", "inverted"):
                yield Case(
                    f"{kind}-{name}-{values}",
                    lambda k=kind, d=DTYPES[name], v=values, e=eps: make(
                        (90,) if loss else (20, 50), k, e, d, v
                    ),
                    small=True,
                )  # fmt: skip
        if loss:
            yield Case(
                f"{kind}-eps",
                lambda k=kind: make((90,), k, 0.25, torch.float32, "integer"),
                small=True,
            )


def _forward_op(kind: str, loss: bool) -> Op:
    name = f"{kind}_box_iou{'_loss' if loss else ''}"

    def call(args: Args) -> Tensor:
        return getattr(frcnn_fast.ops, name)(**args)

    def oracle(args: Args) -> np.ndarray:
        boxes = [args["boxes1"], args["boxes2"]]
        integers = np.issubdtype(boxes[0].dtype, np.integer)
        if integers:
            boxes = [b.astype(np.float64) for b in boxes]
        eps = args.get("eps", 1e-7)
        found = (reference.iou_loss if loss else reference.pairwise_iou)(*boxes, kind=kind, eps=eps)
        return found.astype(np.float32) if integers else found

    output = "loss:compute" if loss else "iou:compute"
    return Op(name, (output,), tuple(_losses() if loss else _without_a_loss(kind)), "boxes1", call, oracle)


def _backward_op(loss: bool) -> Op:
    def call(args: Args) -> tuple[Tensor | None, ...]:
        name = f"{args['kind']}_box_iou{'_loss' if loss else ''}"
        eps = {"eps": args["eps"]} if loss or args["kind"] != "generalized" else {}
        leaves = [args[n].detach().clone().requires_grad_() for n in ("boxes1", "boxes2")]
        getattr(frcnn_fast.ops, name)(*leaves, **eps).backward(args["grad"])
        return tuple(leaf.grad for leaf in leaves)

    def oracle(args: Args) -> Arrays:
        first, second, grad = args["boxes1"], args["boxes2"], args["grad"]
        how = {"kind": args["kind"], "eps": args["eps"]}
        back = reference.iou_loss_backward if loss else reference.pairwise_iou_backward
        return back(grad, first, second, **how), back(grad if loss else grad.T, second, first, **how)

    name = "iou_loss_backward" if loss else "pairwise_iou_backward"
    outputs = ("grad_boxes1:input", "grad_boxes2:input")
    return Op(name, outputs, tuple(_backward_cases(loss)), "boxes1", call, oracle)


OPS: tuple[Op, ...] = (
    *(_forward_op(kind, loss) for loss in (False, True) for kind in KINDS),
    _backward_op(False),
    _backward_op(True),
)
