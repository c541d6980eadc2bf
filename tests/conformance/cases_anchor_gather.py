"""Cases of gather_anchors, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import frcnn_fast.ops
from frcnn_fast import reference

from .build import DTYPES, generator, tensor
from .cases_anchor_decode import LAYOUTS, stored
from .harness import Args, Case, Op, simple_op

LEVELS = ((3, 5, 7), (3, 2, 3), (2, 1, 1))  # k, H, W
ONE = ((9, 8, 11),)


def _gather(
    levels: tuple[tuple[int, int, int], ...] = LEVELS,
    *,
    B: int = 2,
    S: int = 40,
    values: int = 4,
    layouts: tuple[str, ...] = ("NCHW",),
    dtype: torch.dtype = torch.float32,
    padded: int = 5,
) -> Args:
    """The last `padded` rows are none's; rows of one anchor come several times."""
    g = generator(61, B, S)
    maps = [
        stored(tensor(g.normal(size=(B, k * values, H, W)), dtype), layouts[i % len(layouts)])
        for i, (k, H, W) in enumerate(levels)
    ]
    A = sum(k * H * W for k, H, W in levels)
    indices = torch.from_numpy(g.integers(0, max(A, 1), (B, S)))
    if S > 8:
        indices[:, 0], indices[:, 1], indices[:, 7] = 0, A - 1, indices[:, 2]
        indices[:, 8] = indices[:, 2]
    if padded:
        indices[:, S - padded :] = -1
    return {"maps": maps, "indices": indices, "values": values}


def _out_of_range() -> tuple[Args, Args]:
    args = _gather()
    wrong, none = args["indices"].clone(), args["indices"].clone()
    for column, index in ((3, -2), (4, sum(k * H * W for k, H, W in LEVELS)), (5, 1 << 40)):
        wrong[1, column], none[1, column] = index, -1
    return args | {"indices": wrong}, {"indices": none}


def _cases(make: Callable[[Args], Args] = lambda args: args) -> Iterator[Case]:
    for values in (1, 4):
        for layout in LAYOUTS:
            yield Case(
                f"{layout}-{values}", lambda m=layout, v=values: make(_gather(values=v, layouts=(m,))), small=True
            )
    for name, dtype in DTYPES.items():
        yield Case(name, lambda d=dtype: make(_gather(dtype=d)), small=True)
    yield Case("mixed", lambda: make(_gather(layouts=LAYOUTS, B=3)), small=True)
    yield Case("one-level", lambda: make(_gather(ONE, S=256, values=1)), small=True)
    yield Case("none-chosen", lambda: make(_gather(S=9, padded=9)), small=True)
    yield Case("no-rows", lambda: make(_gather(S=0, padded=0)), small=True)
    yield Case("no-images", lambda: make(_gather(B=0)), small=True)
    wrong, none = _out_of_range()
    yield Case("out-of-range", lambda: make(wrong), small=True, as_if=none)


def _with_grad(args: Args) -> Args:
    shape = (*args["indices"].shape, args["values"])
    return args | {"grad": tensor(generator(62).normal(size=shape), args["maps"][0].dtype)}


def _backward(args: Args) -> Any:
    args = dict(args)
    grad = args.pop("grad")
    args["maps"] = [m.detach().requires_grad_() for m in args["maps"]]
    grads = torch.autograd.grad(frcnn_fast.ops.gather_anchors(**args), args["maps"], grad)
    for one, own in zip(args["maps"], grads, strict=True):
        last = one.stride(1) == 1 and not one.is_contiguous()
        assert own.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    return grads


def _backward_oracle(args: dict[str, Any]) -> list[np.ndarray]:
    maps = args["maps"]
    shapes = [side for m in maps for side in m.shape]
    return reference.gather_anchors_backward(args["grad"], args["indices"], shapes, [False for _ in maps])


OPS: tuple[Op, ...] = (
    simple_op("gather_anchors", "rows:input", tuple(_cases()), lead="maps"),
    Op(
        "gather_anchors_backward",
        ("grad:input*",),
        tuple(_cases(_with_grad)),
        "maps",
        call=_backward,
        oracle=_backward_oracle,
    ),
)
