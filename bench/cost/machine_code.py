"""A kernel's machine code as basic blocks, and how long one warp takes for each. No GPU is needed.

The disassembler's listing has the line of every instruction, and in the encoding what the compiler planned: how many
cycles the next instruction waits (stall), which of six scoreboards an instruction of unknown length sets, and which it
waits for. So a warp's way through a block is simulated, with the lengths of a table (machines.py) for what the compiler
does not know.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from bench import floors, resources

# Bits of the upper 64 of an instruction's 128.
STALL, SETS, FREES, WAITS = (41, 4), (46, 3), (49, 3), (52, 6)
NO_SCOREBOARD = 7
OPERANDS_READ = 15  # cycles until a load or store has read its registers

BRANCHES = ("BRA", "EXIT", "RET", "BRX", "JMP")

# What the harness counts as so many accesses of memory, by the start of an opcode. Which memory it is, the machine code
# does not always say. LDGSTS reads and writes: it is in the list twice, as what it starts with and by itself.
ACCESSES = {"LDG": 1, "LDGSTS": 1, "LDS": 1, "LD.": 1, "STG": 1, "STS": 1, "ST.": 1, "ATOM": 2, "RED.": 2, "REDG": 2}


@dataclass(frozen=True)
class Instruction:
    """place: "folder/file:number" under kernels/, and after it the places that it was inlined at; "" for what has none
    there. guarded: it runs under a predicate, so
    it is issued also where it does nothing. target: of a branch, a label.
    """

    op: str
    place: str
    guarded: bool
    target: str
    stall: int
    sets: int
    frees: int
    waits: int


@dataclass
class Block:
    """next: blocks that may follow, by their number. ends: whether the warp may end here."""

    instructions: list[Instruction] = field(default_factory=list)
    next: list[int] = field(default_factory=list)
    ends: bool = False

    def places(self) -> Counter[str]:
        """Instructions of each place."""
        return Counter(i.place for i in self.instructions if i.place)

    def accesses(self) -> Counter[tuple[str, bool]]:
        """(line, guarded) of the accesses of memory."""
        found: Counter[tuple[str, bool]] = Counter()
        for i in self.instructions:
            for start, n in ACCESSES.items():
                if i.place and i.op.startswith(start):
                    found[line_of(i.place), i.guarded] += n
        return found


def line_of(place: str) -> str:
    """The line itself."""
    return place.split(" ")[0]


def find_nvdisasm() -> Path:
    """Beside nvcc or cuobjdump, or on the PATH; RuntimeError where there is none."""
    beside = [resources.find_cuobjdump().with_name("nvdisasm")]
    if on_path := shutil.which("nvdisasm"):
        beside.append(Path(on_path))
    for candidate in beside:
        if candidate.exists():
            return candidate
    raise RuntimeError("bench.cost: there is no nvdisasm; it comes with the CUDA toolkit, and with Triton")


def of_binary(binary: Path, architecture: str, source: str) -> dict[str, list[Block]]:
    """The blocks of every kernel, by its mangled name, that was compiled from this .cu file."""
    name = f"{Path(source).stem}.{architecture}.cubin"
    with tempfile.TemporaryDirectory() as folder:
        command = [str(resources.find_cuobjdump()), "-xelf", name, str(binary.resolve())]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return of_cubin(Path(folder) / name)


def of_source(source: Path, architecture: str = "sm_90") -> dict[str, list[Block]]:
    """The same of a source that is compiled here, as the build does it."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        flags = ["-std=c++17", "-O3", "--fmad=false", "-lineinfo", f"-arch={architecture}", "-cubin"]
        subprocess.run([floors.find_nvcc(), *flags, "-o", str(cubin), str(source)], check=True)
        return of_cubin(cubin, root=f"{source.parent}/")


def of_cubin(cubin: Path, root: str = "/kernels/") -> dict[str, list[Block]]:
    """Lines are named by their path after root."""
    command = [str(find_nvdisasm()), "-gi", "-hex", "-c", str(cubin)]
    text = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    return parse(text.splitlines(), root)


def parse(listing: Iterable[str], root: str = "/kernels/") -> dict[str, list[Block]]:
    """From the disassembler's text."""
    kernels: dict[str, list[Block]] = {}
    name, chain, chain_open = "", list[str](), False
    rows: list[tuple[str, str, str, int]] = []  # (label or "", text, place, upper half)
    for text in listing:
        if section := re.match(r"\s*\.section\s+\.text\.([^,\s]+)", text):
            if rows:
                kernels[name] = _blocks(rows)
            name, chain, rows = section[1].strip('"'), [], []
        elif text.lstrip().startswith(".section") and rows:
            kernels[name] = _blocks(rows)
            name, rows = "", []
        elif place := re.search(r'//## File "([^"]+)", line (\d+)', text):
            # The innermost first, then the lines that it was inlined at.
            if not chain_open:
                chain, chain_open = [], True
            # These files' device code is in nvcc's half of them, which no other compiler sees.
            if root in place[1] and not place[1].endswith(("/launch.cuh", "/async_copy.cuh")):
                chain.append(f"{os.path.normpath(place[1].split(root)[-1])}:{place[2]}")
        elif name and (label := re.match(r"(\.L_\w+|\$?[\w.$@]+):\s*$", text.strip())):
            rows.append((label[1], "", "", 0))
        elif name and (code := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);?\s*/\* (0x[0-9a-f]{16}) \*/", text)):
            rows.append(("", code[1].strip(), " ".join(chain), 0))
            chain_open = False
        elif rows and (upper := re.match(r"\s*/\* (0x[0-9a-f]{16}) \*/\s*$", text)):
            rows[-1] = (*rows[-1][:3], int(upper[1], 16))
    if rows:
        kernels[name] = _blocks(rows)
    return kernels


def _instruction(text: str, place: str, upper: int) -> Instruction:
    bits = [upper >> start & (1 << width) - 1 for start, width in (STALL, SETS, FREES, WAITS)]
    guard, rest = "", text
    if found := re.match(r"@(!?U?P\w+)\s+(.*)", text):
        guard, rest = found[1], found[2]
    op = rest.split()[0].rstrip(";") if rest.split() else ""
    target = re.search(r"`\((\.L_\w+)\)", rest)
    if guard in ("!PT", "!UPT"):
        op, guard = "NOP", ""
    if op.startswith("BRA") and re.match(r"BRA\S*\s+!?U?P\d", rest):
        guard = "P"  # the condition may also be an operand
    return Instruction(op, place, bool(guard), target[1] if target else "", *bits)


def _blocks(rows: list[tuple[str, str, str, int]]) -> list[Block]:
    """Cut at labels and after branches."""
    blocks: list[Block] = [Block()]
    at_label: dict[str, int] = {}
    for label, text, place, upper in rows:
        last = blocks[-1].instructions[-1] if blocks[-1].instructions else None
        if last and (label or last.op.startswith(BRANCHES)):
            blocks.append(Block())
        if label:
            at_label[label] = len(blocks) - 1
        else:
            blocks[-1].instructions.append(_instruction(text, place, upper))
    if not blocks[-1].instructions:
        blocks.pop()
    for number, block in enumerate(blocks):
        end = block.instructions[-1]
        falls = True
        if end.op.startswith("EXIT"):
            block.ends = True
            falls = end.guarded
        elif end.op.startswith(("BRX", "JMP", "RET")):
            block.ends, falls = True, False
        # .DIV: for lanes that a collective waits for and that went another way; not followed.
        elif end.op.startswith("BRA") and ".DIV" not in end.op and end.target in at_label:
            block.next.append(at_label[end.target])
            falls = end.guarded
        if falls and number + 1 < len(blocks):
            block.next.append(number + 1)
    return blocks


def cycles(block: Block, lengths: dict[str, float], waiting: dict[int, float]) -> tuple[float, dict[int, float]]:
    """How long one warp alone takes for a block, and what its scoreboards still wait for when it is through.

    lengths: cycles by the start of an opcode, the longest start that fits counts. waiting: cycles by scoreboard at the
    block's start.
    """
    now, ready = 0.0, dict(waiting)
    for i in block.instructions:
        for board in range(6):
            if i.waits >> board & 1:
                now = max(now, ready.pop(board, 0.0))
        length = length_of(i.op, lengths)
        if i.sets != NO_SCOREBOARD:
            ready[i.sets] = max(ready.get(i.sets, 0.0), now + length)
        elif i.op.startswith(BLOCKING):
            now += length
        if i.frees != NO_SCOREBOARD:
            ready[i.frees] = max(ready.get(i.frees, 0.0), now + OPERANDS_READ)
        now += max(i.stall, 1)
    return now, {board: at - now for board, at in ready.items() if at > now}


# They hold the warp without a scoreboard.
BLOCKING = ("BAR", "UCGABAR_WAIT", "MEMBAR", "ERRBAR", "ACQBULK", "NANOSLEEP", "WARPSYNC")


def length_of(op: str, lengths: dict[str, float]) -> float:
    """0 for what the table does not have."""
    fitting = [start for start in lengths if op.startswith(start)]
    return lengths[max(fitting, key=len)] if fitting else 0.0
