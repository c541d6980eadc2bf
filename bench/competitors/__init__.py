"""Other people's ways to the same results, where they are installed. What is missing is named, never left out."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from pathlib import Path

import torch

try:
    import torchvision

    torchvision_missing = ""
except (ImportError, RuntimeError) as error:  # one that was built for another torch raises RuntimeError
    torchvision_missing = f"torchvision: {error}"


def compiler_missing() -> str:
    """Why torch.compile cannot generate code here, or ""."""
    if torch.cuda.is_available():
        return "" if importlib.util.find_spec("triton") else "torch.compile: triton is not installed"
    compiler = os.environ.get("CXX", "g++")
    return "" if shutil.which(compiler) else f"torch.compile: there is no {compiler}"


def selective_search_missing() -> str:
    """Why Selective Search cannot run, or ""."""
    try:
        import cv2
    except ImportError as error:
        return f"Selective Search: {error} (pip install opencv-contrib-python-headless)"
    if not hasattr(getattr(cv2, "ximgproc", None), "segmentation"):
        return "Selective Search: this OpenCV lacks its contrib modules (pip install opencv-contrib-python-headless)"
    return ""


def photographs() -> list[Path]:
    """The real photographs, from the folder FRCNN_DATA; none where that is not set."""
    root = os.environ.get("FRCNN_DATA")
    return sorted(Path(root).glob("selective_search/data/demo/*.jpg")) if root else []


def missing() -> list[str]:
    """Every competitor that cannot take part, with the reason."""
    photo = "" if photographs() else "Selective Search: FRCNN_DATA is not set or has no photographs"
    from bench.competitors import runtimes

    found = [torchvision_missing, compiler_missing(), *runtimes.missing(), selective_search_missing() or photo]
    return [reason for reason in found if reason]


def versions() -> dict[str, str | None]:
    """Versions of what is installed."""
    from bench.competitors import runtimes

    return {
        "torchvision": None if torchvision_missing else torchvision.__version__,
        "opencv": None if selective_search_missing() else importlib.import_module("cv2").__version__,
        **runtimes.versions(),
    }
