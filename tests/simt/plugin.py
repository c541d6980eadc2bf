"""pytest plugin of the sanitized runs: the test module, the small cases, and proof that kernels ran."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.simt.backend import VARIABLE, load_test_module
from tests.simt.build import CURRENT_TEST

if os.environ.get(VARIABLE):
    load_test_module()

# Ops that are a few lines of host code on every backend.
WITHOUT_KERNEL = frozenset({"generate_anchors"})

launches: Counter[str] = Counter()


def parameter(item: pytest.Item, name: str) -> Any:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get(name) if callspec else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps those conformance cases that exercise compiled code: the small ones, on "cpu", "simt", "simt80"."""
    keep, drop = [], []
    for item in items:
        backend, case = parameter(item, "backend"), parameter(item, "case")
        name = getattr(backend, "name", backend)  # conformance tests have backends, others may have their names
        wanted = name is None or (name in ("cpu", "simt", "simt80") and getattr(case, "small", True))
        (keep if wanted else drop).append(item)
    items[:] = keep
    config.hook.pytest_deselected(items=drop)


def pytest_runtest_logstart(nodeid: str) -> None:
    CURRENT_TEST.write_text(nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    backend = parameter(item, "backend")
    if backend is None or not backend.name.startswith("simt"):
        return (yield)
    from frcnn_fast import _C  # type: ignore[attr-defined]

    op = parameter(item, "op")
    name = op.name if op else parameter(item, "case").op
    before = _C.launches()
    result = yield
    launches[name] += _C.launches() - before
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    """An op whose cases went through the harness without a launch was not tested there."""
    idle = sorted(name for name, count in launches.items() if not count and name not in WITHOUT_KERNEL)
    if idle:
        print(f"\nno kernel was launched by: {', '.join(idle)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
