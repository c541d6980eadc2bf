"""Machine instructions of every kernel, and whether one has grown. No GPU is needed, and no compiler.

python -m bench.cost.code_size            what has changed against the committed table
python -m bench.cost.code_size --renew    writes the table anew, from the binary at hand

Counted in the binary: the size of a kernel's code over that of an instruction (with the few that pad its end). The
table has a line for each kernel function and architecture: its forms, their instructions all together, and the longest.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("code_size.json")
INSTRUCTION = 16  # bytes, from sm_70 on
MOST_GROWTH = 0.05

Sizes = dict[str, dict[str, dict[str, int]]]  # architecture -> source:kernel -> forms, instructions, longest


def sections(elf: bytes) -> Iterator[tuple[str, int]]:
    """(name, bytes) of the sections of a 64-bit ELF file."""
    start = struct.unpack_from("<Q", elf, 0x28)[0]
    entry, count, names = struct.unpack_from("<3H", elf, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", elf, start + entry * i) for i in range(count)]
    text = heads[names][4]
    for head in heads:
        name = elf[text + head[0] : elf.index(b"\0", text + head[0])]
        yield name.decode(), head[5]


def of_binary(cuobjdump: Path, binary: Path) -> Sizes:
    """Of all kernels in it, empty where it has no CUDA half."""
    from bench.resources import function_name

    found: Sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [str(cuobjdump), "-xelf", "all", str(binary.resolve())]
        subprocess.run(command, cwd=folder, check=False, capture_output=True)
        for cubin in sorted(Path(folder).glob("*.cubin")):
            source, *_, architecture, _ = cubin.name.split(".")
            for name, size in sections(cubin.read_bytes()):
                if name.startswith(".text."):
                    kernel = f"{source}.cu:{function_name(name.removeprefix('.text.'))}"
                    nothing = dict.fromkeys(("forms", "instructions", "longest"), 0)
                    entry = found.setdefault(architecture, {}).setdefault(kernel, nothing)
                    entry["forms"] += 1
                    entry["instructions"] += size // INSTRUCTION
                    entry["longest"] = max(entry["longest"], size // INSTRUCTION)
    return found


def differences(table: Sizes, found: Sizes) -> list[str]:
    """What the table does not know, what is gone, and what has grown or shrunk by more than 5 %."""
    lines = []
    for architecture in sorted(table.keys() | found.keys()):
        old, new = table.get(architecture, {}), found.get(architecture, {})
        for kernel in sorted(old.keys() | new.keys()):
            where = f"{kernel} ({architecture})"
            if kernel not in new:
                lines.append(f"{where}: is gone")
            elif kernel not in old:
                lines.append(f"{where}: is new, {new[kernel]['instructions']} instructions")
            elif old[kernel]["forms"] != new[kernel]["forms"]:
                lines.append(f"{where}: {old[kernel]['forms']} forms before, {new[kernel]['forms']} now")
            else:
                for what in ("instructions", "longest"):
                    before, now = old[kernel][what], new[kernel][what]
                    if abs(now - before) > MOST_GROWTH * before:
                        lines.append(f"{where}: {what} {before} before, {now} now ({now / before - 1:+.1%})")
    return lines


def read_table() -> dict[str, Any]:
    """{"nvcc": release, "kernels": Sizes}."""
    table: dict[str, Any] = json.loads(TABLE.read_text())
    return table


def write_table(table: dict[str, Any]) -> None:
    """A line a kernel, beside the old table and then in its place."""
    parts = []
    for architecture, kernels in sorted(table["kernels"].items()):
        lines = (f"    {json.dumps(kernel)}: {json.dumps(entry)}" for kernel, entry in sorted(kernels.items()))
        parts.append(f"  {json.dumps(architecture)}: {{\n" + ",\n".join(lines) + "\n  }")
    text = f'{{"nvcc": {json.dumps(table["nvcc"])}, "kernels": {{\n' + ",\n".join(parts) + "\n}}\n"
    written = TABLE.with_suffix(".new")
    written.write_text(text)
    written.replace(TABLE)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 where something differs, 2 where the sizes cannot be read."""
    from bench import floors, resources
    from frcnn_fast._extension import extension

    parser = argparse.ArgumentParser(prog="python -m bench.cost.code_size", description=__doc__.split("\n")[0])
    parser.add_argument("--renew", action="store_true", help=f"write {TABLE.name}")
    parser.add_argument("--binary", type=Path, help="instead of the installed one")
    args = parser.parse_args(argv)
    try:
        found = of_binary(resources.find_cuobjdump(), args.binary or Path(str(extension().__file__)))
        nvcc = resources.release(floors.find_nvcc())
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    if not found:
        print("bench.cost.code_size: the binary has no CUDA kernels; build it where nvcc is found", file=sys.stderr)
        return 2
    if args.renew:
        write_table({"nvcc": nvcc, "kernels": found})
        return 0
    lines = differences(read_table()["kernels"], found)
    print(*(lines or ["no kernel has grown or shrunk by more than 5 %"]), sep="\n")
    return bool(lines)


if __name__ == "__main__":
    raise SystemExit(main())
