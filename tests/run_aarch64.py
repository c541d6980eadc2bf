"""The CPU kernels on aarch64, without such a machine: python -m tests.run_aarch64

Compiles them with a cross compiler, records every call that the conformance cases make of the binary of this machine,
and repeats the calls in an aarch64 Python under qemu: the answers must be the same to the bit. What the aarch64 side
needs (Debian's packages of its Python and C library, and NumPy's wheel) is fetched once into build/aarch64 by apt-get
and pip. bfloat16 is left out: NumPy has none.

Needs aarch64-linux-gnu-g++, qemu-aarch64-static (or qemu-aarch64), apt-get of Debian 12 and a network, the first time.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pybind11
import torch
from torch import Tensor

from frcnn_fast._extension import extension
from frcnn_fast.ops import _operator
from tests.conformance.backends import BACKENDS
from tests.conformance.edge_cases import EDGE_CASES
from tests.conformance.harness import Case, run
from tests.conformance.suite import BY_NAME, OPS
from tests.replay_calls import Call, stored

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "aarch64"
PACKAGES = (
    "libc6", "libgcc-s1", "libstdc++6", "libgomp1", "libexpat1", "zlib1g", "libffi8", "libbz2-1.0", "liblzma5",
    "libcrypt1", "libssl3", "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libpython3.11-dev",
)  # fmt: skip
NUMPY = "numpy==2.4.6"
COMPILER = "aarch64-linux-gnu-g++"
MOST_BYTES = 4 * 2**20  # of a call's arguments: the emulator is slow


def emulator() -> str | None:
    return shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


def missing() -> str:
    """What this machine lacks for it; "" where all is there."""
    lacks = [name for name in (COMPILER, "apt-get", "dpkg-deb", "cmake", "ninja") if not shutil.which(name)]
    lacks += [] if emulator() else ["qemu-aarch64-static"]
    return ", ".join(lacks)


# The other machine.


def root() -> Path:
    """A folder with the aarch64 Python, its headers and NumPy."""
    place = FOLDER / "root"
    if (FOLDER / "ready").exists():
        return place
    shutil.rmtree(FOLDER, ignore_errors=True)
    debs, state = FOLDER / "debs", FOLDER / "apt"
    for folder in (debs, place, state / "lists/partial", state / "cache/archives/partial"):
        folder.mkdir(parents=True)
    (state / "status").touch()
    # The machine's own sources, but lists and state beside its own.
    (state / "conf").write_text(
        'APT::Architecture "arm64"; APT::Architectures { "arm64"; };\n'
        f'Dir::State "{state}"; Dir::State::lists "{state}/lists"; Dir::State::status "{state}/status";\n'
        f'Dir::Cache "{state}/cache"; APT::Sandbox::User "root";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(state / "conf")}
    subprocess.run(["apt-get", "update", "-qq"], env=environment, check=True)
    subprocess.run(["apt-get", "download", "-qq", *PACKAGES], env=environment, cwd=debs, check=True)
    for package in debs.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, place], check=True)
    platforms = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
    wanted = [f"--platform={name}" for name in platforms]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    subprocess.run(
        [*pip, "--only-binary=:all:", *wanted, "--python-version=3.11", "-d", FOLDER, NUMPY], check=True
    )  # fmt: skip
    (wheel,) = FOLDER.glob("numpy-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(FOLDER / "site")
    (FOLDER / "ready").touch()
    return place


def binary() -> Path:
    """The compiled half for it."""
    include = root() / "usr/include"
    build = FOLDER / "cmake"
    command = [
        "cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={COMPILER}", "-DFRCNN_FAST_CUDA=OFF",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={FOLDER / 'module'}", f"-DPython_EXECUTABLE={sys.executable}",
        f"-DPython_INCLUDE_DIR={include / 'python3.11'}", f"-DCMAKE_CXX_FLAGS=-isystem {include}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", "-DPYBIND11_FINDPYTHON=ON",
        # pybind11 asks the interpreter of this machine for it.
        "-DPYTHON_MODULE_EXTENSION=.so",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", build, "--target", "_C"], check=True, stdout=subprocess.DEVNULL)
    return FOLDER / "module" / "_C.so"


# The calls.


class Recorder:
    """Stands in for the compiled half, and keeps what it is called with and what it makes of that."""

    def __init__(self) -> None:
        self.binary = extension()
        self.calls: list[Call] = []
        self.left_out: list[str] = []
        self.label = ""

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.binary, name)

        def call(*arguments: Any) -> Any:
            before = None
            try:
                before = [kept(argument) for argument in arguments]
            except TypeError:  # a type that NumPy has not
                self.left_out.append(self.label)
            if before is not None and sum(map(size, before)) > MOST_BYTES:
                before = None
                self.left_out.append(self.label)
            returned = function(*arguments)
            if before is not None:
                after = [None if is_workspace(argument) else kept(argument) for argument in arguments]
                self.calls.append(Call(self.label, name, before, after, returned))
            return returned

        return call


def kept(value: Any) -> Any:
    if isinstance(value, Tensor):
        return stored(value.detach().numpy())
    if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
        return [kept(item) for item in value]
    return list(value) if isinstance(value, tuple) else value


def size(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(size, value))
    return value["array"].nbytes if isinstance(value, dict) else 0


def is_workspace(value: Any) -> bool:
    """The only bytes that an op is given."""
    return isinstance(value, Tensor) and value.dtype == torch.uint8


def record(path: Path, names: Collection[str] = tuple(BY_NAME)) -> Recorder:
    """The calls that the conformance and the hand-worked cases of these ops make of the CPU kernels, into a file."""
    recorder = Recorder()
    (cpu,) = (backend for backend in BACKENDS if backend.name == "cpu")
    cases = [(op, case) for op in OPS if op.name in names for case in op.cases if not case.refused_by(cpu)]
    cases += [(BY_NAME[edge.op], Case(edge.name, edge.make)) for edge in EDGE_CASES if edge.op in names]
    original = _operator.extension
    _operator.extension = lambda: recorder  # type: ignore[assignment, return-value]
    try:
        for op, case in cases:
            recorder.label = f"{op.name}, {case.name}"
            run(op, cpu, case)
    finally:
        _operator.extension = original
    with open(path, "wb") as file:
        # Plain tuples: the other side's module has another name.
        pickle.dump([tuple(call) for call in recorder.calls], file, protocol=4)
    return recorder


def main() -> int:
    if lacks := missing():
        print(f"aarch64: skipped, since this machine has no {lacks}", file=sys.stderr)
        return int("aarch64" in os.environ.get("FRCNN_REQUIRE", "").split(","))
    module = binary()
    recorder = record(FOLDER / "calls.pickle")
    left_out = len(recorder.left_out)
    print(f"{len(recorder.calls)} calls recorded; {left_out} left out, of bfloat16 or too large", flush=True)
    replay = [ROOT / "tests/replay_calls.py", module, FOLDER / "calls.pickle"]
    place = {"PYTHONPATH": str(FOLDER / "site"), "QEMU_LD_PREFIX": str(root())}
    environment = {**os.environ, **place, "OMP_NUM_THREADS": "2"}  # no answer depends on their number
    command = [emulator(), root() / "usr/bin/python3.11", *replay]
    return subprocess.run(list(map(str, command)), env=environment, cwd=FOLDER, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
