"""torch's private names, all in this file, and what happens where a version of torch lacks one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

F = TypeVar("F", bound=Callable[..., Any])


def private(path: str) -> Any:
    """The attribute of torch with that dotted path; None where this version has none."""
    found: Any = torch
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def bypass_check(
    dispatch_stack_length: Callable[[], int] | None,
    tracing_state: Callable[[], Any] | None,
    functorch_interpreter: Callable[[], Any] | None,
) -> Callable[[], bool]:
    """Makes `can_bypass_dispatcher` of its hooks. Without one of them nobody can tell who watches, so that every call
    goes through the dispatcher: slower, never wrong."""
    if dispatch_stack_length is None or tracing_state is None or functorch_interpreter is None:
        return lambda: False

    def can_bypass_dispatcher() -> bool:
        # is_compiling first: Dynamo takes it for a constant and looks no further.
        return not (
            is_compiling()
            or dispatch_stack_length()
            or tracing_state() is not None
            or functorch_interpreter() is not None
        )

    return can_bypass_dispatcher


functorch_interpreter = private("_C._functorch.peek_interpreter_stack")

# Whether an op may be computed here and now: no compile, export, tracing, functorch transform or dispatch mode.
can_bypass_dispatcher = bypass_check(
    private("_C._len_torch_dispatch_stack"), private("_C._get_tracing_state"), functorch_interpreter
)

_REVERSE_OR_MAPPED = [private(f"_C._functorch.TransformType.{kind}") for kind in ("Grad", "Vmap")]


def within_functorch() -> bool:
    """Whether the innermost functorch transform around the call is vmap, or one of grad, vjp, jacrev."""
    if is_compiling() or functorch_interpreter is None:
        return False
    innermost = functorch_interpreter()
    return innermost is not None and innermost.key() in _REVERSE_OR_MAPPED


# The tensor inside the wrapper of a functorch transform that has ended; any other tensor as it is.
unwrap_if_dead: Callable[[Tensor], Tensor] = private("_C._functorch.unwrap_if_dead") or (lambda t: t)

# Subclasses may have a __torch_dispatch__ or __torch_function__ of their own, which only the dispatcher calls.
PLAIN_TENSORS = (Tensor, torch.nn.Parameter)


def plain_eager(tensors: Iterable[Tensor]) -> bool:
    """Whether an op may skip the dispatcher: nobody watches, and these are tensors and nothing more."""
    return can_bypass_dispatcher() and all(type(t) in PLAIN_TENSORS for t in tensors)


def carries_tangent(tensors: Iterable[Tensor | None]) -> bool:
    """Whether one of them is a dual number of forward-mode differentiation (torch.func.jvp, forward_ad)."""
    # The level is -1 where there is no such differentiation; a torch without the name is asked tensor by tensor.
    if is_compiling() or getattr(forward_ad, "_current_level", 0) < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def constant_when_compiled(function: F) -> F:
    """Dynamo calls the function once, when it compiles, and keeps the answer.

    This is what torch.compiler.assume_constant_result does, without its import of Dynamo, and of Triton with it. A
    Dynamo that does not know the mark traces the function.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def register_results(kind: type[tuple]) -> None:
    """Lets torch.export.save write programs that return this NamedTuple. Without the hook pytree still takes it apart,
    so that compile and export work, and only saving fails."""
    register = private("utils._pytree._register_namedtuple")
    if register is not None:
        register(kind, serialized_type_name=f"{kind.__module__}.{kind.__name__}")


@constant_when_compiled
def _in_functorch_transform() -> bool:
    return functorch_interpreter is None or functorch_interpreter() is not None


def plain_or_compiled(tensors: Iterable[Tensor]) -> bool:
    """Plain tensors in eager mode, or under torch.compile (not torch.export), which then has our ops in its graph."""
    if not is_compiling():
        return plain_eager(tensors)
    return (
        not torch.compiler.is_exporting()
        and not _in_functorch_transform()
        and all(type(t) in PLAIN_TENSORS for t in tensors)
    )


@constant_when_compiled
def graphs_hold_dynamic_outputs() -> bool:
    """While compiling: whether an op whose result has as many rows as the data decides can be in a graph."""
    return bool(private("_dynamo.config.capture_dynamic_output_shape_ops"))
