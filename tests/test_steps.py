"""The runs on a GPU, rehearsed without one: whatever a step does, the report names it and the rest ran."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import environment, gpu, journal, run, schema, steps, tools
from bench.case import Case, Row
from bench.journal import DIED, FAILED, PASSED, START_ANEW, Item
from bench.steps import MOST_LOGGED, MOST_STARTS, PYTHON, Runner, Step
from tests import run_on_gpu
from tests.conformance.edge_cases import EDGE_CASES
from tests.conformance.suite import BY_NAME

ROOT = tools.ROOT
ROOFS = dict.fromkeys(("bytes_per_s", "cache_bytes_per_s", "flops_per_s"), 1.0)


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    """A runner listens to SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def python(name: str, code: str, limit: float = 120.0, **more: Any) -> Step:
    return Step(name, [sys.executable, "-c", code], 1.0, limit, **more)


def outcomes(path: Path) -> dict[str, str]:
    return {entry["step"]: entry["outcome"] for entry in json.loads(path.read_text())["steps"]}


def runs(process: int) -> bool:
    """Whether it is there; what has ended and was never asked about is not."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


CRASH = "import os, signal; print('before the crash', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
WITH_A_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
time.sleep(600)
"""


def test_a_step_that_crashes_hangs_or_fails_costs_the_others_nothing(tmp_path: Path) -> None:
    runner = Runner("rehearsal", tmp_path, 600)
    several = [
        python("crashes", CRASH),
        python("hangs", WITH_A_CHILD, limit=8),
        python("fails", "import sys; print('no such thing'); sys.exit(3)"),
        python("is not here", "", unless="not installed"),
        python("works", "print('fine')"),
    ]
    runner.plan((several, 2))
    assert not runner.run(several, at_once=2)
    assert runner.finish() == 1
    found = outcomes(tmp_path / "rehearsal.json")
    assert found == {
        "crashes": "ended by SIGSEGV",
        "hangs": "stopped",
        "fails": "exit 3",
        "is not here": "not installed",
        "works": "done",
    }
    log = (tmp_path / "rehearsal.log").read_text()
    assert "crashes | before the crash" in log
    assert "fails | no such thing" in log
    child = int(log.split("hangs | child ")[1].split()[0])
    assert not runs(child)
    report = json.loads((tmp_path / "rehearsal.json").read_text())
    assert (report["finished"], report["ok"]) == (True, False)
    assert {entry["step"]: entry.get("tail") for entry in report["steps"]}["fails"] == ["no such thing"]


def test_the_plan_says_when_each_step_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = [Step(f"step {i}", [], expected, 100.0) for i, expected in enumerate((60.0, 20.0, 30.0))]
    runner = Runner("rehearsal", tmp_path, 600)
    runner.plan((several[:1], 1), (several, 2))
    planned = json.loads((tmp_path / "rehearsal.json").read_text())["plan"]
    assert [(each["begins"], each["ends"]) for each in planned] == [(0, 60), (60, 120), (60, 80), (80, 110)]
    assert "1:20 – 1:50  step 2" in capsys.readouterr().out


def test_nothing_begins_after_the_deadline(tmp_path: Path) -> None:
    runner = Runner("rehearsal", tmp_path, 1)
    assert not runner.run([python("late", "")])
    assert outcomes(tmp_path / "rehearsal.json") == {"late": "no time left"}


KILLED = f"""
import sys
from pathlib import Path
from bench.steps import Runner, Step
codes = {{"first": "print(1)", "second": {WITH_A_CHILD!r}, "third": ""}}
steps = [Step(name, [sys.executable, "-c", code], 1, 300) for name, code in codes.items()]
Runner("rehearsal", Path(sys.argv[1]), 600).run(steps)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_killed_leaves_its_report(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL)
    log, path = tmp_path / "rehearsal.log", tmp_path / "rehearsal.json"
    until = time.monotonic() + 300
    while not (log.exists() and "second | child" in log.read_text() and "second" in outcomes(path)):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(60)
    report = json.loads(path.read_text())
    assert not report["finished"]
    child = int(log.read_text().split("child ")[1].split()[0])
    if number == signal.SIGTERM:
        assert outcomes(path) == {"first": "done", "second": "stopped: the whole run was ended"}
        assert not runs(child)
    else:
        assert outcomes(path) == {"first": "done", "second": "running"}
        os.killpg(os.getpgid(child), signal.SIGKILL)


TESTS = """
import os, signal, sys, time, types
import pytest

def test_first(): pass
def test_crashes(): os.kill(os.getpid(), signal.SIGSEGV)
def test_fails(): assert 1 == 2, "of all things"
def test_hangs(): time.sleep(60)
def test_loses_its_gpu(): sys.modules["torch"] = Gone
def test_is_skipped(): pytest.skip("not today")
def test_last(): pass

class Gone:
    class cuda:
        is_initialized = staticmethod(lambda: True)
        @staticmethod
        def synchronize(): raise RuntimeError("CUDA error: an illegal memory access\\nmore")
"""


def test_a_test_costs_itself_alone(tmp_path: Path) -> None:
    file = tmp_path / "test_made.py"
    file.write_text(TESTS)
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "tests.journaled", "--test-seconds=3"]
    step = Step("tests", [*PYTHON, "pytest", *options, str(file), f"--rootdir={tmp_path}"], 1, 300, journaled=True)
    runner = Runner("rehearsal", tmp_path, 300)
    assert not runner.run([step])
    (entry,) = json.loads((tmp_path / "rehearsal.json").read_text())["steps"]
    assert entry["items"] == {"passed": 2, "skipped": 1, "failed": 2, "died": 2}
    bad = {each["item"].split("::")[1]: (each["outcome"], each["why"]) for each in entry["bad"]}
    assert bad["test_crashes"] == (DIED, "ended by SIGSEGV")
    assert bad["test_hangs"] == (DIED, "hung; the log has its traceback")
    assert "of all things" in bad["test_fails"][1]
    assert bad["test_loses_its_gpu"] == (FAILED, "it leaves a CUDA error: CUDA error: an illegal memory access")
    assert entry["starts"] == 4
    assert "in test_hangs" in (tmp_path / "rehearsal.log").read_text()


def test_what_dies_at_every_start_comes_to_an_end(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from bench.journal import Journal
journal = Journal(Path(sys.argv[2]))
journal.begin(f"item {len(journal.before)}")
os.kill(os.getpid(), signal.SIGKILL)
"""
    runner = Runner("rehearsal", tmp_path, 600)
    runner.run([python("dies", code, journaled=True)])
    (entry,) = json.loads((tmp_path / "rehearsal.json").read_text())["steps"]
    assert entry["items"] == {DIED: MOST_STARTS}
    assert entry["outcome"] == "ended by SIGKILL"


def test_a_line_of_the_journal_that_is_being_written_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal.note(path, Item("a", PASSED))
    journal.note(path, Item("b"))
    with path.open("a") as file:
        file.write('{"name": "b", "outc')
    assert {item.name: item.outcome for item in journal.read(path).values()} == {"a": PASSED, "b": journal.RUNNING}
    closed = journal.close(path, "killed")
    assert closed
    assert journal.read(path)["b"] == closed
    assert (closed.outcome, closed.why) == (DIED, "killed")


def test_a_step_that_says_too_much_is_cut_short(tmp_path: Path) -> None:
    code = "for i in range(30_000): print('line', i, flush=False)"
    runner = Runner("rehearsal", tmp_path, 600)
    assert runner.run([python("a step 1/3", code, journaled=True)])
    log = (tmp_path / "rehearsal.log").read_text()
    assert len(log) < 2 * MOST_LOGGED
    assert "a step 1/3 | line 0\n" in log
    assert "lines are left out" in log
    assert log.rstrip().splitlines()[-2].endswith("line 29999")


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    runner = Runner("rehearsal", tmp_path, 600)
    assert not runner.run([Step("odd", ["/no/such/program"], 1, 10), python("next", "")])
    found = outcomes(tmp_path / "rehearsal.json")
    assert found["odd"].startswith("cannot be started: ")
    assert found["next"] == "done"


ROWS = """
import os, signal, sys
import torch
from bench import environment, run
from bench.case import Case, Row

def row(op, call):
    return Row(op, "w", lambda _: Case(call, lambda got: None))

environment.roofs = lambda backend: dict.fromkeys(("bytes_per_s", "cache_bytes_per_s", "flops_per_s"), 1.0)
run.rows = lambda *_: [
    row("first", lambda: torch.ones(1)),
    row("crashes", lambda: os.kill(os.getpid(), signal.SIGSEGV)),
    row("last", lambda: torch.ones(1)),
]
sys.exit(run.main(sys.argv[1:]))
"""


def test_a_row_costs_itself_alone(tmp_path: Path) -> None:
    results = tmp_path / "rows.json"
    options = ["--backend", "cpu", "--seconds", "0.01", "--row-seconds", "200", "--json", str(results)]
    runner = Runner("rehearsal", tmp_path, 400)
    runner.run([Step("rows", [sys.executable, "-c", ROWS, *options], 1, 400, journaled=True)])
    found = schema.load(results)
    assert [entry["op"] for entry in found["rows"]] == ["first", "last"]
    assert {entry["op"]: entry["why"] for entry in found["wrong"]} == {"crashes": "ended by SIGSEGV"}
    (entry,) = json.loads((tmp_path / "rehearsal.json").read_text())["steps"]
    assert (entry["starts"], entry["items"]) == (2, {PASSED: 2, DIED: 1})
    assert "rows | crashes: w ..." in (tmp_path / "rehearsal.log").read_text()


def test_rows_stop_where_the_gpu_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [Row(op, "w", lambda _: Case(lambda: torch.ones(1), lambda got: None)) for op in ("a", "b")]
    monkeypatch.setattr(run, "rows", lambda *_: made)
    monkeypatch.setattr(environment, "roofs", lambda _: ROOFS)
    monkeypatch.setattr(journal, "why_lost", lambda: "CUDA error: misaligned address")
    options = ["--backend", "cpu", "--seconds", "0.01", "--json", str(tmp_path / "r.json")]
    options += ["--journal", str(tmp_path / "journal")]
    assert run.main(options) == START_ANEW
    assert [item.outcome for item in journal.read(tmp_path / "journal").values()] == [FAILED]
    monkeypatch.setattr(journal, "why_lost", lambda: "")
    assert run.main(options) == 1
    found = schema.load(tmp_path / "r.json")
    assert [entry["op"] for entry in found["rows"]] == ["a", "b"]
    assert [(entry["op"], entry["why"]) for entry in found["wrong"]] == [
        ("a", "it leaves a CUDA error: CUDA error: misaligned address")
    ]


def test_the_roof_of_the_cache_comes_from_the_floors(tmp_path: Path) -> None:
    report: dict[str, Any] = {"roofs": {"cache_bytes_per_s": 1.0}}
    run.stand_on({"copy_l2_gb_s": {"p50": 5500.0}}, report)
    assert report["roofs"] == {"cache_bytes_per_s": 5.5e12}
    assert "floors" in report


def test_tools_come_from_cuda_home_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("home", "path"):
        program = tmp_path / folder / "bin" / "a-tool"
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    assert tools.find("a-tool") == str(tmp_path / "path" / "bin" / "a-tool")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert tools.find("a-tool") == str(tmp_path / "home" / "bin" / "a-tool")
    assert tools.find("no-such-tool") is None


def test_a_commit_has_a_name_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCNN_COMMIT", "abc")
    assert tools.commit() == "abc"
    monkeypatch.delenv("FRCNN_COMMIT")
    monkeypatch.setenv("PATH", "")
    assert tools.commit() == "unknown"


def test_a_family_of_ops_on_the_processor(tmp_path: Path) -> None:
    """`make gpu-test` itself, of one small step."""
    assert run_on_gpu.main(["--device", "cpu", "--only", "top_n", "--out", str(tmp_path)]) == 0
    (entry,) = json.loads((tmp_path / "gpu-test.json").read_text())["steps"]
    assert entry["step"] == "top_n cpu"
    cases = [case for case in EDGE_CASES if case.op == "top_n"]
    assert entry["items"] == {PASSED: len(cases) + len(BY_NAME["top_n"].cases)}


@pytest.fixture
def no_builds(monkeypatch: pytest.MonkeyPatch) -> dict[bool, str]:
    """What the builds do, with the CUDA half and without; the GPU is said to be there."""
    codes = {True: "", False: ""}
    monkeypatch.setattr(steps, "DEVICE", python("device", ""))
    monkeypatch.setattr(steps, "build", lambda cuda: python(f"build {cuda}", codes[cuda]))
    return codes


@pytest.mark.parametrize("built", [True, False])
def test_without_the_cuda_half_the_rest_is_tested(
    built: bool, no_builds: dict[bool, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_builds[True] = "" if built else "import sys; sys.exit('error: kernel.cu')"
    monkeypatch.setattr(run_on_gpu, "full", lambda _: [python("nms cuda", ""), python("nms triton", "")])
    monkeypatch.setattr(run_on_gpu, "machine", lambda *_: python("machine", ""))
    assert run_on_gpu.main(["--out", str(tmp_path)]) == (0 if built else 1)
    found = outcomes(tmp_path / "gpu-test.json")
    expected = {"device": "done", "build True": "done", "machine": "done", "nms cuda": "done", "nms triton": "done"}
    if not built:
        expected |= {"build True": "exit 1", "build False": "done", "nms cuda": run_on_gpu.NOT_BUILT}
        assert "error: kernel.cu" in (tmp_path / "gpu-test.log").read_text()
    assert found == expected


def test_without_a_gpu_nothing_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "DEVICE", python("device", "import sys; sys.exit('no GPU')"))
    with pytest.raises(SystemExit) as stopped:
        run_on_gpu.main(["--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert outcomes(tmp_path / "gpu-test.json") == {"device": "exit 1"}


REPORT = {
    "schema": schema.VERSION,
    "environment": {"date": "", "commit": "", "changed": False, "cpu": "", "threads": 1, "torch": "", "missing": []},
    "roofs": ROOFS,
    **{part: [] for part in ("rows", "wrong", "skipped")},
}


def writing(name: str, path: Path, value: object) -> Step:
    code = f"from pathlib import Path; p = Path({str(path)!r}); p.parent.mkdir(exist_ok=True)"
    return python(name, f"{code}; p.write_text({json.dumps(value)!r})", writes=path)


@pytest.mark.usefixtures("no_builds")
@pytest.mark.parametrize("rows_end", ["well", "by a crash"])
def test_every_part_of_a_benchmark_is_kept(rows_end: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def before(_: str, scratch: Path) -> list[Step]:
        machine = writing("machine", scratch / "machine.json", {"slug": "some-gpu"})
        return [machine, writing("floors", scratch / "floors.json", {"a": 1})]

    def rows(device: str, scratch: Path, results: Path, seconds: float) -> Step:
        return writing("rows", results, REPORT) if rows_end == "well" else python("rows", CRASH)

    def after(device: str, scratch: Path, results: Path) -> list[Step]:
        profile = writing("profile vgg", scratch / "vgg" / "profile.json", {"b": 2})
        picture = writing("nsight", scratch / "vgg" / "profile.png", ["c"])
        return [python("plots", CRASH), profile, picture]

    for made in (before, rows, after):
        monkeypatch.setattr(gpu, made.__name__, made)
    assert gpu.main(["--out", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "gpu-bench.json").read_text())
    parts = {"floors": {"a": 1}, "profile vgg": {"b": 2}, "nsight": ["c"]}
    assert {name: report[name] for name in parts} == parts
    assert {entry["step"] for entry in report["steps"] if not entry["ok"]} == (
        {"plots"} if rows_end == "well" else {"plots", "rows"}
    )
    assert (tmp_path / "some-gpu-profile.png").exists()
    if rows_end == "well":
        found = schema.load(tmp_path / "some-gpu.json")
        assert {name: found[name] for name in parts} == parts
    assert len(list(tmp_path.iterdir())) <= 8


def test_every_family_and_every_tool_has_a_step() -> None:
    names = {step.name for step in run_on_gpu.full("cuda")}
    assert len(names) == len(run_on_gpu.full("cuda"))
    assert {f"{family} {backend}" for family in run_on_gpu.FAMILIES for backend in ("cuda", "triton")} < names
    assert {name.split()[0] for name in names} >= {"memcheck", "racecheck", "initcheck", "synccheck", "graphs", "large"}


@pytest.mark.parametrize(("made", "most"), [(run_on_gpu.full, 540), (run_on_gpu.smoke, 170)])
def test_the_plans_fit_into_their_time(made: Any, most: float) -> None:
    """On sixteen cores, with the build."""
    free = [75.0] * 12
    for step in made("cuda"):
        free[free.index(min(free))] += step.expected
    assert max(free) < 0.75 * most


def test_rows_leave_room_for_what_comes_after() -> None:
    nowhere = Path()
    left = 540.0 - 100
    seconds = gpu.seconds_for_rows(left, "cuda")
    later = gpu.after("cuda", nowhere, nowhere)
    assert left - seconds - gpu.SLACK >= sum(step.expected for step in later)
    assert seconds > 240
