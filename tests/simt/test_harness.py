"""The harness itself: right kernels give right results in every schedule, and each planted bug is reported well."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.simt.build import ROOT

HERE = Path(__file__).parent
OUT = ROOT / "build" / "simt_harness"
FLAGS = [
    "-std=c++20", "-O1", "-g", "-fno-omit-frame-pointer", "-ffp-contract=off", f"-I{HERE}",
    "-DFF_SIMT", "-DFF_TEST_BUILD", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
]  # fmt: skip
SOURCES = ["fiber.cpp", "scheduler.cpp", "runtime.cpp", "harness_main.cpp", "harness_kernels.cu"]


@pytest.fixture(scope="session")
def harness() -> Path:
    """The program of harness_main.cpp, built anew when a source has changed."""
    files = sorted([*HERE.glob("*.h"), *HERE.glob("*.cpp"), *HERE.glob("*.cu"), *(ROOT / "kernels/common").glob("*.*")])
    key = hashlib.sha256(b"".join(path.read_bytes() for path in files) + " ".join(FLAGS).encode()).hexdigest()[:16]
    program = OUT / f"harness-{key}"
    if not program.exists():
        OUT.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CXX", "c++")
        objects = [OUT / f"{name}.o" for name in SOURCES]
        for name, target in zip(SOURCES, objects, strict=True):
            language = ["-x", "c++"] if name.endswith(".cu") else []
            subprocess.check_call([compiler, *FLAGS, *language, "-c", str(HERE / name), "-o", str(target)])
        subprocess.check_call([compiler, *FLAGS, *map(str, objects), "-o", str(program)])
    return program


def run(harness: Path, *arguments: str, order: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SIMT_ORDER": str(order)}
    return subprocess.run(
        [str(harness), *arguments], env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def line_of(text: str) -> int:
    """The line of harness_kernels.cu that holds this text."""
    lines = (HERE / "harness_kernels.cu").read_text().splitlines()
    (found,) = [i for i, line in enumerate(lines, 1) if text in line]
    return found


def test_right_kernels_are_right_in_every_schedule(harness: Path) -> None:
    done = run(harness, "check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "75 launches, 0 wrong" in done.stdout


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize(
    ("bug", "report", "place"),
    [
        ("divergent_barrier", "divergent barrier", "  if (threadIdx.x < 16) {\n    __syncthreads();"),
        ("mask", "divergent warp", "__ballot_sync(mask, 1)"),
        ("not_in_mask", "is not in the mask", "__shfl_sync(0x0000ffffu, 1, 0)"),
        ("missing_lane", "lane 30 reads lane 31, which takes no part", "__shfl_down_sync(0x7fffffffu"),
        ("warp_in_barrier", "", "if (threadIdx.x < 8) __syncthreads()"),
        ("spin", "polls for ever", "while (*flag == -1)"),
        ("early_map", "before the first cluster_sync", "*cluster_map(&mine, 1 - cluster_rank());"),
        ("never_waits", "thread 5: ends without wait_for_launch_before()", '{"never_waits", '),
        ("too_much_shared", "52096 bytes of shared memory", "FF_SHARED(int, s, [12000])"),
    ],
)
def test_synchronisation_bug_is_reported(harness: Path, bug: str, report: str, place: str, order: int) -> None:
    """By an exception of the launch, after which the process can go on."""
    done = run(harness, "bug", bug, order=order)
    assert done.returncode == 3, done.stdout + done.stderr
    assert report in done.stderr
    line = line_of(place) if "\n" not in place else line_of(place.split("\n")[0]) + 1
    assert f"harness_kernels.cu:{line}" in done.stderr


def test_deadlock_names_all_who_wait(harness: Path) -> None:
    done = run(harness, "bug", "warp_in_barrier", order=1)
    assert "deadlock:" in done.stderr
    assert "24 waiting in __ballot_sync (mask ffffffff)" in done.stderr
    assert "8 waiting in __syncthreads" in done.stderr


@pytest.mark.parametrize(
    ("bug", "report", "place"),
    [
        ("global_bounds", "AddressSanitizer: heap-", "__global__ void global_bounds_kernel"),
        ("memset_bounds", "AddressSanitizer: heap-buffer-overflow", '{"memset_bounds", '),
        ("workspace_bounds", "AddressSanitizer: use-after-poison", "__global__ void global_bounds_kernel"),
        ("dynamic_bounds", "AddressSanitizer: heap-buffer-overflow", "s[threadIdx.x + 1] = 1;"),
        ("static_bounds", "index 64 out of bounds for type 'int [64]'", "s[int(threadIdx.x) + shift] = 1;"),
        ("misaligned", "misaligned address", "reinterpret_cast<const int4*>(in + 1)"),
        ("early_exit", "AddressSanitizer: heap-use-after-free", "out[0] = *other;"),
    ],
)
def test_wild_access_is_reported(harness: Path, bug: str, report: str, place: str) -> None:
    """By the sanitizers, which end the process."""
    done = run(harness, "bug", bug)
    assert done.returncode not in (0, 2, 3)
    assert report in done.stderr
    assert f"harness_kernels.cu:{line_of(place)}" in done.stderr


def test_missing_barrier_shows_in_another_schedule(harness: Path) -> None:
    right = [i // 2 for i in range(64)]
    results = [
        [int(v) for v in run(harness, "bug", "missing_barrier", order=order).stdout.split()] for order in range(3)
    ]
    assert results[0] == right
    assert results[1] != right
    assert results[2] != right


def test_shared_memory_starts_as_rubbish(harness: Path) -> None:
    done = run(harness, "bug", "uninitialised")
    assert done.stdout.split()[:2] == [str(0xCDCDCDCD - (1 << 32)), "7"]
