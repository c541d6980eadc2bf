"""How a call divides its time: methods of objects are watched, in a forward pass and in the backward pass after it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

Timed = Callable[..., Any]


class Watch:
    """A stopwatch for stages within stages: at any moment one runs, the innermost. On a GPU it notes events."""

    def __init__(self, device: str = "cpu") -> None:
        self._on_gpu = device == "cuda"
        self._stack: list[str] = []
        self._changes: list[tuple[Any, str | None]] = []  # from when on which stage runs

    def enter(self, stage: str) -> None:
        self._stack.append(stage)
        self._change()

    def leave(self) -> None:
        self._stack.pop()
        self._change()

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.enter(stage)
        try:
            yield
        finally:
            self.leave()

    def seconds(self) -> dict[str, float]:
        """Of each stage since the last call, without the stages within it; waits for the GPU."""
        if self._stack:
            raise RuntimeError(f"seconds: stage {self._stack[-1]!r} still runs")
        if self._on_gpu:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for (begin, stage), (end, _) in zip(self._changes, self._changes[1:], strict=False):
            if stage is not None:
                took = begin.elapsed_time(end) * 1e-3 if self._on_gpu else end - begin
                found[stage] = found.get(stage, 0.0) + took
        self._changes.clear()
        return found

    def _change(self) -> None:
        now: Any = time.perf_counter()
        if self._on_gpu:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        self._changes.append((now, self._stack[-1] if self._stack else None))

    def around(self, call: Timed, stage: str) -> Timed:
        """The call as a stage, and its backward pass too: from its results' gradients to those of its arguments."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = self.mark((args, kwargs), None)
            with self(stage):
                made = call(*args, **kwargs)
            return self.mark(made, stage)

        return timed

    def mark(self, tree: Any, entered: str | None) -> Any:
        """The same values, but a backward pass that comes by here enters this stage; None: leaves the one it is in."""
        leaves, spec = tree_flatten(tree)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if places and torch.is_grad_enabled():
            found = _Mark.apply(self, entered, *(leaves[place] for place in places))
            for place, tensor in zip(places, found, strict=True):
                leaves[place] = tensor
        return tree_unflatten(leaves, spec)


class _Mark(torch.autograd.Function):
    """Nothing, but that its backward pass tells the time."""

    @staticmethod
    def forward(ctx: Any, watch: Watch, entered: str | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.watch, ctx.entered = watch, entered
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if ctx.entered is None:
            ctx.watch.leave()
        else:
            ctx.watch.enter(ctx.entered)
        return None, None, *grads


@contextlib.contextmanager
def replaced(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Attributes (object, name, value) that are others within the block."""
    missing = object()
    before = [vars(subject).get(name, missing) for subject, name, _ in changes]
    try:
        for subject, name, value in changes:
            setattr(subject, name, value)
        yield
    finally:
        for (subject, name, _), value in zip(changes, before, strict=True):
            if value is missing:
                delattr(subject, name)
            else:
                setattr(subject, name, value)
