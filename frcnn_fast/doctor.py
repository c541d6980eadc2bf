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
from frcnn_fast.mmcv.finder import EXTENSION
from frcnn_fast.mmcv.table import SERVED
from frcnn_fast.ops._backends import carries_code_for, triton_interprets, why_no_cuda

_PACKAGES = ("numpy", "triton", "cupy-cuda13x", "pillow", "scikit-learn", "tqdm", "matplotlib", "safetensors")


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
        return f"the CUDA runtime finds no GPU ({info['cuda_error'] or 'none installed'})"
    if not torch.cuda.is_available():
        return "torch finds no GPU: it may have been installed without CUDA"
    return why_no_cuda(torch.cuda.get_device_capability(0))


def _why_no_triton() -> str:
    if _version("triton") is None:
        return "triton is not installed: pip install 'frcnn_fast[triton]'"
    if not torch.cuda.is_available() and not triton_interprets():
        return "there is no GPU (TRITON_INTERPRET=1 runs its kernels on the processor, slowly)"
    return ""


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
        *[(package, _version(package) or "not installed") for package in _PACKAGES],
        ("mmcv", _mmcv()),
    ]
    if info is None:
        lines.append(("binary", _extension.missing_reason))
    else:
        cuda = f"CUDA for {info['cuda_architectures']}" if info["cuda"] else "no CUDA half"
        openmp = "OpenMP" if info["openmp"] else "no OpenMP: one thread"
        lines.append(("binary", f"{cuda}; processor code for {info['isa']}, {openmp}"))
    lines.append(("C++", _cpp()))
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        capability = torch.cuda.get_device_capability(index)
        code = carries_code_for(info["cuda_architectures"], capability) if info is not None else ""
        name = f"{torch.cuda.get_device_name(index)}, sm_{capability[0]}{capability[1]}"
        lines.append((f"gpu {index}", f"{name}: the binary carries {code or 'no code for it'}"))
    if not torch.cuda.is_available():
        lines.append(("gpu", "torch finds none"))
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
