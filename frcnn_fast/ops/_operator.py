"""How a Python function becomes an operator: torch.library, backends, autograd, and a short way in eager mode."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from frcnn_fast import reference
from frcnn_fast._extension import extension
from frcnn_fast.ops._backends import asked_for, choose, triton_launcher, use_backend
from frcnn_fast.ops._checks import HALVES
from frcnn_fast.ops._schema import Schema
from frcnn_fast.ops._torch_private import (
    PLAIN_TENSORS,
    can_bypass_dispatcher,
    carries_tangent,
    constant_when_compiled,
    unwrap_if_dead,
    within_functorch,
)

LIBRARY = torch.library.Library("frcnn_fast", "DEF")


# What an exporter is shown in the places of ops, by their names; see `frcnn_fast.export`.
_stand_ins: ContextVar[Mapping[str, Callable[..., Any]] | None] = ContextVar("frcnn_fast_stand_ins", default=None)


@contextlib.contextmanager
def stand_ins(table: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Inside the block a trace takes these functions, of an op's arguments, for the ops of these names. What is
    computed here and now stays with the kernels."""
    token = _stand_ins.set(table)
    try:
        yield
    finally:
        _stand_ins.reset(token)


@constant_when_compiled
def _stand_in(name: str) -> Callable[..., Any] | None:
    table = _stand_ins.get()
    return None if table is None else table.get(name)


class Operator:
    """One op of the library. Everywhere below, `a` are its arguments, by the schema's names: a.boxes, a.iou_threshold.

    schema: see _schema.py. The binding `_C.<name>` takes the arguments, the workspace (of an op that has one) and the
    outputs, in this order.
    outputs(a): allocates the results, in the schema's order; also serves as the fake implementation and types the
    oracle's results.
    workspace(C, a): bytes of scratch memory that the binding wants, asked of the extension C; None: it takes none.
    oracle: called with the arguments by name; tensors arrive as NumPy arrays (halves widened to float32), an anchor
    source as explicit `anchors`; arrays go out.
    triton: "family.module:function" under kernels/, the Triton launcher: function(*a, *outputs).
    returns: the NamedTuple of the results; None: a plain tuple, or the one result itself.
    dynamic_rows: the one result has as many rows as the data decides. `outputs` then gives a padded tensor, and the
    binding takes one more, num_<result>, for the count: int64 [1], which on a GPU is read at the price of a
    synchronisation; on a CPU None, and the count is returned, which saves a small call a microsecond.
    setup_context(ctx, a, output): keeps what the gradient needs. backward(ctx, *grads): the gradients by argument, from
    that of the first result; those of the others are None or zero.
    """

    named: ClassVar[dict[str, Operator]] = {}  # every one of them

    def __init__(
        self,
        schema: str,
        *,
        outputs: Callable[[Any], Sequence[Any]],
        oracle: Callable[..., Any],
        triton: str,
        workspace: Callable[[ModuleType, Any], int] | None = None,
        returns: type[tuple] | None = None,
        dynamic_rows: bool = False,
        setup_context: Callable[[Any, Any, Any], None] | None = None,
        backward: Callable[..., dict[str, Any]] | None = None,
    ) -> None:
        self.schema = Schema.parse(schema)
        self.name = self.schema.name
        self.outputs, self.workspace, self.oracle, self.triton = outputs, workspace, oracle, triton
        self.returns, self.dynamic_rows = returns, dynamic_rows
        self.setup_context, self.backward = setup_context, backward
        self._Arguments = self.schema.Arguments
        self._tensors = self.schema.positions("Tensor") + self.schema.positions("Tensor?")
        self._lists = self.schema.positions("Tensor[]")
        n = len(self._tensors)
        self._leading = n if self._tensors == tuple(range(n)) else 0
        self._single = len(self.schema.results) == 1
        LIBRARY.define(self.schema.with_backend())
        qualified = f"frcnn_fast::{self.name}"
        for key in ("CPU", "CUDA"):
            LIBRARY.impl(self.name, self._from_dispatcher, key)
        torch.library.register_fake(qualified, self._fake, lib=LIBRARY)
        if backward is not None:
            torch.library.register_autograd(
                qualified, self._library_backward, setup_context=self._library_setup, lib=LIBRARY
            )
        torch.library.register_vmap(qualified, self._vmap, lib=LIBRARY)
        self._registered = getattr(torch.ops.frcnn_fast, self.name).default
        Operator.named[self.name] = self

    def __call__(self, *args: Any, backend: str | None = None) -> Any:
        """Takes the arguments in the schema's order."""
        # A slice, where the tensors come first: a small call is a few microseconds in all.
        tensors = args[: self._leading] if self._leading else tuple([args[i] for i in self._tensors])
        for i in self._lists:
            tensors += tuple(args[i])
        plain, needs_grad = can_bypass_dispatcher(), False
        for t in tensors:
            if t is not None:
                if type(t) not in PLAIN_TENSORS:
                    plain = False
                if t.requires_grad:
                    needs_grad = True
        if self.backward is not None and carries_tangent(tensors):
            raise NotImplementedError(
                f"{self.name}: there is no forward-mode derivative; use reverse mode (backward, torch.func.vjp)"
            )
        needs_grad = needs_grad and torch.is_grad_enabled()
        if needs_grad and self.backward is None:
            # The results carry no gradient; the dispatcher need not wonder how to differentiate.
            args = tuple(_detached(a) for a in args)
            needs_grad = False
        if not plain:
            stand_in = _stand_in(self.name)
            if stand_in is not None:
                found = stand_in(*args)
            elif self.backward is not None and within_functorch():
                found = _TransformedFunction.apply(self, backend, args, *tensors)
            else:
                found = self._registered(*args, asked_for(backend))
            return found if self.returns is None else self.returns(*found)
        if needs_grad:
            found = _EagerFunction.apply(self, backend, args, *tensors)
        else:
            found = self.run(backend, *args)
        return found if self.returns is None else tuple.__new__(self.returns, found)

    def run(self, backend: str | None, *args: Any, into: Sequence[Any] | None = None) -> Any:
        """Computes the op here and now, without the dispatcher; `into`: tensors as `outputs` would allocate them."""
        a = tuple.__new__(self._Arguments, args)
        first = args[0][0] if self._lists else args[0]
        results = self.outputs(a) if into is None else into
        chosen = asked_for(backend)
        if chosen is not None or not first.is_cpu:
            chosen = choose(self.name, backend, first.device)
        if chosen == "reference":
            arrays = self.oracle(**_oracle_arguments(a))
            if self.dynamic_rows:
                return torch.from_numpy(arrays).to(first.device)
            for result, array in zip(results, (arrays,) if self._single else arrays, strict=True):
                _fill(result, array)
            return results[0] if self._single else results
        number, found = None, None
        if self.dynamic_rows:
            if chosen == "triton" or not first.is_cpu:
                number = first.new_empty(1, dtype=torch.int64)
            results = (*results, number)
        if chosen == "triton":
            triton_launcher(self.triton)(*a, *results)
        else:
            C = extension()
            if self.workspace is None:
                found = getattr(C, self.name)(*a, *results)
            else:
                size = self.workspace(C, a)
                workspace = first.new_empty(size, dtype=torch.uint8) if size else None
                found = getattr(C, self.name)(*a, workspace, *results)
        if self.dynamic_rows:
            return results[0].resize_(found if number is None else int(number))
        return results[0] if self._single else results

    def _from_dispatcher(self, *args: Any) -> Any:
        return self.run(args[-1], *args[:-1])

    def _fake(self, *args: Any) -> Any:
        results = self.outputs(tuple.__new__(self._Arguments, args[:-1]))
        if self.dynamic_rows:
            rows = torch.library.get_ctx().new_dynamic_size()
            return results[0].new_empty(rows, *results[0].shape[1:])
        return results[0] if self._single else results

    def _vmap(self, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        if self.dynamic_rows:
            raise NotImplementedError(
                f"{self.name}: not under torch.vmap, where samples would have different numbers of rows; nms_padded "
                "has a batch of its own"
            )
        return _one_by_one(lambda *rest: self(*rest[:-1], backend=rest[-1]), info, in_dims, args)

    def _replaced(self, args: Sequence[Any], tensors: Sequence[Tensor | None]) -> list[Any]:
        """The arguments with other tensors, in the order of `__call__`: the single ones, then those of the lists."""
        found, left = list(args), iter(tensors)
        for i in self._tensors:
            found[i] = next(left)
        for i in self._lists:
            found[i] = [next(left) for _ in args[i]]
        return found

    def _library_setup(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        self._setup(ctx, inputs[-1], inputs[:-1], output)

    def _setup(self, ctx: Any, backend: str | None, args: Sequence[Any], output: Any) -> None:
        """What the backward pass needs, and its backend: the forward pass's, since what is saved is in its form. The
        block around the call may have ended by then, and autograd's own threads are in no block."""
        assert self.setup_context is not None
        self.setup_context(ctx, tuple.__new__(self._Arguments, args), output)
        ctx.backend = asked_for(backend)
        # Else autograd would fill a tensor of zeros for every result that has no gradient: an argmax is 30 MB.
        ctx.set_materialize_grads(False)
        ctx.no_gradients = {self.schema.arguments[i]: [None] * len(args[i]) for i in self._lists}

    def _gradients(self, ctx: Any, grads: tuple[Any, ...]) -> dict[str, Any]:
        """They all come from the first result's gradient; nothing comes from none."""
        assert self.backward is not None
        if grads[0] is None:
            return ctx.no_gradients
        with use_backend(ctx.backend):
            found = self.backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        # create_graph: whoever differentiates the gradient again is told that it cannot be done, not given zeros.
        sources = [t for t in (*grads, *ctx.saved_tensors) if isinstance(t, Tensor) and t.requires_grad]
        return {name: self._differentiable_once(gradient, sources) for name, gradient in found.items()}

    def _differentiable_once(self, gradient: Any, sources: Sequence[Tensor]) -> Any:
        if isinstance(gradient, (list, tuple)):
            return [self._differentiable_once(one, sources) for one in gradient]
        if gradient is None or not sources:
            return gradient
        return _NoSecondDerivative.apply(self.name, gradient, *sources)

    def _library_backward(self, ctx: Any, *grads: Any) -> Any:
        found = self._gradients(ctx, grads)
        return (*[found.get(name) for name in self.schema.arguments], None)


def contiguous_saved(ctx: Any) -> list[Tensor]:
    """What setup_context saved, all of it contiguous there. Hooks on saved tensors may restore other strides, and a
    functorch transform that has ended leaves its wrapper around them, which has no memory."""
    return [unwrap_if_dead(t).contiguous() for t in ctx.saved_tensors]


class _EagerFunction(torch.autograd.Function):
    """An op's autograd in eager mode: a fraction of the dispatcher's cost."""

    @staticmethod
    def forward(ctx: Any, op: Operator, backend: str | None, args: tuple[Any, ...], *tensors: Tensor | None) -> Any:
        """tensors: those among the arguments and in their lists, since autograd sees no others."""
        result = op.run(backend, *args)
        op._setup(ctx, backend, args, result)
        integers = [r for r in ((result,) if op._single else result) if not r.is_floating_point()]
        ctx.mark_non_differentiable(*integers)
        ctx.op = op
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        op: Operator = ctx.op
        found, names = op._gradients(ctx, grads), op.schema.arguments
        flat = [found.get(names[i]) for i in op._tensors]
        for i in op._lists:
            flat += found[names[i]]
        return (None, None, None, *flat)


class _TransformedFunction(torch.autograd.Function):
    """An op's autograd under functorch, which peels its transforms off one by one: the op is called anew within."""

    @staticmethod
    def forward(op: Operator, backend: str | None, args: tuple[Any, ...], *tensors: Tensor | None) -> Any:
        found = op(*op._replaced(args, tensors), backend=backend)
        return found if isinstance(found, Tensor) else tuple(found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        op, backend, args, *tensors = inputs
        op._setup(ctx, backend, op._replaced(args, tensors), output)
        ctx.mark_non_differentiable(*[r for r in ((output,) if op._single else output) if not r.is_floating_point()])
        ctx.op = op

    backward = _EagerFunction.backward

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        return _one_by_one(_TransformedFunction.apply, info, in_dims, inputs)


class _NoSecondDerivative(torch.autograd.Function):
    """A gradient that depends on the sources in a way that nobody has worked out."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise NotImplementedError(
            f"{ctx.name}: there is no second derivative; differentiate once, without create_graph"
        )


def _one_by_one(
    function: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], args: Sequence[Any]
) -> tuple[Any, Any]:
    """torch.vmap as one call a sample, so that no result depends on what is mapped with it: (results, their dims)."""
    results = []
    for sample in range(info.batch_size):
        results.append(function(*(_selected(a, dim, sample) for a, dim in zip(args, in_dims, strict=True))))
    first = results[0]
    if isinstance(first, Tensor):
        return torch.stack(results), 0
    kind = list if isinstance(first, list) else tuple
    return kind(map(torch.stack, zip(*results, strict=True))), kind([0] * len(first))


def _selected(a: Any, dim: Any, sample: int) -> Any:
    """An argument's part of one sample; dim: where the samples lie, of a list of tensors in each, None nowhere."""
    if isinstance(dim, (list, tuple)):
        return [_selected(each, place, sample) for each, place in zip(a, dim, strict=True)]
    return a if dim is None else a.select(dim, sample)


def _detached(a: Any) -> Any:
    if isinstance(a, Tensor):
        return a.detach()
    return [t.detach() for t in a] if isinstance(a, list) and a and isinstance(a[0], Tensor) else a


def _oracle_arguments(a: Any) -> dict[str, Any]:
    arguments = {name: _to_numpy(value) for name, value in a._asdict().items()}
    if "anchor_grid" in arguments:
        grid, offset = arguments.pop("anchor_grid"), arguments.pop("anchor_offset")
        arguments["anchors"] = reference.explicit_anchors(arguments["anchors"], grid, offset)
    return arguments


def _to_numpy(a: Any) -> Any:
    if isinstance(a, Tensor):
        a = a.detach().cpu()
        return (a.float() if a.dtype in HALVES else a).numpy()
    if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor):
        return [_to_numpy(t) for t in a]
    return a


def _fill(result: Any, array: Any) -> None:
    if isinstance(result, Tensor):
        result.copy_(torch.from_numpy(np.ascontiguousarray(array)).reshape(result.shape))
    else:
        for each, values in zip(result, array, strict=True):
            _fill(each, values)
