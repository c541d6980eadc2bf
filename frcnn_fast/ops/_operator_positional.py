"""How a Python function becomes an operator: torch.library, backends, autograd, and a short way in eager mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frcnn_fast.ops._operator import LIBRARY
from frcnn_fast.ops._backends import asked_for, choose, triton_launcher, use_backend


Outputs = tuple[Tensor, ...]


class Operator:
    """One op of the library.

    schema: torch schema without the trailing `str? backend`, which is added here (without a default: the dispatcher
    would leave a default out of what autograd sees).
    outputs(*args): allocates the results; also serves as the fake implementation and types the reference's results.
    launch(*args, *outputs): fills them with the compiled kernels (the binding picks CPU or CUDA by the device).
    reference(*args): the oracle; tensors arrive as NumPy arrays (halves widened to float32), arrays go out.
    triton: "family.module:function" under kernels/, the Triton launcher: function(*args, *outputs) fills them.
    setup_context(ctx, inputs, output), backward(ctx, *grads): autograd, as torch.library.register_autograd takes them
    (without the backend argument).
    """

    def __init__(
        self,
        schema: str,
        *,
        outputs: Callable[..., Outputs],
        launch: Callable[..., None],
        reference: Callable[..., Any],
        triton: str,
        setup_context: Callable[..., None] | None = None,
        backward: Callable[..., Any] | None = None,
    ) -> None:
        self.name = schema.split("(", 1)[0]
        self.outputs, self.launch, self.reference, self.triton = outputs, launch, reference, triton
        self.setup_context, self.backward = setup_context, backward
        head, tail = schema.rsplit(") ->", 1)
        LIBRARY.define(f"{head}, str? backend) ->{tail}")
        qualified = f"frcnn_fast::{self.name}"
        for key in ("CPU", "CUDA"):
            LIBRARY.impl(self.name, self._from_dispatcher, key)
        torch.library.register_fake(qualified, self._fake, lib=LIBRARY)
        if backward is not None:
            torch.library.register_autograd(
                qualified, self._library_backward, setup_context=self._library_setup, lib=LIBRARY
            )
        self._registered = getattr(torch.ops.frcnn_fast, self.name).default

    def __call__(self, *args: Any, backend: str | None = None) -> Any:
        grad_mode = torch.is_grad_enabled()
        plain, needs_grad = _nobody_watches(), False
        for a in args:
            if isinstance(a, Tensor):
                plain = plain and type(a) in _PLAIN
                needs_grad = needs_grad or (grad_mode and a.requires_grad)
        if needs_grad and self.backward is None:
            # The results carry no gradient; the dispatcher need not wonder how to differentiate.
            args = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
            needs_grad = False
        if not plain:
            return self._registered(*args, asked_for(backend))
        if needs_grad:
            return _EagerFunction.apply(self, backend, *args)
        return self.run(backend, *args)

    def run(self, backend: str | None, *args: Any) -> Any:
        """Computes the op here and now, without the dispatcher."""
        first = args[0] if isinstance(args[0], Tensor) else next(a for a in _flat(args) if isinstance(a, Tensor))
        chosen = choose(self.name, backend, first.device)
        results = self.outputs(*args)
        if chosen == "reference":
            arrays = self.reference(*[_to_numpy(a) for a in args])
            for result, array in zip(results, arrays if isinstance(arrays, tuple) else (arrays,), strict=True):
                result.copy_(torch.from_numpy(np.ascontiguousarray(array)).reshape(result.shape))
        elif chosen == "triton":
            triton_launcher(self.triton)(*args, *results)
        else:
            self.launch(*args, *results)
        return results[0] if len(results) == 1 else results

    def _from_dispatcher(self, *args: Any) -> Any:
        return self.run(args[-1], *args[:-1])

    def _fake(self, *args: Any) -> Any:
        results = self.outputs(*args[:-1])
        return results[0] if len(results) == 1 else results

    def _library_setup(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        self._setup(ctx, inputs[-1], inputs[:-1], output)

    def _setup(self, ctx: Any, backend: str | None, inputs: tuple[Any, ...], output: Any) -> None:
        """What the backward pass needs, and its backend: the forward pass's, since what is saved is in its form. The
        block around the call may have ended by then, and autograd's own threads are in no block."""
        assert self.setup_context is not None
        self.setup_context(ctx, inputs, output)
        ctx.backend = asked_for(backend)

    def _gradient(self, ctx: Any, grads: tuple[Any, ...]) -> tuple[Any, ...]:
        assert self.backward is not None
        with use_backend(ctx.backend):
            found = self.backward(ctx, *grads)
        return found if isinstance(found, tuple) else (found,)

    def _library_backward(self, ctx: Any, *grads: Any) -> Any:
        return (*self._gradient(ctx, grads), None)


class _EagerFunction(torch.autograd.Function):
    """An op's autograd in eager mode: a fraction of the dispatcher's cost."""

    @staticmethod
    def forward(ctx: Any, op: Operator, backend: str | None, *args: Any) -> Any:
        result = op.run(backend, *args)
        op._setup(ctx, backend, args, result)
        integers = [r for r in (result if isinstance(result, tuple) else (result,)) if not r.is_floating_point()]
        ctx.mark_non_differentiable(*integers)
        ctx.op = op
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        return (None, None, *ctx.op._gradient(ctx, grads))


def _flat(args: Sequence[Any]) -> Iterator[Any]:
    for a in args:
        if isinstance(a, (list, tuple)):
            yield from a
        else:
            yield a


def _to_numpy(a: Any) -> Any:
    if isinstance(a, Tensor):
        a = a.detach().cpu()
        return (a.float() if a.dtype in (torch.float16, torch.bfloat16) else a).numpy()
    if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor):
        return [_to_numpy(t) for t in a]
    return a


_PLAIN = (Tensor, torch.nn.Parameter)


def _nobody_watches() -> bool:
    """No compile, export, tracing, functorch transform or dispatch mode."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def plain_eager(tensors: Iterable[Tensor]) -> bool:
    """Whether an op may skip the dispatcher: nobody watches, and these are tensors and nothing more."""
    return _nobody_watches() and all(type(t) in _PLAIN for t in tensors)
