"""Builds the instrumented test module (tests/simt/CMakeLists.txt); `python -m tests.simt.build` does so by hand."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "test"
# The plugin writes it, and run_sanitized tells in which test a sanitizer ended the process.
CURRENT_TEST = BUILD / "current_test.txt"
MOST_COPIES = 65534  # of a loop's body, that GCC knows of


def build(target: str = "simt_module", output: IO[str] | None = None) -> Path:
    """Configures when needed, compiles what is stale, and returns the module's path. target: or "simt_counts". output:
    of the build, instead of standard output.
    """
    import pybind11

    tools = "\n".join(str(shutil.which(name)) for name in ("cmake", "ninja", "c++")) + sys.executable
    stamp = BUILD / "tools.txt"
    if not stamp.exists() or stamp.read_text() != tools:
        shutil.rmtree(BUILD, ignore_errors=True)
        BUILD.mkdir(parents=True)
        subprocess.check_call(
            [
                "cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None",
                f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                "-DPYBIND11_FINDPYTHON=ON", "-DFRCNN_FAST_CUDA=OFF", "-DFRCNN_FAST_TEST_BUILD=ON",
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        stamp.write_text(tools)
    if target == "simt_counts":
        copy_unrolled(BUILD / "unrolled")
    subprocess.check_call(["cmake", "--build", str(BUILD), "--target", target], stdout=output)
    (module,) = (BUILD / target.removeprefix("simt_")).glob("_C*.so")
    return module


def copy_unrolled(target: Path) -> None:
    """Copies the kernels, line for line; what nvcc is told about a loop, GCC is told. What has not changed stays."""
    sources = [p for p in (ROOT / "kernels").rglob("*") if p.suffix in {".h", ".cuh", ".cu"}]
    for path in [*sources, ROOT / "tests" / "simt" / "counting_kernels.cu"]:
        copy = target / path.relative_to(ROOT)
        text = re.sub(r"^#pragma unroll( \d+)", r"#pragma GCC unroll\1", path.read_text(), flags=re.M)
        text = re.sub(r"^#pragma unroll$", f"#pragma GCC unroll {MOST_COPIES}", text, flags=re.M)
        if not copy.exists() or copy.read_text() != text:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text)


def sanitizer_environment() -> dict[str, str]:
    """What the interpreter needs so that a module with AddressSanitizer can be loaded into it."""
    libraries = [
        subprocess.check_output(["c++", f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(Path(library).is_absolute() for library in libraries):
        raise RuntimeError("the sanitized run needs GCC with its libasan; c++ here has none")
    return {
        "LD_PRELOAD": " ".join(libraries),
        # Python and torch leave memory to the end of the process.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:print_legend=0:allow_user_segv_handler=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
    }


def mutants() -> dict[str, list[Path]]:
    """Every planted mutant by name, with the files that it is in."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "kernels").rglob("*")):
        if path.suffix in {".h", ".cuh", ".cu", ".cpp"} and path.name != "mutant.h":
            for name in sorted(set(re.findall(r"FF_MUTANT\(\s*(\w+)", path.read_text()))):
                found.setdefault(name, []).append(path.relative_to(ROOT))
    return found


if __name__ == "__main__":
    print(build())
