"""Finds `mmcv._ext` where nobody else does."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType

EXTENSION = "mmcv._ext"

_lock = threading.Lock()
_holders = 0  # stand-ins that have not been undone


class _Finder(MetaPathFinder, Loader):
    """Last in the line of finders: asked only where mmcv itself has no such module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, origin="frcnn_fast.mmcv") if fullname == EXTENSION else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None  # an ordinary module

    def exec_module(self, module: ModuleType) -> None:
        # Only now: torch's operators and the kernels' binary are nobody's business before.
        importlib.import_module("frcnn_fast.mmcv.table").fill(module)


_FINDER = _Finder()


class StandIn:
    """The stand-in, until `undo()`; also a context manager."""

    def __init__(self) -> None:
        self._in_force = True

    def undo(self) -> None:
        """Nobody answers for `mmcv._ext` any more, when no other stand-in is left. Once is enough. Modules of mmcv that
        have been imported meanwhile keep what they found."""
        global _holders
        with _lock:
            if self._in_force:
                self._in_force = False
                _holders -= 1
                if not _holders:
                    sys.meta_path.remove(_FINDER)

    def __enter__(self) -> StandIn:
        if not self._in_force:
            raise RuntimeError("this stand-in has been undone; make a new one")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"<StandIn for {EXTENSION}, {'in force' if self._in_force else 'undone'}>"


def stand_in_for_mmcv() -> StandIn:
    """Lets mmcv work without its compiled half: call it before anything imports mmcv.ops.

        import frcnn_fast

        frcnn_fast.stand_in_for_mmcv()
        from mmdet.apis import DetInferencer

    `pip install 'frcnn_fast[mmdet]'` brings mmdet 3.3.0, mmengine and mmcv-lite 2.1.0, which is mmcv without its
    compiled module `mmcv._ext`. From here on an import of that module is answered by functions of the same names and
    signatures: by our kernels where we have them, else by torch, torchvision or mmcv's own Python code. Where mmcv has
    a compiled half, that one is found first, and nothing changes. Functions that nothing serves exist and raise
    NotImplementedError when they are called, with their name and the models that need them.
    `frcnn_fast.mmcv.table.SERVED` lists what is served by what, and docs/mmdetection.md where answers differ.

    It costs nothing until asked: it appends a finder to sys.meta_path and imports nothing. Stand-ins count: the finder
    goes when all are undone. `python -m frcnn_fast.mmdet SCRIPT ...` runs an unmodified script with it.

    Returns:
        The stand-in, with `undo()`; also a context manager.
    """
    global _holders
    with _lock:
        if not _holders:
            sys.meta_path.append(_FINDER)
        _holders += 1
    return StandIn()
