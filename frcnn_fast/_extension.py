"""The compiled half, or the reason why it is missing."""

from __future__ import annotations

import logging
import os
import platform
import sysconfig
import time
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

from frcnn_fast import _waits  # noqa: F401  # before torch

# torch before the compiled half: it brings the OpenMP runtime that both share.
import torch  # isort: skip

OLDEST_TORCH = (2, 11)
_MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}  # e_machine of an ELF file


def check_torch(version: str) -> None:
    """ImportError where torch is older than this package serves."""
    found = tuple(int(part) for part in version.split(".")[:2])
    if found < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(
            f"frcnn_fast needs torch {oldest} or later, and this is torch {version} in "
            f"{os.path.dirname(torch.__file__)}; pip install 'torch>={oldest}'"
        )


def check_version(of_package: str, of_binary: str | None) -> None:
    """ImportError where the compiled half was built for another version of the package; None: it does not say."""
    if of_binary not in (None, of_package):
        raise ImportError(
            f"frcnn_fast is version {of_package}, and its compiled half was built for {of_binary}: they do not belong "
            f"together. {_REMEDY}"
        )


_REMEDY = "In a checkout: pip install -e . ; else: pip install --force-reinstall --no-deps frcnn_fast"


def unfit(folder: Path, error: ImportError) -> str:
    """Why none of the binaries in `folder` can be loaded here, both sides named; "" where there is none."""
    binaries = sorted(folder.glob("_C*.so"))
    if not binaries:
        return ""
    libc = " ".join(platform.libc_ver()).strip() or "an unknown C library"
    abi = sysconfig.get_config_var("SOABI")
    here = f"this is Python {platform.python_version()} ({abi}) on {platform.machine()} with {libc}"
    mine = [file for file in binaries if file.name.removeprefix("_C") in EXTENSION_SUFFIXES]
    if mine:
        there = f"its compiled half {mine[0]}, for {_machine(mine[0])}, cannot be loaded ({error})"
    else:
        there = f"its compiled half is for {', '.join(file.name.split('.')[1] for file in binaries)}"
    return f"frcnn_fast does not fit: {there}; {here}. {_REMEDY}"


def _machine(binary: Path) -> str:
    with open(binary, "rb") as file:
        head = file.read(20)
    if head[:4] != b"\x7fELF" or len(head) < 20:
        return "no machine: it is no ELF file"
    number = int.from_bytes(head[18:20], "little")
    return _MACHINES.get(number, f"ELF machine {number}")


check_torch(torch.__version__)
_C: ModuleType | None
try:
    from frcnn_fast import _C  # type: ignore[no-redef]

    missing_reason = ""
except ImportError as error:
    _C = None
    if _why := unfit(Path(__file__).parent, error):
        raise ImportError(_why) from error
    # A checkout that was not built: the reference serves, and everything else says this.
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
