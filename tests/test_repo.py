"""What the repository promises about itself: an op is in every place where it has to be, mutants have one home each,
and the guides name what exists.

A new op starts here: give it a name in `frcnn_fast.ops.__all__`, run this file, and it lists what is still missing.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bench.registry import rows
from frcnn_fast import ops, reference
from tests import samples, test_compile
from tests.conformance.edge_cases import EDGE_CASES
from tests.conformance.suite import BY_NAME

ROOT = Path(__file__).resolve().parents[1]

# What is called through another op's launcher. Its own binding and launchers, where there are some, count as well.
LAUNCHED_BY = {"nms": "nms_padded", "batched_nms": "nms_padded", "multiscale_roi_align": "roi_align"}
LAUNCHED_BY |= {"multiscale_roi_align_backward": "roi_align_backward"}
LAUNCHED_BY |= {"prroi_pool": "roi_align", "prroi_pool_backward": "roi_align_backward"}
LAUNCHED_BY |= {"prroi_pool_rois_backward": "roi_align_rois_backward"}
LAUNCHED_BY |= samples.OPERATOR_OF

# A few numbers made on the host, once a model.
WITHOUT_KERNEL = {"generate_anchors"}


# Where an op has to be.


@cache
def text(path: Path) -> str:
    return path.read_text()


def sources(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file())


def launcher_names(op: str) -> set[str]:
    return {op, LAUNCHED_BY.get(op, op)}


def cpp_files(op: str) -> set[Path]:
    """The header that declares its launchers, the sources that define them, and what is named after that header."""
    named = re.compile("|".join(rf"\b{name}_(cpu|cuda)\(" for name in launcher_names(op)))
    own = {path for path in sources("kernels/*/*.h", "kernels/*/*.c*") if named.search(text(path))}
    headers = {path for path in own if path.suffix == ".h"}
    # A composed op names the launchers that it calls: what counts is the family that declares this one.
    own = {path for path in own if path.parent in {header.parent for header in headers}}
    return own | {
        path for h in headers for path in sources(f"kernels/{h.parent.name}/{h.stem}*") if path.suffix != ".py"
    }


def triton_files(op: str) -> set[Path]:
    """The module of its launcher, and the modules of the same family that this one imports."""
    defined = re.compile(rf"^def {samples.operator_of(op)}\(", re.MULTILINE)
    own = {path for path in sources("kernels/*/*_triton.py") if defined.search(text(path))}
    near = {
        path.with_name(f"{name}.py")
        for path in own
        for name in re.findall(r"^\s*from \.(\w+) import", text(path), re.MULTILINE)
    }
    return own | {path for path in near if path.exists()}


def declares(op: str, suffix: str) -> bool:
    named = re.compile("|".join(rf"\b{name}_{suffix}\(" for name in launcher_names(op)))
    return any(named.search(text(path)) for path in sources("kernels/*/*.h"))


def is_bound(op: str) -> bool:
    return any(f'"{name}"' in text(path) for path in sources("bindings/*.cpp") for name in launcher_names(op))


def is_in_a_table(op: str) -> bool:
    return any(re.search(rf"^\|.*`{op}`.*\|", text(path), re.MULTILINE) for path in sources("README.md", "docs/*.md"))


@cache
def registered() -> set[str]:
    """Every op of the library, the ones for gradients included."""
    every = torch._C._dispatch_get_all_op_names()
    return {name.split("::")[1].split(".")[0] for name in every if name.startswith("frcnn_fast::")}


@cache
def sampled() -> set[str]:
    return set(samples.samples())


def public() -> set[str]:
    functions = {name for name in ops.__all__ if name.islower() and callable(getattr(ops, name))}
    return functions - {"use_backend"}


# What a docstring has to say, and how to tell that it does. Rules of another op are taken over by naming it:
# "Rules as for nms", "errors as in `roi_align`".
SAYS = {
    "what it returns": r"Returns|the indices|\[\w[\w +*]*(, [\w +*]+)*\]",
    "ties": r"\b[Tt]ies?\b|[Ee]qual (scores|keys)|lower index|first of equals|\bfirst largest\b",
    "NaN": r"NaN|finite",
    "empty input": r"\b[Ee]mpty\b|\b[Nn]o (box|anchor|image|RoI|level|row|score)|= 0\b|\bwithout boxes\b",
    "errors": r"(Value|Type)Error",
    "determinism": r"repeatable|\b[Ee]xact\b|[Dd]eterministic|same bits|bits are the same|every backend",
    "complexity": r"\bO\(|[Tt]ime O|\bcost",
}
# Questions that do not arise: nothing is ranked or chosen, no number could be NaN, no input could be empty.
SPARED = {
    "generate_anchors": {"ties", "NaN", "empty input", "determinism", "complexity"},
    "grid_anchors": {"ties", "NaN"},
    "sample_anchors": {"NaN"},
    **{op: {"ties"} for op in ("decode_clip", "encode", "box_iou", "roi_align", "multiscale_roi_align", "prroi_pool")},
}


def docstring(op: str) -> str:
    """With the docstrings of the ops whose rules it takes over."""
    found, left = "", [op]
    seen: set[str] = set()
    while left:
        name = left.pop()
        if name not in seen and name in ops.__all__:
            seen.add(name)
            own = inspect.getdoc(getattr(ops, name)) or ""
            left += [word for said in re.findall(r"\bas\s+([^.;]*)", own) for word in re.findall(r"\w+", said)]
            found += own
    return found


def unsaid(op: str) -> list[str]:
    said = docstring(op)
    return [what for what, how in SAYS.items() if what not in SPARED.get(op, ()) and not re.search(how, said)]


@dataclass(frozen=True)
class Place:
    """what, and where to put it. has: whether the op is there. kernel: for ops with a kernel only. gradient: for the
    ops that autograd calls too, which users do not see."""

    what: str
    where: str
    has: Callable[[str], bool]
    kernel: bool = False
    gradient: bool = False


PLACES = (
    Place("public function", "frcnn_fast/ops/<family>.py, and ops/__init__.py: __all__", lambda op: op in ops.__all__),
    Place(
        "operator",
        "frcnn_fast/ops/<family>.py: Operator(...)",
        lambda op: samples.operator_of(op) in registered(),
        kernel=True,
    ),
    Place(
        "reference function",
        "frcnn_fast/reference/<family>.py, and reference/__init__.py: __all__",
        lambda op: samples.operator_of(op) in reference.__all__,
        gradient=True,
    ),
    Place("conformance cases", "tests/conformance/cases_<family>.py: OPS", lambda op: op in BY_NAME),
    Place("hand-worked cases", "tests/conformance/edge_cases/: CASES", lambda op: any(c.op == op for c in EDGE_CASES)),
    Place("C++ launcher", "kernels/<family>/*.h: <op>_cpu", lambda op: declares(op, "cpu"), kernel=True, gradient=True),
    Place(
        "CUDA launcher", "kernels/<family>/*.h: <op>_cuda", lambda op: declares(op, "cuda"), kernel=True, gradient=True
    ),
    Place("binding", "bindings/<family>.cpp", is_bound, kernel=True, gradient=True),
    Place(
        "Triton launcher",
        "kernels/<family>/*_triton.py: def <op>",
        lambda op: bool(triton_files(op)),
        kernel=True,
        gradient=True,
    ),
    Place(
        "mutants in C++",
        "kernels/<family>/: FF_MUTANT(<name>, right, wrong)",
        lambda op: any("FF_MUTANT(" in text(path) for path in cpp_files(op)),
        kernel=True,
    ),
    Place(
        "mutants in Triton",
        'kernels/<family>/*_triton.py: mutant("<name>")',
        lambda op: any(re.search(r'\bmutant\("', text(path)) for path in triton_files(op)),
        kernel=True,
    ),
    Place("sample", "tests/samples.py: for opcheck, compile, export, graphs", lambda op: op in sampled(), kernel=True),
    Place("compile test", "tests/test_compile.py, by its sample", lambda op: op in test_compile.NAMES, kernel=True),
    Place("bench row", "bench/rows/<family>.py: ROWS", lambda op: any(row.op == op for row in rows()), kernel=True),
    Place("line in the table of ops", "README.md or docs/", is_in_a_table),
    *(
        Place(f"docstring: {what}", "frcnn_fast/ops/<family>.py", lambda op, what=what: what not in unsaid(op))  # type: ignore[misc]
        for what in SAYS
    ),
)


def missing(op: str, *, gradient: bool = False) -> list[str]:
    """The places that lack it, each with where that is."""
    wanted = [place for place in PLACES if place.gradient or not gradient]
    if op in WITHOUT_KERNEL:
        wanted = [place for place in wanted if not place.kernel]
    return [f"{place.what} ({place.where})" for place in wanted if not place.has(op)]


def test_every_op_is_in_every_place() -> None:
    """All that is missing, at once."""
    lacks = {op: missing(op) for op in sorted(public())}
    lacks |= {op: missing(op, gradient=True) for op in sorted(registered() - public())}
    lines = [f"{op} lacks:\n    " + "\n    ".join(places) for op, places in lacks.items() if places]
    assert not lines, "\n" + "\n".join(lines)


def test_an_op_that_is_nowhere_lacks_every_place() -> None:
    """The check checks."""
    assert missing("no_such_op") == [f"{place.what} ({place.where})" for place in PLACES]
    names = [place.what for place in PLACES if place.gradient]
    assert [line.split(" (")[0] for line in missing("no_such_op_backward", gradient=True)] == names
    assert len(public()) >= 17
    assert len(registered() - public()) >= 4


# Mutants.

LANGUAGES = {".h": "C++ header", ".cpp": "C++ source", ".cu": "CUDA", ".cuh": "CUDA", ".py": "Triton"}


def planted() -> Iterator[tuple[str, Path, int]]:
    """(name, file, line) of every mutant."""
    for path in sources("kernels/*/*"):
        if path.suffix in LANGUAGES and path.stem not in ("mutant", "mutant_triton"):
            pattern = r'\bmutant\(\s*"(\w+)"' if path.suffix == ".py" else r"\bFF_MUTANT\(\s*(\w+)"
            for found in re.finditer(pattern, text(path)):
                yield found[1], path.relative_to(ROOT), text(path)[: found.start()].count("\n") + 1


def kind(path: Path) -> str:
    return "C++ source" if path.name.endswith("_cpu.h") else LANGUAGES[path.suffix]


def test_a_mutant_is_one_decision() -> None:
    """Two places of one name would be switched together, and a case that catches one of them hides the other. The same
    decision in another language is another kind of file: the C++ source, CUDA, Triton, or a header for both."""
    places = defaultdict(list)
    for name, path, line in planted():
        places[name, kind(path)].append(f"{path}:{line}")
    twice = [f"{name} in {where}: {', '.join(found)}" for (name, where), found in places.items() if len(found) > 1]
    assert not twice, "mutants planted twice:\n" + "\n".join(twice)
    assert Counter(where for _, where in places).keys() >= {"C++ header", "C++ source", "CUDA"}


def test_no_list_of_mutants_is_kept_by_hand() -> None:
    """They are found by their names; a list beside them is out of date at the next one."""
    lists = [
        f"{path.relative_to(ROOT)}:{i}"
        for path in sources("kernels/*/*")
        for i, line in enumerate(text(path).splitlines(), 1)
        if path.suffix in LANGUAGES and re.search(r"Planted mistakes( \(.*?\))?:", line)
    ]
    assert not lists, "lists of mutants: " + ", ".join(lists)


# Environment variables.

# Set by pytest for itself, and what every program has.
NOT_OURS = {"PYTEST_CURRENT_TEST", "PATH", "HOME"}


def variables_in_python(tree: ast.Module, constants: dict[str, str]) -> Iterator[tuple[str, int]]:
    """The variables of os.environ.get(x), os.environ[x], os.getenv(x) and `x in os.environ`; x is a text, or a name for
    one."""
    here = dict(constants)
    several: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.comprehension, ast.For)) and isinstance(node.target, ast.Name):
            several[node.target.id] = [str(n.value) for n in ast.walk(node.iter) if isinstance(n, ast.Constant)]

    def names(node: ast.expr) -> list[str]:
        if isinstance(node, ast.Constant):
            return [str(node.value)]
        if isinstance(node, ast.Name):
            return several.get(node.id) or [here.get(node.id, f"the value of {node.id}")]
        return [ast.unparse(node)]

    for node in ast.walk(tree):
        asked: list[ast.expr] = []
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv"):
            asked = node.args[:1]
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            asked = [node.slice] if ast.unparse(node.value) == "os.environ" else []
        elif isinstance(node, ast.Compare) and "os.environ" in [ast.unparse(c) for c in node.comparators]:
            asked = [node.left]
        for one in asked:
            yield from ((name, one.lineno) for name in names(one))


def variables() -> dict[str, str]:
    """Every environment variable that the code reads, and where it does first."""
    python = sources("setup.py", "frcnn_fast/**/*.py", "kernels/**/*.py", "bench/**/*.py", "tests/**/*.py")
    trees = {path: ast.parse(text(path)) for path in python}
    constants = {
        target.id: node.value.value
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found: dict[str, str] = {}
    for path, tree in trees.items():
        for name, line in variables_in_python(tree, constants):
            found.setdefault(name, f"{path.relative_to(ROOT)}:{line}")
    cpp = sources("kernels/*/*", "bindings/*", "tests/simt/*", "bench/**/*.cu")
    for path in [path for path in cpp if path.suffix in LANGUAGES and path.suffix != ".py"]:
        for match in re.finditer(r'\b(?:getenv|environment)\("(\w+)"', text(path)):
            found.setdefault(match[1], str(path.relative_to(ROOT)))
    for path in sources("CMakeLists.txt", "tests/simt/CMakeLists.txt", ".ci/run"):
        for match in re.finditer(r"\$ENV\{(\w+)\}|\$\{(\w+):-", text(path)):
            found.setdefault(match[1] or match[2], str(path.relative_to(ROOT)))
    return {name: where for name, where in found.items() if name not in NOT_OURS}


def test_every_environment_variable_is_in_the_table() -> None:
    guide = text(ROOT / "ARCHITECTURE.md")
    section = guide.split("## Environment variables", 1)[1].split("\n## ", 1)[0]
    table = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", "\n".join(re.findall(r"^\| *(`.*?) *\|", section, re.MULTILINE))))
    found = variables()
    unknown = [f"{name} ({where})" for name, where in sorted(found.items()) if name not in table]
    assert not unknown, "read, and not in the table of ARCHITECTURE.md: " + ", ".join(unknown)
    assert table <= found.keys(), f"in the table, and read by nobody: {sorted(table - found.keys())}"


# The guides.


@pytest.mark.parametrize("guide", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_the_guides_name_files_that_exist(guide: str) -> None:
    """`kernels/nms/nms.h` and the like; what has <, * or … in it is a pattern."""
    tops = "kernels|bindings|frcnn_fast|bench|tests|docs"
    named = set(re.findall(rf"`((?:{tops})/[\w./-]+)`", text(ROOT / guide)))
    assert named
    lost = sorted(name for name in named if not (ROOT / name).exists())
    assert not lost, f"{guide} names what is not there: {', '.join(lost)}"


def test_every_page_is_in_the_navigation() -> None:
    """mkdocs.yml: nav names every docs/**/*.md, and nothing that is not there."""

    def pages(entries: Any) -> Iterator[str]:
        for entry in entries:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                yield from [value] if isinstance(value, str) else pages(value)

    named = set(pages(yaml.safe_load(text(ROOT / "mkdocs.yml"))["nav"]))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in sources("docs/**/*.md")}
    from_root = {path.stem.lower() + ".md" for path in sources("*.md")} | {"index.md"}
    assert not there - named, f"mkdocs.yml: nav lacks {', '.join(sorted(there - named))}"
    assert not named - there - from_root, (
        f"mkdocs.yml: nav names what is not there: {sorted(named - there - from_root)}"
    )


def test_the_code_in_the_guide_is_the_code() -> None:
    """Every line of the guide's C++ and Python stands in some source; a comment of three dots leaves lines out."""
    patterns = ("kernels/*/*", "bindings/*", "frcnn_fast/**/*.py", "bench/**/*.py", "tests/conformance/**/*.py")
    files = [path for path in sources(*patterns) if path.suffix in LANGUAGES]
    known = {line.strip() for path in files for line in text(path).splitlines()}
    blocks = re.findall(r"^```(?:cpp|python)\n(.*?)^```", text(ROOT / "CONTRIBUTING.md"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 8
    wrong = [
        line
        for block in blocks
        for line in block.splitlines()
        if line.strip() not in known and line.strip() not in ("", "# ...", "// ...")
    ]
    assert not wrong, "CONTRIBUTING.md has code that is nowhere:\n" + "\n".join(wrong)


def test_the_rules_are_where_the_guide_says() -> None:
    """`kernels/top_n/top_n.h`: `rank_key`, `comes_before`: both names stand there. The last column is an oracle's."""
    guide = text(ROOT / "ARCHITECTURE.md").split("## Where each rule lives", 1)[1].split("\n## ", 1)[0]
    wrong = []
    for path, names in re.findall(r"`([\w/]+\.\w+)`: (`[^`]+`(?:, `[^`]+`)*)", guide):
        for name in re.findall(r"`(\w+)", names):
            if not re.search(rf"\b{name}\b", text(ROOT / path)):
                wrong.append(f"{name} in {path}")
    for line in guide.splitlines():
        for module, name in re.findall(r"\| `(\w+)(?:\.(\w+))?` \|$", line):
            path = ROOT / "frcnn_fast" / "reference" / f"{module}.py"
            if not path.exists() or (name and f"def {name}(" not in text(path)):
                wrong.append(f"the oracle {module}.{name}")
    assert not wrong, f"ARCHITECTURE.md, where each rule lives: no {'; no '.join(wrong)}"
