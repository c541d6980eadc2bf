"""pytest plugin of the runs on a GPU (`-p tests.journaled`): which tests, and a journal of them.

--backend, --family, --small and --part choose among the tests that run on a backend. --journal FILE notes every test
before it begins and when it has ended; what the file names already is passed over. A test that takes longer than
--test-seconds ends the process, and so does one that leaves a CUDA error behind, which would be found in all others.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.journal import FAILED, PASSED, SKIPPED, START_ANEW, Journal


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("runs on a GPU")
    group.addoption("--backend", default="", help="only tests on that backend")
    group.addoption("--family", default="", help="only the ops of tests/conformance/cases_FAMILY.py")
    group.addoption("--small", action="store_true", help="only cases that are cheap enough for a sanitizer")
    group.addoption("--part", default="1/1", metavar="I/N", help="of what is left every N-th, from the I-th on")
    group.addoption("--journal", type=Path)
    group.addoption("--test-seconds", type=float)


def parameter(item: pytest.Item, name: str) -> Any:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get(name) if callspec else None


def op_of(item: pytest.Item) -> str:
    """The op that a conformance test is about, or ""."""
    op = parameter(item, "op") or getattr(parameter(item, "case"), "op", "")
    return getattr(op, "name", op)


@functools.cache
def family_of(op: str) -> str:
    from tests.conformance.suite import FAMILIES

    found = (module.__name__ for module in FAMILIES if op in {each.name for each in module.OPS})
    return next(found, "").rpartition("cases_")[2]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    backend, family, small = (config.getoption(name) for name in ("backend", "family", "small"))

    def wanted(item: pytest.Item) -> bool:
        mine = parameter(item, "backend")
        return (
            (not backend or getattr(mine, "name", mine) == backend)
            and (not family or family_of(op_of(item)) == family)
            and (not small or item.get_closest_marker("small") is not None)
        )

    first, _, step = config.getoption("part").partition("/")
    chosen = [item for item in items if wanted(item)][int(first) - 1 :: int(step)]
    path = config.getoption("journal")
    if path:
        recorder = Recorder(Journal(path, config.getoption("test_seconds")))
        config.pluginmanager.register(recorder)
        chosen = [item for item in chosen if item.nodeid not in recorder.journal.before]
    left = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in left])
    items[:] = chosen


class Recorder:
    """Writes the journal."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.outcome, self.why = PASSED, ""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.outcome, self.why = PASSED, ""
        self.journal.begin(item.nodeid)
        result = yield
        lost = self.journal.end(item.nodeid, self.outcome, self.why)
        if lost:
            pytest.exit(f"after {item.nodeid}: {lost}", returncode=START_ANEW)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.outcome != FAILED:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.outcome, self.why = FAILED, crash.message if crash else str(report.longrepr)
        elif report.skipped and self.outcome == PASSED:
            self.outcome, self.why = SKIPPED, str(report.longrepr)
