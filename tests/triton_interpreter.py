"""Triton's interpreter without its greatest cost.

Every call of a helper function puts the interpreter's versions of all of triton.language in place, although those of
the kernel that calls it are there still. Here a launch does so, once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock


@contextlib.contextmanager
def patching_once_a_launch() -> Iterator[None]:
    """Inside, kernels run as ever, several times as fast."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang
    # As _patch_lang wants it: a function that sees all modules whose functions are to be replaced.
    sees_all = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    nothing = interpreter._LangPatchScope()
    in_place = False

    def patch_once(fn: Any) -> Any:
        nonlocal in_place
        if in_place:
            return nothing
        scope = patch(sees_all)
        # Triton 3.6 asks NumPy for a number of an array with one element, which newer NumPy refuses.
        scope.set_attr(tl.tensor, "__index__", lambda self: int(self.handle.data.item()))
        restore = scope.restore
        in_place = True

        def undo() -> None:
            nonlocal in_place
            restore()
            in_place = False

        scope.restore = undo
        return scope

    with mock.patch.object(interpreter, "_patch_lang", patch_once):
        yield
