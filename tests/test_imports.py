"""Who imports whom: no circles, no arrow from a lower floor to a higher one, a core that needs torch and NumPy only.

The graph is read from the sources, so that it holds the imports inside functions too. An edge goes to the module that
holds the name: `from frcnn_fast.ops import nms` is an edge to the package, which exports the function, and
`from frcnn_fast.ops import _checks` one to the module. Packages are no edge merely because they surround a module.
"""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# kernels/ is a package of frcnn_fast by a link.
PACKAGES = {
    "frcnn_fast": ROOT / "frcnn_fast",
    "frcnn_fast.kernels": ROOT / "kernels",
    "bench": ROOT / "bench",
    "tests": ROOT / "tests",
}
# Modules that know neither ops nor models.
HELPERS = (
    "_C", "_extension", "_extras", "_options", "_settings", "_names", "_device", "_progress", "_pickles", "_ranks",
    "_waits",
    "_lettering", "io", "data", "visualize",
)  # fmt: skip
# From the lowest up; the longest prefix counts. A module may import what is on its own floor or below.
FLOORS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("kernels, reference", ("frcnn_fast.kernels", "frcnn_fast.reference")),
    ("helpers, data", tuple(f"frcnn_fast.{name}" for name in HELPERS)),
    ("ops", ("frcnn_fast.ops", "frcnn_fast.cupy_kernels")),
    ("model", ("frcnn_fast.model",)),
    ("train", ("frcnn_fast",)),
    ("bench", ("bench",)),
    ("tests", ("tests",)),
)
# Nothing at all but NumPy and the standard library, and of this project only themselves.
ALONE = {"frcnn_fast.reference": {"numpy"}, "frcnn_fast.kernels": {"numpy", "torch", "triton"}}

Graph = dict[str, dict[str, int]]  # module -> module that it imports -> line


def modules() -> dict[str, Path]:
    """Every module by its full name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder)
            if package == "frcnn_fast" and inside.parts[0] == "kernels":
                continue
            parts = [package, *inside.with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, tree: ast.Module, *, package: bool) -> Iterator[tuple[str, str | None, int]]:
    """(module, name taken from it or None, line) of every import, wherever it stands."""
    here = name.split(".") if package else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, node.lineno
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield base, alias.name, node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield str(argument.value), None, node.lineno


def exports(package: str, tree: ast.Module, known: Container[str]) -> set[str]:
    """The names that a package's own statements give a value, other than its submodules."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom) and (node.level == 1 or node.module == package):
                inside = f"{package}.{node.module}" if node.level and node.module else package
                names -= {alias.name for alias in node.names if f"{inside}.{alias.name}" in known}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return names


def import_graph(sources: Mapping[str, str], packages: set[str]) -> Graph:
    """Edges between these modules only."""
    trees = {name: ast.parse(text) for name, text in sources.items()}
    exported = {name: exports(name, trees[name], trees) for name in packages}
    graph: Graph = {name: {} for name in trees}
    for name, tree in trees.items():
        for base, taken, line in imports(name, tree, package=name in packages):
            inner = f"{base}.{taken}"
            target = inner if inner in trees and taken not in exported.get(base, ()) else base
            if target in trees and target != name:
                graph[name].setdefault(target, line)
    return graph


def cycle(graph: Graph) -> list[str]:
    """The modules of a shortest circle, first and last the same; empty where there is none."""
    best: list[str] = []
    for start in graph:
        came: dict[str, str] = {}
        queue = [start]
        while queue and start not in came:
            module = queue.pop(0)
            for target in graph.get(module, ()):
                if target not in came:
                    came[target] = module
                    queue.append(target)
        if start in came:
            path = [start]
            while len(path) == 1 or path[-1] != start:
                path.append(came[path[-1]])
            best = min([p for p in (best, path[::-1]) if p], key=len)
    return best


def circles(graph: Graph) -> list[list[str]]:
    """Circles that share no arrow: each is found in what is left of the graph without the former ones."""
    left = {name: dict(targets) for name, targets in graph.items()}
    found = []
    while path := cycle(left):
        found.append(path)
        for a, b in itertools.pairwise(path):
            del left[a][b]
    return found


def whole_graph() -> tuple[Graph, dict[str, Path]]:
    paths = modules()
    packages = {name for name, path in paths.items() if path.name == "__init__.py"}
    sources = {name: path.read_text() for name, path in paths.items()}
    return import_graph({**sources, "frcnn_fast._C": ""}, packages), paths  # the compiled half imports nothing of ours


def floor(module: str) -> int:
    """Its place among FLOORS: that of the longest prefix which fits."""
    fitting = [
        (len(prefix), i)
        for i, (_, prefixes) in enumerate(FLOORS)
        for prefix in prefixes
        if module == prefix or module.startswith(prefix + ".")
    ]
    return max(fitting)[1]


def test_no_circles() -> None:
    graph, paths = whole_graph()
    lines = []
    for path in circles(graph):
        lines += ["", "imports go round in a circle:"]
        for a, b in itertools.pairwise(path):
            lines.append(f"  {paths[a].relative_to(ROOT)}:{graph[a][b]}: {a} imports {b}")
    assert not lines, "\n".join(lines)


def test_no_arrow_up() -> None:
    graph, paths = whole_graph()
    wrong = [
        f"{paths[a].relative_to(ROOT)}:{line}: {a} ({FLOORS[floor(a)][0]}) imports {b} ({FLOORS[floor(b)][0]})"
        for a, targets in graph.items()
        for b, line in targets.items()
        # The package's own __init__ exports what is above it; whoever imports it does so for that.
        if floor(b) > floor(a) and a != "frcnn_fast"
    ]
    assert not wrong, "imports from a higher floor:\n" + "\n".join(wrong)


@pytest.mark.parametrize("package", ALONE)
def test_kernels_and_oracle_stand_alone(package: str) -> None:
    """The oracle shares no code with what it judges, nor the kernels with what calls them."""
    wrong = []
    for name, path in modules().items():
        if not (name == package or name.startswith(package + ".")):
            continue
        for base, _, line in imports(name, ast.parse(path.read_text()), package=path.name == "__init__.py"):
            top = base.split(".")[0]
            own = base == package or base.startswith(package + ".")
            if not (own or top in sys.stdlib_module_names or top in ALONE[package]):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: imports {base}")
    assert not wrong, "\n".join(wrong)


def test_circles_are_found() -> None:
    """The check checks: at the top of a module, inside a function, and by import_module."""
    sources = {
        "p": "from p.a import f\nfrom p import b",
        "p.a": "from p import b\nf = 1",
        "p.b": "def g():\n    import p.c",
        "p.c": "import importlib\nimportlib.import_module('p.b')",
        "p.d": "from p import f, a",
    }
    graph = import_graph(sources, {"p"})
    assert {name: set(targets) for name, targets in graph.items()} == {
        "p": {"p.a", "p.b"},
        "p.a": {"p.b"},
        "p.b": {"p.c"},
        "p.c": {"p.b"},
        "p.d": {"p", "p.a"},
    }
    assert circles(graph) == [["p.b", "p.c", "p.b"]]
    assert floor("frcnn_fast.ops.nms") < floor("frcnn_fast.model.rpn") < floor("frcnn_fast.train") < floor("tests.x")


BLOCKER = """
import importlib.metadata, re, sys
import numpy, torch

def needed(name, seen):
    # a distribution and all that it requires without extras
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key not in seen:
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            return seen
        seen.add(key)
        for line in requires:
            if "extra ==" not in line:
                needed(re.match(r"[\\w.-]+", line)[0], seen)
    return seen

there = needed("torch", set()) | needed("numpy", set())
there.discard("triton")
by_module = importlib.metadata.packages_distributions()
asked = set()

class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        owners = {re.sub(r"[-_.]+", "-", owner).lower() for owner in by_module.get(top, ())}
        if top not in sys.stdlib_module_names and top != "frcnn_fast" and owners and not owners & there:
            asked.add(top)
            raise ImportError(f"{top} is not part of the core")

sys.meta_path.insert(0, Blocker())
import frcnn_fast
from frcnn_fast import ops
box = torch.tensor([[0., 0., 9., 9.], [0., 0., 9., 8.], [20., 0., 29., 9.]])
score = torch.tensor([.5, .9, .1])
for backend in ("cpu", "reference"):
    assert ops.nms(box, score, .5, backend=backend).tolist() == [1, 2], backend
print("asked for:", *sorted(asked))
"""


def test_the_core_needs_torch_and_numpy_only() -> None:
    """In a process where nothing else can be imported, nor Triton, which torch may bring: an op runs, and nobody has
    asked for more."""
    done = subprocess.run([sys.executable, "-c", BLOCKER], text=True, capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "asked for:", done.stdout
