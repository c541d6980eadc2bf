"""Compiles the Triton kernels behind a call for a GPU that need not be there, exactly as a launch would."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from frcnn_fast.ops import _backends

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes. registers: per thread; shared: bytes per block; spills: bytes per thread in local
    memory, the stack included."""

    registers: int
    shared: int
    spills: int


@dataclass
class Compiled:
    """kernels: each form of each kernel, once. launches: how often one was asked for."""

    kernels: list[Any] = field(default_factory=list)
    launches: int = 0


class _NoDevice:
    """Stands in for Triton's driver: knows the target, has no device."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return str(self.target)  # compiled kernels are kept by device

    def get_current_stream(self, device: str) -> int:
        return 0


@contextmanager
def compiling(target: GPUTarget, known: set[Any] | None = None) -> Iterator[Compiled]:
    """Inside, a call with backend="triton" on CPU tensors compiles its kernels for the target in place of running them
    (so its results are garbage). known: kernels that need not be compiled again, in whatever
    form; those that are compiled are added."""
    found = Compiled()
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        found.launches += 1
        if known is not None:
            if self.fn in known:
                return None
            known.add(self.fn)
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        if all(kernel is not other for other in found.kernels):
            found.kernels.append(kernel)
        return kernel

    with (
        mock.patch.object(driver, "_active", _NoDevice(target)),
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(_backends, "triton_interprets", return_value=True),
        _backends.use_backend("triton"),
    ):
        yield found


def resources(kernel: Any) -> Resources:
    """Read from the binary: for NVIDIA by cuobjdump, for AMD from the assembly's own summary."""
    shared = int(kernel.metadata.shared)
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        registers, spilled, private = (
            int(re.search(rf"\.{name}:\s+(\d+)", text)[1])  # type: ignore[index]
            for name in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
        )
        return Resources(registers, shared, 4 * spilled + private)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.check_output([CUOBJDUMP, "-res-usage", file.name], text=True, stderr=subprocess.STDOUT)
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return Resources(found["REG"], shared, found["STACK"] + found["LOCAL"])
