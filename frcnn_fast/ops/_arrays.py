"""NumPy and CuPy arrays in, the same kind out, without a copy (DLPack)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def accepts_arrays(function: F) -> F:
    """Lets a function of tensors take NumPy or CuPy arrays too; its results are then arrays of that kind.

    The first argument decides; of a named result each field is one. Arrays are viewed, not copied; CuPy's current
    stream must be the one torch uses.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else None
        if isinstance(first, Tensor) or _module(first) not in ("numpy", "cupy"):
            return function(*args, **kwargs)
        kind = _module(first)
        result = function(*[_tensor(a) for a in args], **{k: _tensor(v) for k, v in kwargs.items()})
        if not isinstance(result, tuple):
            return _array(result, kind)
        arrays = [_array(r, kind) for r in result]
        return result._make(arrays) if hasattr(result, "_make") else tuple(arrays)

    return wrapper  # type: ignore[return-value]


def _module(value: Any) -> str:
    return type(value).__module__.split(".", 1)[0]


def _tensor(value: Any) -> Any:
    if isinstance(value, Tensor) or not hasattr(value, "__dlpack__") or _module(value) not in ("numpy", "cupy"):
        return value
    if _module(value) == "numpy" and not value.flags.writeable:
        value = value.copy()  # DLPack refuses read-only arrays
    return torch.from_dlpack(value)


def _array(value: Any, kind: str) -> Any:
    if not isinstance(value, Tensor):
        return value
    if kind == "numpy":
        return value.numpy()
    import cupy

    return cupy.from_dlpack(value)
