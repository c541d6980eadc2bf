"""What each kernel asks of a multiprocessor, and how much of it that fills. No GPU is needed.

python -m bench.resources --json bench/results/resources-DATE.json
python -m bench.resources --triton     also the Triton kernels behind the rows, compiled ahead of time (minutes)

Read from the binary with cuobjdump, for every form (data type, template) of every kernel and every architecture; a line
is a kernel function. Occupancy is what the architecture's limits allow: blocks of the largest size that the kernel may
be launched with. Where the size of shared memory is chosen at launch ("dynamic"), occupancy is stated without it, and
beside it how many bytes a block may ask for before fewer blocks fit.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import environment, floors, schema
from bench.case import Unavailable
from bench.registry import rows
from frcnn_fast._extension import extension

# What a multiprocessor has, the same on all three; shared memory by architecture: of a multiprocessor, and of a block.
WARPS, BLOCKS, REGISTERS, PARTITIONS = 64, 32, 65_536, 4
SHARED = {"sm_80": (164 << 10, 163 << 10), "sm_90": (228 << 10, 227 << 10), "sm_100": (228 << 10, 227 << 10)}
RESERVED = 1 << 10  # bytes of shared memory that the system keeps for itself in every block
WARP_REGISTERS, SHARED_UNIT = 256, 128  # registers of a warp and shared memory of a block are given in such portions

Key = tuple[str, str, str]  # architecture, source file, symbol


@dataclass(frozen=True)
class Form:
    """One compiled kernel: a function for certain types, on one architecture.

    source: the file it was compiled from. threads: the most a block may have; None where the binary does not say.
    registers, local: of a thread (local: arrays that are indexed at run time and what is spilled, in bytes). shared:
    static, bytes of a block, without what the system keeps. constant: bytes, arguments included; None where it is not
    known. dynamic: whether a launch chooses more shared memory.
    """

    kernel: str
    source: str
    architecture: str
    threads: int | None
    registers: int
    shared: int
    local: int
    constant: int | None
    dynamic: bool = False


def blocks_at_once(form: Form, dynamic: int = 0) -> int:
    """Blocks of the form that a multiprocessor can hold."""
    assert form.threads is not None
    warps = math.ceil(form.threads / 32)
    warp_registers = _portions(32 * form.registers, WARP_REGISTERS)
    by_registers = REGISTERS // PARTITIONS // warp_registers * PARTITIONS // warps
    by_shared = SHARED[form.architecture][0] // _portions(form.shared + dynamic + RESERVED, SHARED_UNIT)
    return min(BLOCKS, WARPS // warps, by_registers, by_shared)


def room_for_dynamic(form: Form) -> int:
    """Bytes of dynamic shared memory with which as many blocks fit as with none."""
    whole, most = SHARED[form.architecture]
    each = whole // max(blocks_at_once(form), 1) // SHARED_UNIT * SHARED_UNIT - RESERVED
    return min(each, most) - form.shared


def _portions(amount: int, unit: int) -> int:
    return math.ceil(amount / unit) * unit


def find_cuobjdump() -> Path:
    """Beside nvcc, on the PATH, or the one that Triton brings; RuntimeError where there is none."""
    candidates = [shutil.which("cuobjdump")]
    with contextlib.suppress(RuntimeError):
        candidates.insert(0, str(Path(floors.find_nvcc()).resolve().with_name("cuobjdump")))
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        candidates.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"))
    for candidate in candidates:
        if candidate and Path(candidate).exists():
            return Path(candidate)
    raise RuntimeError("bench.resources: there is no cuobjdump; it comes with the CUDA toolkit, and with Triton")


def of_binary(cuobjdump: Path, binary: Path) -> list[Form]:
    """All forms of all kernels in it. RuntimeError where it has no CUDA kernels."""
    return list(by_symbol(cuobjdump, binary).values())


def by_symbol(cuobjdump: Path, binary: Path) -> dict[Key, Form]:
    """The same, each with its architecture, source and mangled name."""
    usage = parse_usage(_lines(cuobjdump, "-res-usage", binary))
    if not usage:
        raise RuntimeError(f"bench.resources: {binary} has no CUDA kernels; build it where nvcc is found")
    threads = parse_threads(_lines(cuobjdump, "-elf", binary))
    dynamic = with_dynamic_memory()
    forms = {}
    for key, found in usage.items():
        architecture, source, symbol = key
        kernel = function_name(symbol)
        # From sm_90 on the binary counts what the system keeps into the static shared memory.
        shared = found["SHARED"] if architecture == "sm_80" else max(found["SHARED"] - RESERVED, 0)
        local = found["STACK"] + found["LOCAL"]
        forms[key] = Form(
            kernel,
            source,
            architecture,
            threads.get(key),
            found["REG"],
            shared,
            local,
            found["CONSTANT"],
            kernel in dynamic,
        )
    return forms


def _lines(cuobjdump: Path, what: str, binary: Path) -> Iterator[str]:
    with subprocess.Popen(
        [str(cuobjdump), what, str(binary)], text=True, errors="replace", stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        raise RuntimeError(f"bench.resources: {cuobjdump} {what} {binary}: exit {process.returncode}")


def parse_usage(lines: Iterable[str]) -> dict[Key, dict[str, int]]:
    """REG, STACK, LOCAL, SHARED, and the sum of the CONSTANT banks."""
    found = {}
    architecture = source = symbol = ""
    for line in lines:
        if line.startswith("arch = "):
            architecture = line.split()[-1]
        elif line.startswith("identifier = "):
            source = Path(line.split()[-1]).name
        elif line.startswith(" Function "):
            symbol = line.split()[-1].rstrip(":")
        elif line.startswith("  REG:"):
            values = {"CONSTANT": 0}
            for name, value in re.findall(r"(\w+)(?:\[\d+\])?:(\d+)", line):
                values[name] = values.get(name, 0) + int(value)
            found[architecture, source, symbol] = values
    return found


def parse_threads(lines: Iterable[str]) -> dict[Key, int]:
    """The most threads a block may have, where the binary states that."""
    found = {}
    architecture = source = symbol = attribute = ""
    for line in lines:
        if line.startswith("arch = "):
            architecture = line.split()[-1]
        elif line.startswith("identifier = "):
            source = Path(line.split()[-1]).name
        elif line.startswith("."):  # a section
            symbol = line.strip().removeprefix(".nv.info.") if line.startswith(".nv.info.") else ""
        elif symbol and "Attribute:" in line:
            attribute = line.split()[-1]
        elif symbol and "Value:" in line and attribute in ("EIATTR_MAX_THREADS", "EIATTR_REQNTID"):
            found[architecture, source, symbol] = math.prod(int(side, 16) for side in line.split()[1:])
    return found


def function_name(symbol: str) -> str:
    """The last of the names in a mangled one: _ZN10frcnn_fast13encode_kernelIfEEvPf -> encode_kernel."""
    name, rest = symbol, symbol.removeprefix("_ZN").removeprefix("_Z")
    while rest != symbol and (length := re.match(r"\d+", rest)):
        start = length.end()
        stop = start + int(length[0])
        name, rest = rest[start:stop], rest[stop:]
    return name


def with_dynamic_memory() -> set[str]:
    """Kernels whose source asks for dynamic shared memory; the binary does not tell."""
    found = set()
    for source in (environment.ROOT / "kernels").glob("*/*.cu*"):
        text = source.read_text()
        for use in re.finditer(r"FF_DYN_SHARED\((?!T, name)", text):
            names = re.findall(r"(\w+_kernel)\(", text[: use.start()])
            found |= set(names[-1:])
    return found


def of_triton() -> list[Form]:
    """The Triton kernels behind the headline rows and a row of every other op, as a launch on these workloads would
    compile them.
    """
    from bench.triton_ahead import TARGETS, compiling, resources

    chosen = rows(backend="cpu", headline=True)
    others = {row.op: row for row in rows(backend="cpu") if row.op not in {r.op for r in chosen}}
    calls = []
    for row in [*chosen, *others.values()]:
        with contextlib.suppress(Unavailable):
            calls.append(row.make("cpu").ours)
    forms = []
    for architecture in SHARED:
        with compiling(TARGETS[architecture]) as found:
            for call in calls:
                call()
        for kernel in found.kernels:
            used = resources(kernel)
            threads = 32 * kernel.metadata.num_warps
            source = Path(kernel.src.fn.fn.__code__.co_filename).name
            forms.append(
                Form(kernel.name, source, architecture, threads, used.registers, used.shared, used.spills, None)
            )
    return forms


def entries(forms: Iterable[Form]) -> list[dict[str, Any]]:
    """For the report: a kernel function on an architecture, with the range over its forms."""
    groups: dict[tuple[int, str, str], list[Form]] = {}
    for form in forms:
        groups.setdefault((list(SHARED).index(form.architecture), form.source, form.kernel), []).append(form)
    return [_entry(groups[key]) for key in sorted(groups)]


def _entry(forms: list[Form]) -> dict[str, Any]:
    first = forms[0]
    blocks = [blocks_at_once(form) if form.threads else None for form in forms]
    warps = [math.ceil(form.threads / 32) * n if form.threads and n else None for form, n in zip(forms, blocks)]
    return {
        "kernel": first.kernel,
        "source": first.source,
        "architecture": first.architecture,
        "forms": len(forms),
        "threads": _span(form.threads for form in forms),
        "registers": _span(form.registers for form in forms),
        "shared": _span(form.shared for form in forms),
        "local": sum(form.local for form in forms),
        "constant": _span(form.constant for form in forms),
        "blocks": _span(blocks),
        "warps": _span(warps),
        "occupancy": _span(n and 100 * n / WARPS for n in warps),
        "room_for_dynamic": min(map(room_for_dynamic, forms)) if first.dynamic else None,
    }


def _span(values: Iterable[float | None]) -> list[float] | None:
    """Least and most; None where one is not known."""
    known = list(values)
    numbers = [value for value in known if value is not None]
    return [min(numbers), max(numbers)] if len(numbers) == len(known) else None


def table(found: Sequence[dict[str, Any]]) -> list[str]:
    """Lines for the terminal: of each kernel function the worst of its forms."""
    lines = []
    for architecture in dict.fromkeys(entry["architecture"] for entry in found):
        title = f"{architecture:52s} forms threads registers  shared  blocks   warps occupancy   local"
        lines += ["", title]
        for e in (entry for entry in found if entry["architecture"] == architecture):
            worst = (("threads", 1), ("registers", 1), ("shared", 1), ("blocks", 0), ("warps", 0), ("occupancy", 0))
            text = "{:>8}{:>10}{:>8}{:>8}{:>8}{:>10}".format(*(_end(e[what], end) for what, end in worst))
            room = e["room_for_dynamic"]
            note = f"  with at most {room:,} bytes of dynamic shared memory" if room is not None else ""
            lines.append(f"{e['source']:24s}{e['kernel']:28s}{e['forms']:6d}{text}{e['local']:8d}{note}")
    return lines[1:]


def _end(span: list[float] | None, which: int) -> str:
    return f"{span[which]:g}" if span else "–"


def summary(path: str, report: dict[str, Any]) -> list[str]:
    """For the README: a line for each architecture."""
    e = report["environment"]
    lines = [
        "| kernels | functions | forms | local memory, bytes | most registers a thread | lowest occupancy |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in report["kernels"]:
        language = "Triton" if _is_triton(entry) else "CUDA"
        groups.setdefault((language, entry["architecture"]), []).append(entry)
    for name, mine in sorted(groups.items(), key=lambda pair: pair[0][0]):
        forms, local = (sum(entry[what] for entry in mine) for what in ("forms", "local"))
        hungry = max(mine, key=lambda entry: entry["registers"][1])
        low = min((entry for entry in mine if entry["occupancy"]), key=lambda entry: entry["occupancy"][0])
        most = f"{hungry['registers'][1]} (`{hungry['kernel']}`)"
        cells = [", ".join(name), len(mine), forms, local, most, f"{low['occupancy'][0]:g} % (`{low['kernel']}`)"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    changed = " with changes" if e["changed"] else ""
    tools = f"nvcc {e['nvcc'] or 'unknown'}" + (f", Triton {e['triton']}" if e.get("triton") else "")
    return [
        f"Compiled by {tools}; commit {e['commit'][:10]}{changed} (`{path}`).",
        "",
        *lines,
        "",
        "Local memory: of a thread, all forms together; arrays indexed at run time, and spilled registers. Occupancy: "
        "the share of warps that registers, threads and static shared memory allow.",
    ]


def _is_triton(entry: dict[str, Any]) -> bool:
    return entry["source"].endswith(".py")


def new_report(found: list[dict[str, Any]], cuobjdump: Path) -> dict[str, Any]:
    """What is written with --json."""
    try:
        nvcc = floors.find_nvcc()
    except RuntimeError:
        nvcc = ""
    tools: dict[str, str | None] = {"nvcc": release(nvcc) if nvcc else None, "cuobjdump": release(str(cuobjdump))}
    if any(_is_triton(entry) for entry in found):
        tools["triton"] = importlib.metadata.version("triton")
    return {
        "schema": schema.VERSION,
        "benchmark": "resources",
        "environment": {**environment.describe("cpu"), **tools},
        "kernels": found,
    }


def release(tool: str) -> str:
    said = subprocess.run([tool, "--version"], text=True, capture_output=True).stdout
    version = re.search(r"\bV([\d.]+)", said)
    return version[1] if version else "unknown"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 2 where there is no cuobjdump or the binary has no CUDA half."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.resources", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--binary", type=Path, help="instead of the installed one")
    parser.add_argument("--triton", action="store_true", help="the Triton kernels too")
    parser.add_argument("--json", type=Path, help="write the report here")
    args = parser.parse_args(argv)
    try:
        cuobjdump = find_cuobjdump()
        forms = of_binary(cuobjdump, args.binary or Path(str(extension().__file__)))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    if args.triton:
        forms += of_triton()
    strange = sorted({form.architecture for form in forms} - SHARED.keys())
    if strange:
        print(f"bench.resources: left out, for their limits are not known here: {', '.join(strange)}", file=sys.stderr)
    found = entries(form for form in forms if form.architecture in SHARED)
    print(*table(found), sep="\n")
    if args.json:
        schema.save(new_report(found, cuobjdump), args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
