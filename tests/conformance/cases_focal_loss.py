"""Cases of the sigmoid focal loss, of targets for every element and of classes, and of its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frcnn_fast import ops, reference

from .build import DTYPES, generator, strided, tensor, transposed
from .harness import Args, Case, Op

DEFAULTS = {"alpha": 0.25, "gamma": 2.0}
GAMMAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
ALPHAS = (-1.0, 0.0, 0.3, 1.0)


def _logits(g: np.random.Generator, size: tuple[int, ...], kind: str) -> np.ndarray:
    """Ordinary ones; or with certainties, infinities and NaN among them."""
    logits = g.normal(0, 4, size)
    if kind == "odd":
        odd = g.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 20, -20, 100, -100, 800, -800, 1e-30, -1e-30], size)
        logits = np.where(g.random(size) < 0.5, odd, logits)
    return logits


def _elements(*size: int, dtype: torch.dtype = torch.float32, kind: str = "ordinary", soft: bool = False) -> Args:
    g = generator(41, *size)
    logits = _logits(g, size, kind)
    targets = g.random(size) if soft else (g.random(size) < 0.3).astype(float)
    if soft and kind == "odd":
        targets = np.where(g.random(size) < 0.2, g.choice([0.0, 1.0, np.nan, 1.5, -0.5], size), targets)
    return {"inputs": tensor(logits, dtype), "targets": tensor(targets, dtype)}


def _classes(
    N: int, C: int, dtype: torch.dtype = torch.float32, kind: str = "ordinary", weighted: bool = False
) -> Args:
    """Targets from -1 to C: both ends are background."""
    g = generator(42, N, C)
    args: Args = {"inputs": tensor(_logits(g, (N, C), kind), dtype)}
    args["targets"] = torch.from_numpy(g.integers(-1, C + 1, N))
    if weighted:
        args["weight"] = tensor(g.uniform(0.2, 3, C), torch.float64 if dtype == torch.float64 else torch.float32)
    return args


def _shifted(t: Tensor) -> Tensor:
    """The same values, where no access of several elements may begin."""
    room = t.new_zeros(t.numel() + 1)
    room[1:] = t.flatten()
    return room[1:].view(t.shape)


def _element_cases() -> Iterator[Case]:
    for size in ((0,), (1,), (3,), (4,), (5,), (1023,), (1025,), (2, 0, 3), (3, 4, 5, 7)):
        yield Case("x".join(map(str, size)), lambda s=size: _elements(*s), small=True)
    yield Case("scalar", lambda: {n: t[0] for n, t in _elements(1).items()}, small=True)
    yield Case("70000", lambda: _elements(70000, soft=True))  # threads
    for name, dtype in DTYPES.items():
        for soft in (False, True):
            make = lambda d=dtype, s=soft: _elements(300, dtype=d, kind="odd", soft=s)  # noqa: E731
            yield Case(f"{name}-{'soft' if soft else 'hard'}", make, small=True)
    for gamma in GAMMAS:
        for name in ("f32", "f64"):
            how = {"gamma": gamma, "alpha": -1.0 if gamma == 1.5 else 0.25}
            yield Case(
                f"gamma-{gamma}-{name}",
                lambda d=DTYPES[name], h=how: _elements(300, dtype=d, kind="odd", soft=h["gamma"] == 1.0) | h,
                small=True,
            )
    for alpha in ALPHAS:
        yield Case(f"alpha-{alpha}", lambda a=alpha: _elements(100, soft=True) | {"alpha": a}, small=True)
    yield Case("strided", lambda: {n: strided(t) for n, t in _elements(9, 11).items()}, small=True)
    yield Case("transposed", lambda: {n: transposed(t) for n, t in _elements(9, 11).items()}, small=True)
    yield Case("shifted", lambda: {n: _shifted(t) for n, t in _elements(9, 11).items()}, small=True)


def _class_cases() -> Iterator[Case]:
    for N, C in ((0, 3), (3, 0), (1, 1), (7, 1), (5, 3), (33, 80), (300, 4)):
        for weighted in (False, True):
            name = f"{N}x{C}{'-weighted' if weighted else ''}"
            yield Case(name, lambda n=N, c=C, w=weighted: _classes(n, c, weighted=w), small=True)
    yield Case("3000x23", lambda: _classes(3000, 23, weighted=True))  # threads
    for name, dtype in DTYPES.items():
        yield Case(f"{name}-odd", lambda d=dtype: _classes(40, 7, d, "odd", weighted=True), small=True)
    for gamma in (0.0, 1.5):
        how = {"gamma": gamma, "alpha": 0.4}
        yield Case(f"gamma-{gamma}", lambda h=how: _classes(40, 7, kind="odd") | h, small=True)
    yield Case("alpha-off", lambda: _classes(40, 7) | {"alpha": -1.0}, small=True)
    yield Case("shifted", lambda: _classes(9, 5) | {"inputs": _shifted(_classes(9, 5)["inputs"])}, small=True)


def _with_grad(case: Case, same: bool) -> Case:
    """same: one number for every element, as of a sum."""

    def make() -> Args:
        args = case.make()
        size = () if same else tuple(args["inputs"].shape)
        compute = torch.float64 if args["inputs"].dtype == torch.float64 else torch.float32
        return DEFAULTS | args | {"grad": tensor(generator(43).normal(size=size or (1,)), compute).reshape(size)}

    return Case(f"{case.name}{'-same' if same else ''}", make, case.small)


def _backward_cases(cases: Iterator[Case]) -> Iterator[Case]:
    for case in cases:
        yield _with_grad(case, same=False)
        if any(part in case.name for part in ("1025", "f64", "f16", "33x80", "70000", "3000")):
            yield _with_grad(case, same=True)


def _call(args: Args) -> Tensor:
    return ops.sigmoid_focal_loss(**args)


def _call_backward(args: Args) -> Tensor | None:
    leaf = args["inputs"].detach().requires_grad_()
    loss = _call({k: v for k, v in args.items() if k != "grad"} | {"inputs": leaf})
    loss.backward(args["grad"].expand(loss.shape))
    return leaf.grad


def _arguments(args: Args) -> dict[str, Any]:
    """The oracle's, which has no defaults."""
    weight = {"weight": args.get("weight")} if args["targets"].dtype.kind == "i" else {}
    return DEFAULTS | args | weight


def _op(name: str, cases: Iterator[Case]) -> tuple[Op, Op]:
    forward, backward = getattr(reference, name), getattr(reference, f"{name}_backward")
    cases_ = tuple(cases)
    return (
        Op(name, ("loss:compute",), cases_, "inputs", _call, lambda args: forward(**_arguments(args))),
        Op(
            f"{name}_backward",
            ("grad_inputs:input",),
            tuple(_backward_cases(iter(cases_))),
            "inputs",
            _call_backward,
            lambda args: backward(**_arguments(args)),
        ),
    )


OPS: tuple[Op, ...] = (
    *_op("sigmoid_focal_loss", _element_cases()),
    *_op("class_focal_loss", _class_cases()),
)
