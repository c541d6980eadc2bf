"""An op's torch schema, read once: its names are those of the binding, of the Triton launcher and of the oracle.

    rpn_targets(Tensor anchors, ..., int stream) -> (Tensor indices, ..., Tensor counts)

Arguments go everywhere in this order, then the workspace (to the binding, of ops that need one), then the outputs. An
output that has the name of an argument is `out_<name>` there, since no function takes a name twice.
"""

from __future__ import annotations

import re
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

_SCHEMA = re.compile(r"(\w+)\((.*)\) -> (.*)", re.DOTALL)


@dataclass(frozen=True)
class Schema:
    """arguments, results: their names; types: those of the arguments, "Tensor", "Tensor?", "Tensor[]", "float", ...
    Arguments: a namedtuple of the op's arguments."""

    name: str
    text: str
    arguments: tuple[str, ...]
    types: tuple[str, ...]
    results: tuple[str, ...]
    Arguments: Any

    @classmethod
    def parse(cls, text: str) -> Schema:
        """text: as torch writes it, with a name for every result, without a default."""
        found = _SCHEMA.fullmatch(text)
        if found is None:
            raise ValueError(f"schema: expected 'name(Type argument, ...) -> Type result', got {text!r}")
        name, head, tail = found.groups()
        types, arguments = _typed_names(head)
        _, results = _typed_names(tail.removeprefix("(").removesuffix(")"))
        return cls(name, text, arguments, types, results, namedtuple(f"{name}_arguments", arguments))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The results' names where they follow the arguments."""
        return tuple(f"out_{name}" if name in self.arguments else name for name in self.results)

    def positions(self, kind: str) -> tuple[int, ...]:
        """Where the arguments of that type stand."""
        return tuple(i for i, found in enumerate(self.types) if found == kind)

    def with_backend(self) -> str:
        """The schema that torch gets: `backend` comes last, without a default, which the dispatcher would leave out of
        what autograd sees."""
        head, tail = self.text.rsplit(") ->", 1)
        return f"{head}, str? backend) ->{tail}"


def _typed_names(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    pairs = [part.split() for part in text.split(",")]
    return tuple(kind for kind, _ in pairs), tuple(name for _, name in pairs)
