"""Every CUDA source compiles for Ampere, Hopper and Blackwell, and no kernel spills registers. No GPU is needed.

Compiled are the kernels, and the harness' own kernels, so that what the SIMT harness takes is CUDA. A compilation that
went well is remembered under build/, by everything that went into it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "build" / "cuda_check"
SOURCES = [*sorted((ROOT / "kernels").glob("*/*.cu")), ROOT / "tests" / "simt" / "harness_kernels.cu"]
ARCHITECTURES = (80, 90, 100)
FLAGS = [
    "-std=c++17", "-O3", "--fmad=false", "-Xptxas", "-warn-spills,-Werror", "-Xcompiler", "-Wall",
    *(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES),
]  # fmt: skip


def find_nvcc() -> str | None:
    for root in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if root and (Path(root) / "bin" / "nvcc").exists():
            return str(Path(root) / "bin" / "nvcc")
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


def inputs(source: Path) -> set[Path]:
    """The file and everything of ours that it includes."""
    found, left = set(), [source]
    while left:
        path = left.pop()
        found.add(path)
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), re.MULTILINE):
            included = (path.parent / name).resolve()
            if included.exists() and included not in found:
                left.append(included)
    return found


def compile_source(nvcc: str, version: str, source: Path) -> str:
    """The compiler's complaints, "" where there are none."""
    key = hashlib.sha256("\n".join([version, *FLAGS]).encode())
    for path in sorted(inputs(source)):
        key.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    stamp = CACHE / f"{source.stem}-{key.hexdigest()[:16]}.ok"
    if stamp.exists():
        return ""
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [nvcc, *FLAGS, "-c", str(source), "-o", os.devnull]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        return f"{' '.join(command)}\n{done.stdout}"
    stamp.touch()
    return ""


@pytest.fixture(scope="module")
def complaints() -> dict[Path, str]:
    """Of every source, compiled two at a time."""
    nvcc = find_nvcc()
    if nvcc is None:
        message = "no nvcc: neither CUDA_HOME, CUDACXX nor the PATH has one"
        if "nvcc" in os.environ.get("FRCNN_REQUIRE", "").replace(" ", "").split(","):
            pytest.fail(message)
        pytest.skip(message)
    version = subprocess.check_output([nvcc, "--version"], text=True)
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda source: compile_source(nvcc, version, source), SOURCES)
        return dict(zip(SOURCES, results, strict=True))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_compiles_without_spills(complaints: dict[Path, str], source: Path) -> None:
    assert not complaints[source], complaints[source]


def test_a_spilling_kernel_is_noticed(tmp_path: Path) -> None:
    """The check checks: a kernel that needs more registers than it may have is refused."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc")
    source = tmp_path / "spill.cu"
    terms = "".join(f"float v{i} = x[{i} * n];\n" for i in range(64))
    total = " + ".join(f"v{i} * x[v{63 - i} > 0.f]" for i in range(64))
    source.write_text(
        "__global__ void __launch_bounds__(1024, 2) spill(float* x, int n) {\n"
        f"{terms}__syncthreads();\nx[0] = {total};\n}}\n"
    )
    done = subprocess.run(
        [nvcc, *FLAGS, "-c", str(source), "-o", os.devnull], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "spill" in done.stdout + done.stderr
