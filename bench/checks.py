"""When an answer is right. A wrong answer has no speed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.case import Call


def tensors(result: Any) -> list[Tensor]:
    """The tensors of a result, in order."""
    return [result] if isinstance(result, Tensor) else [t for part in result for t in tensors(part)]


def equal(got: Any, wanted: Any, what: str) -> None:
    """Bitwise equality of every tensor (NaN equals NaN, and a zero's sign does not count); AssertionError names the
    first that differs.
    """
    got, wanted = tensors(got), tensors(wanted)
    assert len(got) == len(wanted), f"{len(got)} outputs, {what} has {len(wanted)}"
    for i, (g, w) in enumerate(zip(got, wanted)):
        w = w.to(g.device)
        mine, theirs = (f"{t.dtype} {list(t.shape)}" for t in (g, w))
        assert mine == theirs, f"output {i} is {mine}, {what} has {theirs}"
        differs = (g != w) & ~(g.isnan() & w.isnan())
        assert not differs.any(), f"output {i} differs from {what} in {int(differs.sum())} of {g.numel()} places"


def equal_to_reference(call: Callable[[str | None], Any]) -> Callable[[Any], None]:
    """A check that calls `call("reference")`, once, and wants equality to the bit."""
    wanted = functools.cache(lambda: call("reference"))

    def check(got: Any) -> None:
        equal(got, wanted(), "the reference")

    return check


def close_to(wanted: Call, units: float = 64.0) -> Callable[[Any], None]:
    """A check for sums of floats: within so many units in the last place of the largest value, of another
    computation, which is done once.
    """
    wanted = functools.cache(wanted)

    def check(got: Any) -> None:
        for i, (g, w) in enumerate(zip(tensors(got), tensors(wanted()), strict=True)):
            assert g.shape == w.shape, f"output {i} is {list(g.shape)}, expected {list(w.shape)}"
            assert bool(g.isfinite().all()), f"output {i} has values that are not finite"
            w = w.double().cpu()
            bound = units * torch.finfo(g.dtype).eps * float(w.abs().max())
            error = float((g.double().cpu() - w).abs().max())
            assert error <= bound, f"output {i} is off by {error:.3g}, the bound is {bound:.3g}"

    return check
