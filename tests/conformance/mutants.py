"""What the tests of the planted mistakes have in common: a family's cases, run in a child process with one planted."""

from __future__ import annotations

import functools
import os
import resource
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from frcnn_fast.ops._operator import Operator
from tests.samples import operator_of

from .backends import BACKENDS, Backend
from .edge_cases import EDGE_CASES
from .harness import Arrays, Op, assert_conforms, expected, inputs, poisoned_memory, run
from .suite import FAMILIES, OPS

CPU_LIMIT_S = 120  # of processor time: a busy machine changes no verdict
# A wrong result; an error that a launcher or the harness reports. Anything else is a mistake in the suite.
CAUGHT_BY = (AssertionError, RuntimeError, ValueError)
BROKEN = 77


def family(files: list[Path]) -> str:
    return files[0].parts[1]


def names_of_files(op: Op) -> tuple[str, ...]:
    """How the names of its files may begin: its own name, or that of the module where its Triton launcher is."""
    own = op.name.removesuffix("_backward")
    operator = Operator.named.get(operator_of(own))
    return (own,) if operator is None else (own, operator.triton.split(".")[1].split("_triton")[0])


def ops_of(files: list[Path]) -> list[Op]:
    """The ops whose cases must catch the mutants of these files of kernels/<family>: those that a file is named after,
    the family's others, then those composed of it."""
    name = family(files)
    modules = [module for module in FAMILIES if f".cases_{name}" in module.__name__]
    own = [op for module in modules for op in module.OPS]
    own.sort(key=lambda op: -max(len(n) for n in ("", *names_of_files(op)) if any(p.stem.startswith(n) for p in files)))
    composed = [op for op in OPS if op.name in ("rpn_proposals", "detections") and op not in own]
    return own + composed if own or name == "proposals" else list(OPS)


def some_of_each_family(mutants: Mapping[str, list[Path]], count: int) -> list[str]:
    """That many names, of as many families as there are, always the same ones."""
    place: dict[str, tuple[int, int]] = {}
    seen: dict[str, int] = {}
    for name in sorted(mutants, key=lambda n: zlib.crc32(n.encode())):
        home = family(mutants[name])
        place[name] = (seen.get(home, 0), zlib.crc32(name.encode()))
        seen[home] = seen.get(home, 0) + 1
    return sorted(sorted(mutants, key=place.__getitem__)[:count])


@functools.cache
def prepared(op: Op) -> list[tuple[Any, Arrays, bool]]:
    """(case, what is wanted, to the bit) of the op's hand-worked and small cases."""
    by_hand: list[tuple[Any, Arrays, bool]] = [(case, case.answer(), True) for case in EDGE_CASES if case.op == op.name]
    return by_hand + [(case, expected(op, case), False) for case in op.cases if case.small]


def run_cases(files: list[Path], backends: tuple[str, ...], most: int | None = None) -> None:
    """Runs one case after the other, at most so many of an op; raises at the first that is red."""

    def check(op: Op, backend: Backend, case: Any, want: Arrays, exactly: bool) -> None:
        label = f"{op.name}-{backend.name}-{case.name}"
        assert_conforms(op, run(op, backend, case), want, inputs(case), label, exactly=exactly)

    def served_by(backend: Backend) -> list[Op]:
        return [op for op in ops_of(files) if backend.serves(op.name)]

    here = [backend for name in backends for backend in BACKENDS if backend.name == name]
    for backend in here:
        for op in served_by(backend):
            for case, want, exactly in prepared(op)[:most]:
                if case.refused_by(backend):
                    continue
                check(op, backend, case, want, exactly)
    for backend in here:
        for op in served_by(backend):
            for case in () if most else op.cases:
                if not (case.small or backend.slow):
                    check(op, backend, case, expected(op, case), False)


def turns_red(plant: Callable[[], None], files: list[Path], backends: tuple[str, ...], most: int | None = None) -> str:
    """Runs the cases in a child process, which a wild mutant may kill or hang, after plant(). How it failed, or ""."""
    # Here, so that every child has it.
    for op in ops_of(files):
        prepared(op)
    with poisoned_memory():  # imports much the first time
        pass
    with tempfile.TemporaryFile() as log:
        child = os.fork()
        if child == 0:
            code = 0
            try:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S))
                torch.set_num_threads(1)  # the parent's threads are not here
                plant()
                run_cases(files, backends, most)
            except BaseException as error:
                os.write(1, f"{type(error).__name__}: {error}"[:1000].encode())
                code = 1 if isinstance(error, CAUGHT_BY) else BROKEN
            os._exit(code)
        _, status = os.waitpid(child, 0)
        log.seek(0)
        how = log.read().decode(errors="replace") or f"the process ended with {status}"
        assert os.waitstatus_to_exitcode(status) != BROKEN, f"the cases could not run: {how}"
        return how if status else ""


def assert_caught(name: str, how: str, files: list[Path], backends: tuple[str, ...]) -> None:
    where = ", ".join(map(str, files))
    assert how, f"no case of {family(files)} on {' or '.join(backends)} notices the mutant {name} (in {where})"
    print(how)
