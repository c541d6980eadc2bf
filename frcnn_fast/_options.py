"""A dataclass' fields as command-line options: one description serves both."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any


def option(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    """A dataclass field with the text that --help shows, and perhaps its only legal values (see `check_choices`)."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def check_choices(settings: Any) -> None:
    """ValueError for a field whose value is none of its choices."""
    for field in dataclasses.fields(settings):
        choices, value = field.metadata.get("choices"), getattr(settings, field.name)
        if choices and value not in choices:
            raise ValueError(f"{field.name}: got {value!r}, expected {' or '.join(map(repr, choices))}")


def add_options(
    group: argparse._ArgumentGroup, settings: type, leave_out: Sequence[str] = (), *, defaults: Any = None
) -> None:
    """Add --name for every field of a dataclass; what is not given is absent from the result.

    `defaults`, an instance of it, is what --help shows as the values of what is not given.
    """
    hints = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        if field.name in leave_out:
            continue
        name, hint, text = "--" + field.name.replace("_", "-"), hints[field.name], field.metadata["help"]
        kind = next(a for a in typing.get_args(hint) if a is not type(None)) if _is_union(hint) else hint
        if defaults is not None:
            text = f"{text} [{_shown(getattr(defaults, field.name))}]"
        absent: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        if kind is bool:
            group.add_argument(name, action=argparse.BooleanOptionalAction, **absent)
        elif typing.get_origin(kind) is tuple:
            of, *_ = typing.get_args(kind)
            nested = typing.get_origin(of) is tuple
            group.add_argument(
                name,
                nargs="+",
                type=_comma_separated(typing.get_args(of)[0] if nested else of),
                action="store" if nested else _Joined,
                metavar="A,B" if nested else _metavar(field, of),
                **absent,
            )
        else:
            read = _or_none(kind) if _is_union(hint) else kind
            group.add_argument(
                name, type=read, choices=field.metadata["choices"], metavar=_metavar(field, kind), **absent
            )


def chosen(args: argparse.Namespace, settings: type) -> dict[str, Any]:
    """The fields of `settings` that were given on the command line."""
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(settings) if hasattr(args, f.name)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _shown(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, tuple):
        parts = [",".join(map(_shown, part)) if isinstance(part, tuple) else _shown(part) for part in value]
        return " ".join(parts)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _metavar(field: dataclasses.Field[Any], kind: type) -> str | None:
    return None if field.metadata["choices"] else {int: "N", float: "X"}.get(kind, "NAME")


def _or_none(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        return None if text.lower() == "none" else kind(text)

    parse.__name__ = f"{kind.__name__} or none"  # argparse names it in its error
    return parse


class _Joined(argparse.Action):
    """`1 2 3` and `1,2,3` are the same list."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, [value for part in values for value in part])


def _comma_separated(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse(text: str) -> tuple[Any, ...]:
        return tuple(kind(part) for part in text.split(","))

    parse.__name__ = f"{kind.__name__} list"
    return parse
