"""`make gpu-test`: the checks that need a GPU, in less than ten minutes with the build; `make gpu-smoke`: the first of
them, and every tool once, in three.

The build for the GPU that is here; the conformance suite on CUDA and on Triton, a process for each family of ops; graph
capture under the synchronisation debug mode; CuPy's arrays; sizes that only a GPU can hold; compute-sanitizer over the
small cases. What a test does to its process, a crash or a CUDA error or no end, costs that test alone: see
`bench.steps`, which also says what is in gpu-test.json and gpu-test.log.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bench import tools
from bench.steps import PYTHON, Runner, Step, first_steps, prepare

SECONDS = {"gpu-test": 540.0, "gpu-smoke": 170.0}
SUITE = "tests/conformance/test_conformance.py"
FAMILIES = tuple(
    path.stem.removeprefix("cases_") for path in sorted((tools.ROOT / "tests" / "conformance").glob("cases_*.py"))
)
PYTEST = (*PYTHON, "pytest", "--tb=short", "-p", "no:cacheprovider", "-p", "tests.journaled")
# Many processes share the cores, and what pytest finds installed has no part in this.
SHARED = {"FRCNN_REQUIRE": "cuda,triton", "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
EACH, COMPILING, SLOW = 30.0, 90.0, 120.0  # the most seconds for a test: ordinarily, where Triton compiles, a large one
PARTS = 4  # of the cases under a sanitizer, a process each
ALWAYS = ("--error-exitcode", "9", "--target-processes", "all", "--print-limit", "20")
OURS = ("--kernel-regex", "kns=frcnn_fast")  # the kernels of this library, by a part of their names in the binary
TOOLS = {
    "memcheck": OURS,
    "racecheck": OURS,
    "synccheck": OURS,
    "initcheck": (),  # holds reads against all writes there were, torch's among them
}
# The sanitizers' processes allocate what they need and no more, so that a tensor ends where its memory ends; and
# nothing fills it beforehand, so that what nobody wrote is seen.
BARE_MEMORY = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "FRCNN_POISON": "0"}
NOT_BUILT = "the CUDA half was not built"


def checks(name: str, arguments: Sequence[str], expected: float, limit: float, each: float = EACH) -> Step:
    """A step of pytest. each: seconds, the most for a test."""
    return Step(name, [*PYTEST, f"--test-seconds={each:g}", *arguments], expected, limit, SHARED, journaled=True)


def conformance(backend: str, expected: float, each: float) -> Iterator[Step]:
    """The suite, a process a family."""
    for family in FAMILIES:
        choice = [SUITE, f"--backend={backend}", f"--family={family}"]
        yield checks(f"{family} {backend}", choice, expected, 240, each)


def graphs(backend: str) -> Step:
    """Every op, and a detection, in a graph on that backend."""
    return checks(f"graphs {backend}", ["tests/test_graphs.py", f"--backend={backend}"], 50, 200, COMPILING)


def sanitized(tool: str, choice: Sequence[str], expected: float) -> Step:
    """Small cases under one of the tools."""
    program = tools.find("compute-sanitizer")
    # The tool does not know the test: its name is printed before.
    inner = checks(f"{tool} {choice[-1]}", [SUITE, "-v", "--backend=cuda", "--small", *choice], expected, 240, SLOW)
    options = ["--tool", tool, *ALWAYS, *TOOLS[tool]]
    return replace(
        inner,
        command=[program or "compute-sanitizer", *options, *inner.command],
        environment={**inner.environment, **BARE_MEMORY},
        unless="" if program else "compute-sanitizer is not installed",
    )


def machine(device: str, scratch: Path) -> Step:
    """What the report is about."""
    path = scratch / "machine.json"
    command = [*PYTHON, "bench.environment", "--backend", device, "--json", str(path)]
    return Step("machine", command, 12, 90, writes=path)


def full(device: str) -> list[Step]:
    """All that is checked, the most important first."""
    if device == "cpu":
        return list(conformance("cpu", 20, 2 * SLOW))
    return [
        *conformance("cuda", 25, EACH),
        *map(graphs, ("cuda", "triton")),
        checks("graphs of training", ["tests/test_graphs.py", "-k", "iterations"], 40, 120, COMPILING),
        *(sanitized(tool, ["--part", f"{part}/{PARTS}"], 100) for tool in TOOLS for part in range(1, PARTS + 1)),
        *conformance("triton", 70, COMPILING),
        checks("arrays", ["tests/test_arrays.py"], 30, 120),
        checks("properties", ["tests/test_properties.py", "-k", "cuda"], 60, 180, COMPILING),
        *(checks(f"large {b}", ["tests/test_large.py", f"--backend={b}"], 60, 180, SLOW) for b in ("cuda", "triton")),
    ]


def smoke(device: str) -> list[Step]:
    """The hand-worked table, graphs, one row, and one call of every tool."""
    op, workload = "top_n", "6000 of 20646"
    row = [*PYTHON, "bench", "--backend", device, "--op", op, "--workload", workload, "--seconds", "0.2"]
    backends = ("cpu",) if device == "cpu" else ("cuda", "triton")
    common = [
        *(checks(f"table {b}", [SUITE, f"--backend={b}", "-k", "table"], 35, 120, COMPILING) for b in backends),
        Step("a row", row, 25, 90),
    ]
    if device == "cpu":
        return common
    nsight = [*PYTHON, "bench.nsight", "--row", f"{op}: {workload}", "--seconds", "60"]
    return [
        *common,
        graphs("cuda"),
        *(sanitized(tool, ["--family", op], 45) for tool in TOOLS),
        Step("floors", [*PYTHON, "bench.floors"], 30, 90),
        Step("nsight", nsight, 40, 90),
        checks("large cuda", ["tests/test_large.py", "--backend=cuda", "-k", "elements"], 25, 90, SLOW),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 only when every step is green, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the report and the log")
    parser.add_argument("--smoke", action="store_true", help="the first of it, in three minutes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to rehearse without a GPU")
    parser.add_argument("--only", metavar="TEXT", help="steps whose names contain this, of what is built")
    args = parser.parse_args(argv)
    name = "gpu-smoke" if args.smoke else "gpu-test"
    runner = Runner(name, args.out, SECONDS[name])
    steps = [machine(args.device, runner.folder), *(smoke if args.smoke else full)(args.device)]
    at_once = max(2, (os.cpu_count() or 2) * 3 // 4)
    if args.only:
        steps = [step for step in steps if args.only in step.name]
        runner.plan((steps, at_once))
    else:
        runner.plan((first_steps(args.device), 1), (steps, at_once))
        if not prepare(runner, args.device):
            steps = [step if goes_without(step) else replace(step, unless=NOT_BUILT) for step in steps]
    runner.run(steps, at_once)
    return runner.finish()


def goes_without(step: Step) -> bool:
    """Whether a step can do without the CUDA half."""
    return "triton" in step.name or step.name in ("machine", "floors")


if __name__ == "__main__":
    raise SystemExit(main())
