"""What is installed, which backends work on this machine, and why not the others."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from typing import Any

import torch

import frcnn_fast
from frcnn_fast import _extension
from frcnn_fast.cupy_kernels import SERVED as SERVED_BY_NVRTC
from frcnn_fast.mmcv.finder import EXTENSION
from frcnn_fast.mmcv.table import SERVED
from frcnn_fast.ops._backends import carries_code_for, triton_interprets, why_no_cuda

# Optional packages, and the extra that brings each.
_EXTRA_OF = {
    "triton": "triton",
    "cupy-cuda13x": "cupy",
    **dict.fromkeys(
        ("pillow", "scikit-learn", "scipy", "tqdm", "matplotlib", "safetensors", "pyyaml", "tomlkit"), "train"
    ),
}


def backends() -> dict[str, str]:
    """Every backend by name: "" where it works on this machine, else the reason why not."""
    info = build_info()
    return {
        "cpu": "" if info is not None else _extension.missing_reason,
        "cuda": _why_no_cuda(info),
        "triton": _why_no_triton(),
        "reference": "",
    }


def build_info() -> dict[str, Any] | None:
    """What the compiled half says of itself; None where there is none."""
    return _extension.extension().build_info() if _extension.missing_reason == "" else None


def _why_no_cuda(info: dict[str, Any] | None) -> str:
    if info is None or not info["cuda"]:
        return why_no_cuda((0, 0))
    if info["cuda_devices"] == 0:
        why = info["cuda_error"] or "none installed"
        return f"the CUDA runtime finds no GPU ({why}); if nvidia-smi shows one, its driver is too old for the binary"
    if not torch.cuda.is_available():
        return f"torch finds no GPU: {_mended_torch()}"
    return why_no_cuda(torch.cuda.get_device_capability(0))


def _why_no_triton() -> str:
    if _version("triton") is None:
        return "triton is not installed: pip install 'frcnn_fast[triton]'"
    if not torch.cuda.is_available() and not triton_interprets():
        return "there is no GPU (TRITON_INTERPRET=1 runs its kernels on the processor, slowly)"
    return ""


def _mended_torch() -> str:
    """Why torch may have no GPU, and what to do."""
    if torch.version.cuda is None:
        return "this torch was built without CUDA; where there is a GPU, install one that was built with it"
    return f"if nvidia-smi shows one, update its driver (this torch wants CUDA {torch.version.cuda})"


def _mended_code(capability: tuple[int, int]) -> str:
    """How a binary gets code for a GPU."""
    option = f"CMAKE_ARGS=-DFRCNN_FAST_CUDA_ARCHITECTURES={capability[0]}{capability[1]}-real"
    return f"the Triton kernels serve it, or build with {option}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _mmcv() -> str:
    """mmcv itself is not imported: it may be broken."""
    found = importlib.util.find_spec("mmcv")
    if found is None:
        return "not installed"
    owners = importlib.metadata.packages_distributions().get("mmcv", [])
    name = ", ".join(f"{owner} {_version(owner)}" for owner in dict.fromkeys(owners)) or "unknown version"
    if PathFinder.find_spec(EXTENSION, found.submodule_search_locations) is not None:
        return f"{name} with a compiled half of its own"
    return (
        f"{name} without a compiled half: frcnn_fast.stand_in_for_mmcv(), or python -m frcnn_fast.mmdet SCRIPT, serves "
        f"{len(SERVED)} of its functions"
    )


def _arrays() -> str:
    """How ops take CuPy's arrays here."""
    if _version("cupy-cuda13x") is None and _version("cupy") is None:
        return "not installed: pip install 'frcnn_fast[cupy]'"
    if torch.cuda.is_available():
        return "arrays are viewed by torch"
    try:
        import cupy

        digits = cupy.cuda.Device().compute_capability
    except Exception as error:  # no driver, no GPU, a broken install: whatever it is, it is the finding
        return f"finds no GPU ({error})"
    reason = why_no_cuda((int(digits[:-1]), int(digits[-1])))
    if not reason:
        return "torch sees no GPU: the compiled module takes the arrays itself"
    return f"torch sees no GPU, and {reason}: NVRTC compiles the kernels of {', '.join(sorted(SERVED_BY_NVRTC))}"


def _cpp() -> str:
    try:
        return f"find_package(frcnn_fast) with CMAKE_PREFIX_PATH={frcnn_fast.cmake_prefix()}"
    except RuntimeError as error:
        return f"not installed: {error}"


def report() -> list[tuple[str, str]]:
    """Everything the doctor knows, as (name, finding)."""
    info = build_info()
    lines = [
        ("frcnn_fast", f"{frcnn_fast.__version__} in {os.path.dirname(frcnn_fast.__file__)}"),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, {torch.get_num_threads()} threads"),
        ("numpy", _version("numpy") or "not installed: pip install numpy"),
        *[
            (package, _version(package) or f"not installed: pip install 'frcnn_fast[{extra}]'")
            for package, extra in _EXTRA_OF.items()
        ],
        ("mmcv", _mmcv()),
    ]
    if info is None:
        lines.append(("binary", _extension.missing_reason))
    else:
        cuda = f"CUDA for {info['cuda_architectures']}" if info["cuda"] else "no CUDA half"
        openmp = (
            "OpenMP" if info["openmp"] else "no OpenMP: one thread (build it with a compiler that has it, such as g++)"
        )
        lines.append(("binary", f"{cuda}; processor code for {info['isa']}, {openmp}"))
    lines += [("C++", _cpp()), ("arrays of CuPy", _arrays())]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        capability = torch.cuda.get_device_capability(index)
        code = carries_code_for(info["cuda_architectures"], capability) if info is not None else ""
        name = f"{torch.cuda.get_device_name(index)}, sm_{capability[0]}{capability[1]}"
        lines.append(
            (f"gpu {index}", f"{name}: the binary carries {code or f'no code for it: {_mended_code(capability)}'}")
        )
    if not torch.cuda.is_available():
        lines.append(("gpu", f"torch finds none: {_mended_torch()}"))
    for name, reason in backends().items():
        lines.append((f"backend {name}", f"not available: {reason}" if reason else "available"))
    return lines


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(prog=prog or "python -m frcnn_fast.doctor", description=__doc__)
    parser.parse_args(argv)
    for name, finding in report():
        print(f"{name:<18}{finding}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
