"""Floors of the GPU at hand: compiles floors.cu with nvcc and runs it. `python -m bench.floors --json FILE`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench import tools

SOURCE = Path(__file__).with_name("floors.cu")
BUILD_SECONDS = 120
RUN_SECONDS = 60


def find_nvcc() -> str:
    """nvcc from CUDACXX, CUDA_HOME or the PATH; RuntimeError where there is none."""
    found = shutil.which(os.environ.get("CUDACXX", "")) or tools.find("nvcc")
    if found:
        return found
    raise RuntimeError("bench.floors: there is no nvcc; put it on the PATH, or set CUDACXX or CUDA_HOME")


def build(program: Path, architecture: str = "") -> Path:
    """Compiles floors.cu; RuntimeError with the compiler's words where that fails. architecture: "sm_90", or that of
    this machine's GPU.
    """
    here = tools.architecture()
    architecture = architecture or (f"sm_{here}" if here else "native")
    command = [find_nvcc(), "-std=c++17", "-O3", f"-arch={architecture}", "-o", str(program), str(SOURCE)]
    done = subprocess.run(command, text=True, capture_output=True, timeout=BUILD_SECONDS)
    if done.returncode:
        raise RuntimeError(f"bench.floors: {' '.join(command)} failed:\n{done.stderr.strip()}")
    return program


def parse(output: str) -> dict[str, dict[str, Any]]:
    """{name: {unit, p10, p50, p90}} from the program's lines."""
    found = {}
    for line in output.splitlines():
        entry = json.loads(line)
        found[entry.pop("name")] = entry
    return found


def measure() -> tuple[dict[str, dict[str, Any]], str]:
    """Builds and runs it on GPU 0: what it measured, and what went wrong or "". RuntimeError: it does not build."""
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder) / "floors")
        with (Path(folder) / "lines").open("w+") as lines:
            try:
                done = subprocess.run([program], stdout=lines, stderr=subprocess.PIPE, text=True, timeout=RUN_SECONDS)
                error = done.stderr.strip() or f"exit {done.returncode}" if done.returncode else ""
            except subprocess.TimeoutExpired:
                error = f"took longer than {RUN_SECONDS} s"
            lines.seek(0)
            return parse(lines.read()), error and f"bench.floors: {error}"


def lines(floors: dict[str, dict[str, Any]]) -> list[str]:
    """For the terminal; cycles are left out where nanoseconds say the same."""
    shown = {name: entry for name, entry in floors.items() if entry["unit"] != "cycles"}
    return [
        f"{name:36s} {e['p50']:10.4g} {e['unit']:9s} ({e['p10']:.4g} … {e['p90']:.4g})" for name, e in shown.items()
    ]
