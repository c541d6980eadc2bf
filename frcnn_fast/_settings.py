"""Settings that come from a file or a command line: every value of its field's type and inside its bounds."""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any


def check_settings(settings: Any, bounds: Mapping[str, tuple[float, float]]) -> None:
    """ValueError for a field of a dataclass that is not of its annotated type, or has a number outside its bounds.

    Whole numbers pass for floats, not the reverse. Numbers are finite; those inside tuples have the field's bounds.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        if not _fits(value, hint):
            raise ValueError(f"{field.name}: got {_short(value)}, expected {_named(hint)}")
        low, high = bounds.get(field.name, (-math.inf, math.inf))
        for number in _numbers(value):
            if not low <= number <= high:
                limit = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
                raise ValueError(f"{field.name}: got {_short(value)}, expected {limit}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return len(value) > 0 and all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return isinstance(value, hint)


def _numbers(value: Any) -> list[Any]:
    if isinstance(value, tuple):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, numbers.Real) and not isinstance(value, bool) else []


def _named(hint: Any) -> str:
    names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a name"}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_named(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        item, *others = typing.get_args(hint)
        count = "" if others == [Ellipsis] else f"{1 + len(others)} "
        return f"a list of {count}values, each {_named(item)}"
    return "nothing" if hint is type(None) else names.get(hint, str(hint))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
