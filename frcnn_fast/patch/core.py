"""Replaces a library's functions and methods for a while, and puts them back."""

from __future__ import annotations

import functools
import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import CodeType, FunctionType, ModuleType, TracebackType
from typing import Any, NamedTuple

import torch

from frcnn_fast._extras import require
from frcnn_fast.ops._torch_private import plain_eager

_lock = threading.Lock()


class Replacement(NamedTuple):
    """What stands in the place of a function or of a class's method."""

    path: str  # "module:function" or "module:class:method"
    owner: type | None  # the class; None for a function
    theirs: Any  # functions
    ours: Any


class Library:
    """A library whose functions can be replaced, and the patches that ask for it now.

    Args:
        name: the package's name, which is the extra's as well.
        instead_of: our function for each "module:function" or "module:class:method", the module's name without the
            package's. It takes their arguments by their names, and returns NotImplemented for a call that it does not
            serve: then theirs is called.
        oldest: the first version whose answers ours are.
    """

    def __init__(self, name: str, instead_of: Mapping[str, Callable[..., Any]], oldest: tuple[int, ...] = ()) -> None:
        self.name = name
        self.instead_of = instead_of
        self.oldest = oldest
        self.active = False  # read by every replacement
        self.holders = 0  # patches that have not been undone
        self.replacements: list[Replacement] = []  # while there are holders
        self.elsewhere: list[str] = []  # where other modules had a function: "module.name"

    def patch(self) -> Patch:
        """Replace everything, if no other patch has; ImportError where something to be replaced is missing."""
        return patch_all(self)

    def hold(self) -> None:
        """One patch more; the first one replaces."""
        with _lock:
            if not self.holders:
                self.replacements = self._find()
                self._put()
            self.holders += 1

    def release(self) -> None:
        """One patch less; the last one's end brings everything back."""
        with _lock:
            self.holders -= 1
            if not self.holders:
                self._restore()
                self.replacements, self.elsewhere = [], []

    def _find(self) -> list[Replacement]:
        version = require(self.name, self.name).__version__
        if tuple(int(number) for number in re.findall(r"\d+", version)[: len(self.oldest)]) < self.oldest:
            raise ImportError(
                f"{self.name} {version} answers otherwise than {'.'.join(map(str, self.oldest))} and later, which this "
                f"patch is for: pip install --upgrade 'frcnn_fast[{self.name}]'"
            )
        found = []
        for path, ours in self.instead_of.items():
            module, *names = path.split(":")
            chain: list[Any] = [require(f"{self.name}.{module}", self.name)]
            for name in names:
                chain.append(getattr(chain[-1], name, None))
            theirs = chain[-1]
            if not isinstance(theirs, FunctionType):
                raise ImportError(f"{self.name} {version} has no function {path}, which a patch would replace")
            unknown = set(inspect.signature(theirs).parameters) - set(inspect.signature(ours).parameters)
            if unknown:
                raise ImportError(
                    f"{self.name} {version}: {path} takes {', '.join(sorted(unknown))}, unknown to this patch"
                )
            found.append(
                Replacement(path, chain[-2] if len(names) > 1 else None, theirs, self._in_place_of(theirs, ours))
            )
        return found

    def _in_place_of(self, theirs: FunctionType, ours: Callable[..., Any]) -> FunctionType:
        library_ = self  # a name that no source of theirs has: torch.jit.script looks names up here, too

        def replacement(*args_: Any, **kwargs_: Any) -> Any:
            # A detector that was built while patched may keep a replaced function for good.
            result_ = ours(*args_, **kwargs_) if library_.active else NotImplemented
            return theirs(*args_, **kwargs_) if result_ is NotImplemented else result_

        # - Code of its own: torch.compile counts recompilations for each code object, and all replacements together
        #   would soon reach the limit.
        # - Their globals: torch.jit.script compiles their source (it unwraps), with the names that this function sees.
        code: CodeType = replacement.__code__.replace(co_name=theirs.__name__)
        made = FunctionType(code, theirs.__globals__, theirs.__name__, None, replacement.__closure__)
        return functools.update_wrapper(made, theirs)  # type: ignore[return-value]

    def _put(self) -> None:
        self.active = True
        places = self._rename((r.theirs, r.ours) for r in self.replacements if r.owner is None)
        self.elsewhere = sorted(place for place in places if not place.startswith(self.name + "."))
        for _, owner, theirs, ours in self.replacements:
            if owner is not None:
                setattr(owner, theirs.__name__, ours)

    def _restore(self) -> None:
        self.active = False
        # Modules first imported while patched have the replacements, too.
        self._rename((r.ours, r.theirs) for r in self.replacements if r.owner is None)
        for _, owner, theirs, ours in self.replacements:
            # Somebody else may have patched it since: then it is theirs to put back.
            if owner is not None and vars(owner).get(theirs.__name__) is ours:
                setattr(owner, theirs.__name__, theirs)

    def _rename(self, pairs: Iterable[tuple[FunctionType, FunctionType]]) -> list[str]:
        """Put the second of each pair wherever a loaded module has the first, by whatever name; returns the places.

        A module that imported a function by name (`from torchvision.ops import nms`) has it in its own namespace, so
        it is looked for by identity, in every module of the process.
        """
        new = {id(old): new for old, new in pairs}
        places = []
        for module_name, module in list(sys.modules.items()):
            if not isinstance(module, ModuleType):
                continue
            # Not vars(): a module that loads lazily would be loaded by it.
            names = ModuleType.__getattribute__(module, "__dict__")
            for name, value in list(names.items()):
                if id(value) in new:
                    names[name] = new[id(value)]
                    places.append(f"{module_name}.{name}")
        return places


class Patch:
    """A patch in force, until `undo()`; also a context manager.

    Attributes:
        replaced: what it replaces, as "module.function" or "module.class.method": in the library, then in the modules
            that had imported its functions by name.
    """

    def __init__(self, libraries: Sequence[Library]) -> None:
        self._libraries = tuple(libraries)
        self.replaced: list[str] = []
        for library in libraries:
            self.replaced += [f"{library.name}.{r.path.replace(':', '.')}" for r in library.replacements]
            self.replaced += library.elsewhere

    def undo(self) -> None:
        """Takes this patch back; the library is itself again when no other is left. Once is enough."""
        with _lock:
            libraries, self._libraries = self._libraries, ()
        for library in reversed(libraries):
            library.release()

    def __enter__(self) -> Patch:
        if not self._libraries:
            raise RuntimeError("this patch has been undone; make a new one")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"<Patch of {len(self.replaced)} functions, {'in force' if self._libraries else 'undone'}>"


def patch_all(*libraries: Library) -> Patch:
    """One patch of several libraries: all of them, or by an exception none."""
    held: list[Library] = []
    try:
        for library in libraries:
            library.hold()
            held.append(library)
    except BaseException:
        for library in reversed(held):
            library.release()
        raise
    return Patch(held)


def are_served(*tensors: Any, plain: Callable[[Iterable[Any]], bool] = plain_eager) -> bool:
    """Tensors of one dtype that other libraries, too, compute in as it is, on one device that has kernels.

    plain: whether nobody watches, and these are tensors and nothing more.
    """
    if not tensors or not plain(tensors):
        return False
    dtype, device = tensors[0].dtype, tensors[0].device
    return (
        dtype in (torch.float32, torch.float64)
        and device.type in ("cpu", "cuda")
        and all(t.dtype == dtype and t.device == device for t in tensors)
    )
