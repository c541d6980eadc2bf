"""Loops that have to run by vectors do: nothing but their speed tells when the compiler gives one up."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MARK = "#pragma GCC ivdep"
MARKED = [path for path in sorted(ROOT.glob("kernels/*/*_cpu_simd.cpp")) if MARK in path.read_text()]
COMPILER = shutil.which("g++")


def _options() -> list[str]:
    """What the build compiles these files with, for AVX-512."""
    text = (ROOT / "CMakeLists.txt").read_text()
    [numeric] = re.findall(r"set\(NUMERIC_OPTIONS ([^)]+)\)", text)
    [instructions] = re.findall(r"add_isa\(avx512 ([^)]+)\)", text)
    fixed = ["-DFF_ISA=avx512", "-DFF_X86_ISA", "-fopenmp", "-O3", "-std=c++17"]
    return [*numeric.split(), *instructions.split(), *fixed]


def scalar_loops(source: Path) -> list[int]:
    """The lines of the marks whose loop stayed scalar, in one of the template's forms or in all."""
    command = [str(COMPILER), *_options(), "-fopt-info-vec-all", "-S", "-o", "/dev/null", str(source)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    at_line = rf"{re.escape(source.name)}:(\d+):\d+: "
    done = {int(line) for line in re.findall(at_line + "optimized: loop vectorized", said)}
    given_up = {int(line) for line in re.findall(at_line + "missed: couldn't vectorize loop", said)}
    marks = [i for i, line in enumerate(source.read_text().splitlines(), 1) if line.strip() == MARK]
    return [mark for mark in marks if mark + 1 not in done or given_up & {mark + 1, mark + 2, mark + 3}]


needs_gcc = pytest.mark.skipif(platform.machine() != "x86_64" or COMPILER is None, reason="needs GCC for x86-64")


@needs_gcc
@pytest.mark.parametrize("source", MARKED, ids=lambda path: path.stem)
def test_marked_loops_run_by_vectors(source: Path) -> None:
    assert scalar_loops(source) == []


@needs_gcc
def test_a_loop_that_stays_scalar_is_found(tmp_path: Path) -> None:
    source = tmp_path / "loops.cpp"
    source.write_text(
        f"bool f(float* a, int n) {{\n{MARK}\n  for (int i = 0; i < n; ++i) a[i] = a[i] * 2;\n\n"
        f"{MARK}\n  for (int i = 0; i < n; ++i) if (a[i] < 0) return true;\n  return false;\n}}\n"
    )
    assert scalar_loops(source) == [5]


def test_no_other_mark_is_used() -> None:
    """Under `omp simd` GCC 12 gives up most forms of a loop that it takes under the other mark."""
    sources = [*ROOT.glob("kernels/*/*.cpp"), *ROOT.glob("kernels/*/*.h")]
    assert [path.name for path in sources if "pragma omp simd" in path.read_text()] == []
