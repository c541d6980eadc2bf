"""NumPy and CuPy arrays in, the same kind out, without a copy (DLPack)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def accepts_arrays(function: F) -> F:
    """Lets a function of tensors take NumPy or CuPy arrays too, positional, by keyword, or in lists.

    Where tensors come as well, its results are tensors; else arrays of that kind, in a named result each field. Arrays
    are viewed, not copied, except where torch cannot view them: read-only, reversed, of the other byte order, or of
    unsigned integers above 8 bits, which become signed ones of twice the width. CuPy's current stream must be the one
    torch uses.
    """

    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if args and type(args[0]) is Tensor:
            # Nearly every call. Only one that fails is searched for arrays among the other arguments.
            try:
                return function(*args, **kwargs)
            except (TypeError, AttributeError):
                if not _kinds(args, kwargs):
                    raise
        kinds = _kinds(args, kwargs)
        if not kinds:
            return function(*args, **kwargs)
        result = function(*map(_tensor, args, names), **{k: _tensor(v, k) for k, v in kwargs.items()})
        if any(isinstance(a, Tensor) for a in _flat(args, kwargs)):
            return result
        kind = kinds[0]
        if not isinstance(result, tuple):
            return _array(result, kind)
        arrays = [_array(r, kind) for r in result]
        return result._make(arrays) if hasattr(result, "_make") else tuple(arrays)

    return wrapper  # type: ignore[return-value]


def _flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    for a in (*args, *kwargs.values()):
        if isinstance(a, (list, tuple)):
            yield from a
        else:
            yield a


def _kinds(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """The libraries whose arrays are among the arguments, in their order."""
    return [_module(a) for a in _flat(args, kwargs) if _is_array(a)]


def _module(value: Any) -> str:
    return type(value).__module__.split(".", 1)[0]


def _is_array(value: Any) -> bool:
    if isinstance(value, (int, float)):  # in a graph it may be a symbol, which cannot be asked for attributes
        return False
    return hasattr(value, "__dlpack__") and _module(value) in ("numpy", "cupy") and hasattr(value, "strides")


def _tensor(value: Any, name: str) -> Any:
    if isinstance(value, (list, tuple)) and any(map(_is_array, value)):
        return type(value)(_tensor(each, f"{name}[{i}]") for i, each in enumerate(value))
    if not _is_array(value):
        return value
    if value.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected numbers, got an array of {value.dtype}")
    if value.dtype.kind == "u" and value.dtype.itemsize in (2, 4):
        value = value.astype(f"i{2 * value.dtype.itemsize}")  # torch computes little with unsigned integers
    if _module(value) == "numpy":
        if not value.dtype.isnative:
            value = value.astype(value.dtype.newbyteorder("="))
        if not value.flags.writeable or min(value.strides, default=0) < 0:
            value = value.copy()  # DLPack has neither
    return torch.from_dlpack(value)


def _array(value: Any, kind: str) -> Any:
    if not isinstance(value, Tensor):
        return value
    if kind == "numpy":
        return value.numpy()
    import cupy

    return cupy.from_dlpack(value)
