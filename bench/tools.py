"""Programs of this machine: where they are, and what they say. Needs nothing but the standard library."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def find(name: str) -> str | None:
    """A program of the CUDA toolkit: of CUDA_HOME, else on the PATH, else where toolkits are usually installed."""
    homes = [home for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    newest_first = sorted(map(str, Path("/opt/nvidia/nsight-compute").glob("*")), reverse=True)
    folders = [*(f"{home}/bin" for home in homes), os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    return shutil.which(name, path=os.pathsep.join([*folders, *newest_first]))


def output(*command: str) -> str:
    """What a command prints; "" where it cannot be run."""
    try:
        return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def commit() -> str:
    """Of this checkout: from FRCNN_COMMIT, or git, or "unknown"."""
    return os.environ.get("FRCNN_COMMIT") or output("git", "rev-parse", "HEAD") or "unknown"


def architecture() -> str:
    """The compute capability of the first GPU as nvcc writes it, "90"; "" where nvidia-smi does not tell."""
    return output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader").partition("\n")[0].replace(".", "")
