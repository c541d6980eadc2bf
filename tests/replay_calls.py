"""Repeats recorded calls of a compiled half, and says where its answers differ: replay_calls.py BINARY CALLS

For an interpreter that has NumPy and nothing else (`tests.run_aarch64` records them): tensors are arrays, which reach
the binary through DLPack.
"""

from __future__ import annotations

import importlib.util
import pickle
import sys
from collections import Counter
from typing import Any, NamedTuple

import numpy as np


def stored(array: np.ndarray) -> dict[str, Any]:
    """The array in the order of its memory, and the axes that give it back: a pickle knows rows and columns only."""
    order = tuple(np.argsort([-stride for stride in array.strides], kind="stable").tolist())
    return {"array": np.ascontiguousarray(array.transpose(order)).copy(), "axes": tuple(np.argsort(order).tolist())}


def restored(value: Any) -> Any:
    """Arrays anew, that may be written to; lists element by element; everything else as it is."""
    if isinstance(value, dict):
        return value["array"].copy().transpose(value["axes"])
    return [restored(item) for item in value] if isinstance(value, list) else value


class Call(NamedTuple):
    """label: the case. before, after: the arguments, as they went in and as they were left; workspaces, whose contents
    mean nothing, are None in `after`."""

    label: str
    function: str
    before: list[Any]
    after: list[Any]
    returned: Any


def differs(got: Any, wanted: Any) -> bool:
    """To the bit, but that a NaN is a NaN: processors fill its other bits differently."""
    if isinstance(wanted, list):
        return any(differs(a, b) for a, b in zip(got, wanted, strict=True))
    if not isinstance(wanted, np.ndarray):
        return False
    if got.dtype.kind == "f":
        nan = np.isnan(got) & np.isnan(wanted)
        return bool(((got.view(f"u{got.itemsize}") != wanted.view(f"u{got.itemsize}")) & ~nan).any())
    return bool((got != wanted).any())


def main(binary: str, calls: str) -> int:
    spec = importlib.util.spec_from_file_location("_C", binary)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with open(calls, "rb") as file:
        recorded = [Call(*call) for call in pickle.load(file)]
    failures, functions = [], Counter[str]()
    needed = 0
    for call in recorded:
        arguments = restored(call.before)
        functions[call.function] += 1
        for i, after in enumerate(call.after):
            if after is None and arguments[i] is not None:  # a workspace, of the size that this binary asked for
                arguments[i] = np.empty(needed, np.uint8)
        returned = getattr(module, call.function)(*arguments)
        if call.function.endswith("_workspace"):
            needed = returned
            continue
        wrong = [i for i, after in enumerate(call.after) if differs(arguments[i], restored(after))]
        if wrong or returned != call.returned:
            failures.append(f"{call.label}: {call.function}, arguments {wrong}, returned {returned}")
    print(f"{module.build_info()}")
    print("\n".join(failures[:20]))
    print(f"{len(recorded) - len(failures)} passed, {len(failures)} failed of {len(functions)} functions")
    return 1 if failures or not recorded else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
