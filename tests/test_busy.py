"""Fair beside other work: the commands' settings, and what measures them."""

import importlib
import os
import sys
import time

import pytest

from bench.busy import Taken, busy_processes, report
from frcnn_fast import _waits


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["python", "-m", "frcnn_fast.train", "--lr", "1"], True),
        (["python", "-u", "-m", "frcnn_fast.cli", "train"], True),
        (["python", "/usr/local/bin/frcnn-fast", "train"], True),
        (["python", "C:\\frcnn-fast.exe"], os.name == "nt"),
        (["python", "-m", "pytest", "frcnn_fast"], False),
        (["python", "-m", "frcnn_faster"], False),
        (["python", "train.py", "-m", "frcnn_fast.train"], False),
        (["python", "-c", "import frcnn_fast"], False),
        (["python", "-m"], False),
        (["python"], False),
    ],
)
def test_which_programs_are_commands(arguments, expected):
    assert _waits.is_command(arguments) is expected


def test_the_users_choice_stays(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert _waits.wait_settings() == {"GOMP_SPINCOUNT": "1000"}
    for name, value in (("GOMP_SPINCOUNT", "5"), ("OMP_WAIT_POLICY", "active")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert _waits.wait_settings() == {}


def test_a_command_sets_it_before_torch_is_loaded(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    importlib.reload(_waits)
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "frcnn_fast.train"])
    importlib.reload(_waits)
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    # It is the first import of the first module that the package imports.
    imports = []
    for name in ("frcnn_fast", "frcnn_fast._extension"):
        with open(importlib.import_module(name).__file__) as file:
            lines = [line for line in file if line.startswith(("import", "from"))]
        imports.append([line for line in lines if "frcnn_fast" in line or "torch" in line])
    assert imports[0][0].startswith("from frcnn_fast import _extension")
    assert imports[1][0].startswith("from frcnn_fast import _waits")


def test_busy_processes_end_with_the_block():
    with busy_processes(1):
        before = os.times().children_user
        time.sleep(0.2)
    assert os.times().children_user > before


def test_what_is_fair():
    alone = [Taken(1.0, 2.0), Taken(9.0, 2.0), Taken(1.0, 2.0)]
    found = report(alone, [Taken(2.2, 2.5)] * 3, busy=4)
    assert found["fair"] is True
    assert found["ratio"] == pytest.approx({"time": 2.2, "processor_time": 1.25})
    assert report(alone, [Taken(2.0, 2.7)] * 3, 4)["fair"] is False
    assert report(alone, [Taken(2.3, 2.0)] * 3, 4)["fair"] is False
