"""Single kernels over the SIMT harness, each to be called with its grid and its arguments, as CuPy would launch it.

For what launches kernels from Python (frcnn_fast/cupy_kernels.py): the launchers of C++ take no part.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from frcnn_fast.cupy_kernels import KERNELS, Launcher

SIMT = Path(__file__).resolve().parent
BUILD = SIMT.parents[1] / "build" / "kernel_library"
FLAGS = [
    "-std=c++20", "-O1", "-w", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-ffp-contract=off",
    "-fno-math-errno", "-DFF_SIMT", "-DFRCNN_FAST_WITH_CUDA", f"-I{SIMT}",
]  # fmt: skip
CALL = """
#include <cstring>
namespace {
template <class... Parameters, size_t... kPlaces>
void call(void (*kernel)(Parameters...), const int* grid, int block, void** arguments,
          std::index_sequence<kPlaces...>) {
  frcnn_fast::launch(simt::Where::current(), kernel, dim3(grid[0], grid[1], grid[2]), dim3(block), 0, nullptr,
                     *static_cast<std::remove_cv_t<Parameters>*>(arguments[kPlaces])...);
}
template <class... Parameters>
void call(void (*kernel)(Parameters...), const int* grid, int block, void** arguments) {
  call(kernel, grid, block, arguments, std::index_sequence_for<Parameters...>());
}
}  // namespace
extern "C" __attribute__((visibility("default")))
"""


def symbol(file: str) -> str:
    return "launch_" + "".join(c if c.isalnum() else "_" for c in file)


def text_of(file: str, kernels: Iterable[str]) -> str:
    """A source of C++ that calls these forms of the kernels of a .cu file by their names."""
    lines = [f'#include "{KERNELS.resolve() / file}"', CALL, f"int {symbol(file)}("]
    lines += ["    const char* name, const int* grid, int block, void** arguments) {"]
    lines += [
        f'  if (!std::strcmp(name, "{k}")) return call(&{k}, grid, block, arguments), 0;' for k in sorted(kernels)
    ]
    return "\n".join([*lines, "  return 1;", "}", ""])


def build(forms: set[tuple[str, str]]) -> ctypes.CDLL:
    """The library with these (file, kernel), compiled unless nothing of it has changed."""
    texts = {file: text_of(file, (k for f, k in forms if f == file)) for file in {file for file, _ in forms}}
    key = hashlib.sha256("\n".join([*FLAGS, *map(texts.get, sorted(texts))]).encode())
    own = [SIMT / "fiber.cpp", SIMT / "scheduler.cpp", SIMT / "runtime.cpp"]
    headers = [path for pattern in ("*/*.h", "*/*.cu*") for path in KERNELS.glob(pattern)]
    for path in sorted([*own, *SIMT.glob("*.h"), *headers]):
        key.update(path.read_bytes())
    library = BUILD / f"kernels-{key.hexdigest()[:16]}.so"
    if not library.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            (BUILD / f"{symbol(file)}.cpp").write_text(text)
        sources = [*own, *(BUILD / f"{symbol(file)}.cpp" for file in texts)]
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compiled, sources))
        part = library.with_suffix(".part")
        subprocess.run(["c++", "-shared", "-Wl,--gc-sections", "-o", part, *objects], check=True)
        os.replace(part, library)
    return ctypes.CDLL(str(library))


def compiled(source: Path) -> Path:
    made = BUILD / f"{source.stem}.o"
    subprocess.run(["c++", *FLAGS, "-c", str(source), "-o", str(made)], check=True)
    return made


class SimtLauncher(Launcher):
    """Runs the kernels on the processor, on NumPy's arrays."""

    def __init__(self, library: Any, kernels: ctypes.CDLL) -> None:
        super().__init__(library)
        self.kernels = kernels

    def address(self, array: Any) -> int:
        return 0 if array is None else array.ctypes.data

    def launch(self, file: str, kernel: str, grid: Sequence[int], block: int, arguments: Sequence[Any]) -> None:
        values = []
        for a in arguments:
            pointer = a is None or (isinstance(a, np.ndarray) and a.dtype.names is None)
            values.append(np.array([self.address(a)], np.uint64) if pointer else np.atleast_1d(a))
        places = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        whole = (ctypes.c_int * 3)(*[*grid, 1, 1][:3])
        if getattr(self.kernels, symbol(file))(kernel.encode(), whole, block, places):
            raise LookupError(f"the library was built without {kernel}")
