"""The compiled half, or the reason why it is missing."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from types import ModuleType

_C: ModuleType | None
try:
    # torch first: it brings the OpenMP runtime that both share.
    import torch  # noqa: F401

    from frcnn_fast import _C  # type: ignore[no-redef]

    missing_reason = ""
except ImportError as error:
    _C = None
    missing_reason = f"frcnn_fast._C could not be imported ({error}); build it with `pip install -e .`"


def _forked_before() -> bool:
    """Whether this process is a fork (without exec) of one that had imported `logging`, as torch does, before.

    Then OpenMP's threads, if the parent had any, are not here. The import was before this process began; its time is
    on record. Linux tells when a process began, in hundredths of a second; elsewhere the answer is no.
    """
    try:
        with open("/proc/self/stat", "rb") as file:
            began = int(file.read().rsplit(b")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, ValueError, IndexError, AttributeError):
        return False
    imported: float = logging._startTime  # type: ignore[attr-defined]
    imported = imported / 1e9 if imported > 1e15 else imported  # nanoseconds from Python 3.13 on
    return time.time() - imported > age + 0.02


if _C is not None and _forked_before():
    _C.mark_forked()


def extension() -> ModuleType:
    """The extension module; RuntimeError with the reason where it is missing."""
    if _C is None:
        raise RuntimeError(missing_reason)
    return _C


def cmake_prefix() -> str:
    """The folder for CMAKE_PREFIX_PATH in which find_package(frcnn_fast) finds the headers and the library for C++.

    Raises:
        RuntimeError: this is a checkout, where nothing is installed; the message names the commands that install it.
    """
    package = Path(__file__).resolve().parent
    if not (package / "lib" / "cmake").is_dir():
        root = package.parent
        raise RuntimeError(
            f"{package} has no package for C++ (an editable install?); from the sources, without Python: "
            f"cmake -S {root} -B BUILD -DFRCNN_FAST_PYTHON=OFF && cmake --build BUILD && "
            "cmake --install BUILD --prefix PREFIX"
        )
    return str(package)
