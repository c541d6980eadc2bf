"""The binary and the package: what they need, what they carry, and how they behave in other processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from frcnn_fast import ops
from frcnn_fast._extension import extension
from tests.samples import boxes

ROOT = Path(__file__).resolve().parents[1]
BUILT = sorted(ROOT.glob("build/cpython-*/CMakeFiles"))


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, cwd=ROOT, env={**os.environ, **environment}
    )


@pytest.mark.skipif(not shutil.which("ldd"), reason="needs ldd")
def test_the_binary_links_no_torch_and_no_shared_cuda() -> None:
    told = subprocess.run(["ldd", extension().__file__], text=True, capture_output=True, check=True).stdout
    needed = " ".join(line.split(" (0x")[0] for line in told.splitlines())  # an address may spell c10
    assert "gomp" in needed
    for name in ("torch", "c10", "cudart", "libcuda", "libpython"):
        assert name not in needed


@pytest.mark.skipif(not BUILT or not shutil.which("nm"), reason="needs the build folder of this checkout, and nm")
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_code_for_wider_vectors_stays_in_its_namespace(isa: str) -> None:
    """A weak symbol outside could be the copy that the linker keeps for every CPU."""
    objects = [str(o) for folder in BUILT for o in (folder / f"simd_{isa}.dir").rglob("*.o")]
    if not objects:
        pytest.skip("not an x86-64 build")
    listing = subprocess.run(["nm", "-C", *objects], text=True, capture_output=True, check=True).stdout
    shared = [line for line in listing.splitlines() if " W " in line or " V " in line or " u " in line]
    # In a family's namespace, or in the one of all. DW.ref.__gxx_personality_v0 is a pointer, not code.
    inside = re.compile(rf"\bfrcnn_fast::(\w+::)?{isa}::")
    assert [line for line in shared if not inside.search(line) and "DW.ref." not in line] == []


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_answer(isa: str) -> None:
    code = (
        "import hashlib, torch; from tests.samples import samples\n"
        "digest = hashlib.sha256()\n"
        "for name, sample in sorted(samples().items()):\n"
        "    result = sample()\n"
        "    for r in result if isinstance(result, tuple) else (result,):\n"
        "        digest.update(name.encode() + r.contiguous().numpy().tobytes())\n"
        "print(digest.hexdigest())"
    )
    chosen, natural = python(code, FRCNN_FAST_ISA=isa), python(code)
    assert chosen.returncode == 0, chosen.stderr
    assert chosen.stdout == natural.stdout


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    g = torch.Generator().manual_seed(5)
    box, scores = boxes(g, 4, 700), torch.randn(4, 700, generator=g)
    image = torch.randn(2, 32, 24, 24, generator=g, requires_grad=True)
    rois = torch.cat([torch.arange(40).remainder(2)[:, None].float(), boxes(g, 40)], 1)

    def run() -> list[torch.Tensor]:
        pooled = ops.roi_align(image, rois, 5, spatial_scale=0.25, sampling_ratio=2)
        (gradient,) = torch.autograd.grad(pooled.square().sum(), image)
        return [*ops.nms_padded(box, scores, 0.5, 100), *ops.top_n(scores, 300), pooled.detach(), gradient]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(3)
        three = run()
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(one, three, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells when a process began")
def test_a_process_forked_before_the_import_ends() -> None:
    """torch's threads, which work in the parent, are not there; torch's own parallel ops hang."""
    code = (
        "import os, sys, time\n"
        "import torch\n"
        "torch.set_num_threads(2)\n"
        "boxes, scores = torch.zeros(4, 20000, 4), torch.zeros(4, 20000)\n"
        "time.sleep(0.1)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    from frcnn_fast import ops, _C\n"
        "    ops.nms_padded(boxes, scores, 0.5, 10)\n"
        "    ops.top_n(scores, 100)\n"
        "    os._exit(0 if _C.build_info()['threads'] == 1 else 3)\n"
        "from frcnn_fast import _C\n"
        "_, status = os.waitpid(child, 0)\n"
        "sys.exit(status or (0 if _C.build_info()['threads'] == 2 else 4))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_can_use_the_ops() -> None:
    """As DataLoader workers do; OpenMP's threads do not survive the fork."""
    code = (
        "import os, torch; from frcnn_fast import ops; torch.set_num_threads(2)\n"
        "s = torch.randn(8, 5000); wanted = ops.top_n(s, 50)[1]\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if torch.equal(ops.top_n(s, 50)[1], wanted) else 1)\n"
        "print(os.waitpid(child, 0)[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, cwd=ROOT, timeout=600)
    assert done.stdout.strip() == "0", done.stderr


def configure(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """CMake with the CUDA half asked for, where no nvcc is on the PATH."""
    tools = folder / "bin"
    tools.mkdir()
    for name in ("cmake", "ninja", "c++", "cc", "ld", "as", "ar"):
        found = shutil.which(name)
        if found:
            (tools / name).symlink_to(found)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("CMAKE_")}
    hidden = {"PATH": str(tools), "CUDACXX": "", "CUDA_HOME": "", "CUDA_PATH": ""}
    build = ["-S", str(ROOT), "-B", str(folder / "build"), "-G", "Ninja"]
    command = ["cmake", *build, "-DFRCNN_FAST_CUDA=ON", "-DFRCNN_FAST_PYTHON=OFF", *options]
    return subprocess.run(command, text=True, capture_output=True, env={**plain, **hidden, **environment})


@pytest.mark.skipif(not shutil.which("cmake"), reason="needs cmake")
def test_asking_for_cuda_without_nvcc_is_an_error(tmp_path: Path) -> None:
    done = configure(tmp_path, "-DCMAKE_CUDA_COMPILER=NOTFOUND")
    assert done.returncode != 0
    assert "no nvcc was found" in done.stderr


@pytest.mark.skipif(not shutil.which("cmake"), reason="needs cmake")
@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_nvcc_is_looked_for_where_the_toolkit_is_said_to_be(variable: str, tmp_path: Path) -> None:
    nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\necho asked > {tmp_path}/asked\nexit 1\n")
    nvcc.chmod(0o755)
    done = configure(tmp_path, **{variable: str(nvcc.parents[1])})
    assert done.returncode != 0
    assert (tmp_path / "asked").exists(), done.stderr
