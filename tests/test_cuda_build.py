"""Every CUDA source compiles for Hopper (with FRCNN_LONG=1 for Ampere and Blackwell, too), and no kernel spills
registers. No GPU is needed.

And no kernel's code has grown unnoticed (bench/cost/code_size.py).

What the build has compiled is read from the binary: a form of a kernel without local memory spills nothing. What it has
not, since it is older than a source or has no CUDA half, is compiled here, and so are the harness' own kernels, so that
what the SIMT harness takes is CUDA. A compilation that went well is remembered under build/, by everything that went
into it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench import resources
from bench.cost import code_size
from frcnn_fast import _extension

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "build" / "cuda_check"
SOURCES = [*sorted((ROOT / "kernels").glob("*/*.cu")), ROOT / "tests" / "simt" / "harness_kernels.cu"]
ARCHITECTURES = (80, 90, 100) if os.environ.get("FRCNN_LONG") else (90,)
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


def in_binary(binary: Path) -> dict[str, list[resources.Form]]:
    """The compiled kernels by the name of their source; none where there is no CUDA half, or no tool to read it."""
    found: dict[str, list[resources.Form]] = {}
    with contextlib.suppress(RuntimeError):
        for form in resources.of_binary(resources.find_cuobjdump(), binary):
            found.setdefault(form.source, []).append(form)
    return found


def spilling(forms: list[resources.Form]) -> str:
    """Those with local memory: registers that were spilled, or an array that is indexed at run time."""
    return "\n".join(f"{form.kernel} ({form.architecture}): {form.local} bytes" for form in forms if form.local)


def from_the_build() -> dict[Path, str]:
    """Complaints about the sources that the binary at hand has, as they are now and for all architectures."""
    if _extension.missing_reason:
        return {}
    binary = Path(str(_extension.extension().__file__))
    kernels = in_binary(binary)
    return {source: spilling(kernels[source.name]) for source in SOURCES if is_current(source, binary, kernels)}


def is_current(source: Path, binary: Path, kernels: dict[str, list[resources.Form]]) -> bool:
    """Whether the binary has the source as it is now, for all architectures."""
    built_for = {form.architecture for form in kernels.get(source.name, [])}
    newest = max(path.stat().st_mtime for path in inputs(source))
    return built_for >= {f"sm_{arch}" for arch in ARCHITECTURES} and newest < binary.stat().st_mtime


@pytest.fixture(scope="module")
def complaints() -> dict[Path, str]:
    """About every source; two are compiled at a time."""
    nvcc = find_nvcc()
    if nvcc is None:
        message = "no nvcc: neither CUDA_HOME, CUDACXX nor the PATH has one"
        if "nvcc" in os.environ.get("FRCNN_REQUIRE", "").replace(" ", "").split(","):
            pytest.fail(message)
        pytest.skip(message)
    version = subprocess.check_output([nvcc, "--version"], text=True)
    built = from_the_build()
    left = [source for source in SOURCES if source not in built]
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda source: compile_source(nvcc, version, source), left)
        return built | dict(zip(left, results, strict=True))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_compiles_without_spills(complaints: dict[Path, str], source: Path) -> None:
    assert not complaints[source], complaints[source]


CLUSTER_SOURCES = [path for path in SOURCES if "#if FF_CODE_HAS_CLUSTERS" in path.read_text()]


@pytest.mark.parametrize("source", CLUSTER_SOURCES, ids=lambda path: path.name)
def test_code_without_clusters_traps(tmp_path: Path, source: Path) -> None:
    """A kernel that needs clusters is no empty body in older code: were one launched, it would not end in silence."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc")
    assembly = tmp_path / "kernels.ptx"
    flags = ["-std=c++17", "--fmad=false", "-arch=compute_80"]
    subprocess.run([nvcc, *flags, "-ptx", str(source), "-o", str(assembly)], check=True)
    kernels = re.findall(r"\.entry (\w*cluster_kernel\w*)\(.*?\n{(.*?)\n}", assembly.read_text(), re.DOTALL)
    assert kernels
    for name, body in kernels:
        instructions = [line.strip() for line in body.splitlines() if re.match(r"\s+\w.*;", line)]
        assert instructions[0] == "trap;", f"{name}: {instructions}"


def test_no_kernel_has_grown() -> None:
    """By more than 5 % of its machine instructions against the committed table, unless the table is renewed with it."""
    nvcc = find_nvcc()
    table = code_size.read_table()
    if nvcc is None or _extension.missing_reason:
        pytest.skip("no nvcc, or nothing built")
    if resources.release(nvcc) != table["nvcc"]:
        pytest.skip(f"the table is of nvcc {table['nvcc']}; another one writes other code")
    binary = Path(str(_extension.extension().__file__))
    kernels = in_binary(binary)
    current = {source.name for source in SOURCES if is_current(source, binary, kernels)}
    if not current or not (ROOT / "build" / str(sys.implementation.cache_tag)).is_dir():
        pytest.skip("the binary is older than every source, has no CUDA half, or was built elsewhere")

    def of_current(sizes: code_size.Sizes) -> code_size.Sizes:
        return {
            architecture: {name: entry for name, entry in found.items() if name.split(":")[0] in current}
            for architecture, found in sizes.items()
            if architecture in {f"sm_{arch}" for arch in ARCHITECTURES}
        }

    found = of_current(code_size.of_binary(resources.find_cuobjdump(), binary))
    changed = code_size.differences(of_current(table["kernels"]), found)
    assert not changed, "\n".join([*changed, "if that is meant: python -m bench.cost.code_size --renew"])


def test_a_growing_kernel_is_noticed() -> None:
    def table(**kernels: tuple[int, int, int]) -> code_size.Sizes:
        names = ("forms", "instructions", "longest")
        return {"sm_90": {kernel: dict(zip(names, sizes, strict=True)) for kernel, sizes in kernels.items()}}

    before = table(a=(2, 2000, 1100), b=(1, 400, 400))
    assert not code_size.differences(before, table(a=(2, 2099, 1100), b=(1, 381, 381)))
    assert code_size.differences(before, table(a=(2, 2120, 1100), b=(1, 400, 400))) == [
        "a (sm_90): instructions 2000 before, 2120 now (+6.0%)"
    ]
    assert (
        "longest 1100 before, 1160 now" in code_size.differences(before, table(a=(2, 2000, 1160), b=(1, 400, 400)))[0]
    )
    assert code_size.differences(before, table(a=(3, 2000, 1100), c=(1, 9, 9))) == [
        "a (sm_90): 2 forms before, 3 now",
        "b (sm_90): is gone",
        "c (sm_90): is new, 9 instructions",
    ]


def test_instructions_are_counted(tmp_path: Path) -> None:
    """As many as the disassembler lists, in a binary made here."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc")
    source, binary = tmp_path / "two.cu", tmp_path / "two.o"
    source.write_text(
        "__global__ void copy(float* x) { x[threadIdx.x] = x[threadIdx.x + 32]; }\n"
        "template <int n> __global__ void sum(float* x) { for (int i = 0; i < n; ++i) x[i] += x[i + 1]; }\n"
        "template __global__ void sum<2>(float*);\ntemplate __global__ void sum<9>(float*);\n"
    )
    subprocess.run([nvcc, "-arch=sm_90", "-c", str(source), "-o", str(binary)], check=True)
    cuobjdump = resources.find_cuobjdump()
    found = code_size.of_binary(cuobjdump, binary)["sm_90"]
    listed = subprocess.run([str(cuobjdump), "-sass", str(binary)], text=True, capture_output=True, check=True).stdout
    counts: dict[str, list[int]] = {}
    for part in listed.split("Function : ")[1:]:
        counts.setdefault(resources.function_name(part.split()[0]), []).append(
            len(re.findall(r"/\*[0-9a-f]{4}\*/", part))
        )
    assert {name: (entry["forms"], entry["instructions"], entry["longest"]) for name, entry in found.items()} == {
        f"two.cu:{name}": (len(n), sum(n), max(n)) for name, n in counts.items()
    }
    assert found["two.cu:sum"]["forms"] == 2


@pytest.mark.parametrize(
    ("kind", "instructions"), [("Half", ["cvt.f32.f16", "cvt.rn.f16.f32"]), ("BFloat16", ["cvt.rn.bf16.f32"])]
)
def test_halves_are_converted_by_the_hardware(tmp_path: Path, kind: str, instructions: list[str]) -> None:
    """One instruction each way, not a dozen, and nothing is selected: no case of them needs any care."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc")
    source, assembly = tmp_path / "copy.cu", tmp_path / "copy.ptx"
    source.write_text(
        f'#include "{ROOT}/kernels/common/dtype.h"\nusing namespace frcnn_fast;\n'
        f"__global__ void copy({kind}* x) {{ store(x, load(x + 1)); }}\n"
    )
    subprocess.run([nvcc, "-arch=sm_80", "-std=c++17", "-ptx", str(source), "-o", str(assembly)], check=True)
    text = assembly.read_text()
    assert [name for name in instructions if name not in text] == []
    assert "selp" not in text
    assert "setp" not in text


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
    # The same in a binary that was built without a word.
    binary = tmp_path / "spill.o"
    quiet = [flag for flag in FLAGS if "warn-spills" not in flag and flag != "-Xptxas"]
    subprocess.run([nvcc, *quiet, "-lineinfo", "-c", str(source), "-o", str(binary)], check=True)
    forms = in_binary(binary)["spill.cu"]
    assert {form.architecture for form in forms} == {f"sm_{arch}" for arch in ARCHITECTURES}
    assert f"spill (sm_{ARCHITECTURES[0]})" in spilling(forms)
