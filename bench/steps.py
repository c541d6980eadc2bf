"""Runs steps, each a process of its own, against one deadline, and reports them so that nothing is lost whatever fails.

- <name>.json is written anew every second and after every step, beside itself and then renamed. It says what every step
  came to, what it is in the middle of, and what failed, hung or crashed in it.
- <name>.log has the lines of every step as they come, behind the step's name; of one that says very much the beginning
  and the end.
- A step has a limit; what runs into it is killed with all of its children. A step that keeps a journal is started again
  where one of its items ended the process.
- Killed from outside (SIGTERM, Ctrl-C), the steps are killed and named in the report.

Needs nothing but the standard library, so that no import can come in between.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from bench import journal, tools

PYTHON = (sys.executable, "-u", "-m")
NOTHING_LEFT = 5  # pytest's exit status where no test was left to run
MOST_STARTS = 8
LEAST_SECONDS = 5.0  # what has less left is not begun
# So that the log and the report stay small enough to be carried away, whatever goes wrong.
MOST_LOGGED = 1 << 18  # characters of a step
MOST_BAD = 50  # items of a step that are named in the report
TAIL = 40  # lines of a step that did not go well


@dataclass(frozen=True)
class Step:
    """expected, limit: seconds. journaled: the command takes --journal FILE, and may be started again with it.
    writes: a JSON file, which the report takes in under the step's name. unless: why it cannot run here, or "".
    """

    name: str
    command: Sequence[str]
    expected: float
    limit: float
    environment: Mapping[str, str] = field(default_factory=dict)
    journaled: bool = False
    writes: Path | None = None
    unless: str = ""


class Running:
    """A step that has begun: its process, and its entry in the report."""

    def __init__(self, step: Step, entry: dict[str, Any], scratch: Path, ends: float, commit: str) -> None:
        self.step, self.entry, self.ends, self.began = step, entry, ends, time.monotonic()
        self.journal = scratch / f"{re.sub(r'[^0-9A-Za-z]+', '-', step.name)}.journal"
        self.command = [*step.command, *(["--journal", str(self.journal)] if step.journaled else [])]
        common = {"PYTHONPATH": str(tools.ROOT), "COLUMNS": "300", "FRCNN_COMMIT": commit}
        self.environment = {**os.environ, **common, **step.environment}
        self.lines: list[str] = []  # the last ones
        self.logged = self.left_out = 0  # characters, lines
        self.starts = 0
        entry["command"] = shlex.join(self.command)
        self.start()

    def start(self) -> None:
        self.starts += 1
        self.output: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  # read while it is written
        self.read = 0
        self.process = subprocess.Popen(
            self.command,
            cwd=tools.ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            preexec_fn=os.setpgrp,
        )

    def new_lines(self, *, all_of_it: bool) -> list[str]:
        """What it has printed since the last time: whole lines, or with the rest of one that has no end."""
        data = os.pread(self.output.fileno(), 1 << 24, self.read)
        data = data if all_of_it else data[: data.rfind(b"\n") + 1]
        self.read += len(data)
        lines = data.decode(errors="replace").splitlines()
        self.lines = [*self.lines, *(line[:300] for line in lines)][-TAIL:]
        return lines

    def kill(self) -> None:
        """The process and all of its children. What waits for a GPU that never answers may outlive it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)

    def note(self, outcome: str = "running") -> None:
        """Brings the entry up to date."""
        items = list(journal.read(self.journal).values())
        bad = [item for item in items if item.outcome in (journal.FAILED, journal.DIED)]
        self.entry |= {
            "outcome": outcome,
            "seconds": round(time.monotonic() - self.began, 1),
            "starts": self.starts,
            "in": next((item.name for item in items if item.outcome == journal.RUNNING), ""),
            "items": dict(Counter(item.outcome for item in items)),
            "bad": [{"item": item.name, "outcome": item.outcome, "why": item.why} for item in bad[:MOST_BAD]],
        }

    def end(self, why: str) -> None:
        """The step is over. why: it was stopped; "": its process has ended by itself."""
        code = self.process.returncode
        started_again = self.starts > 1 and code == NOTHING_LEFT
        self.note()
        ok = not why and not self.entry["bad"] and (code == 0 or started_again)
        self.entry |= {"ok": ok, "exit": code, "outcome": "done" if ok else why or _in_words(code)}
        if not ok:
            self.entry["tail"] = self.lines


def _in_words(code: int) -> str:
    """What an exit status says."""
    if code >= 0:
        return f"exit {code}"
    with contextlib.suppress(ValueError):
        return f"ended by {signal.Signals(-code).name}"
    return f"ended by signal {-code}"


class Runner:
    """Steps, phase by phase, in `seconds` for everything. name: of the report and the log, in the folder `out`."""

    def __init__(self, name: str, out: Path, seconds: float) -> None:
        self.name, self.out = name, out.resolve()
        self.began = time.monotonic()
        self.deadline = self.began + seconds
        self.out.mkdir(parents=True, exist_ok=True)
        self.path = self.out / f"{name}.json"
        self.log = (self.out / f"{name}.log").open("w")
        self.scratch = tempfile.TemporaryDirectory(prefix=f"{name}-")
        self.folder = Path(self.scratch.name)  # for files that do not outlive the run
        self.report: dict[str, Any] = {
            "command": name,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": tools.commit(),
            "seconds": seconds,
            "finished": False,
            "ok": False,
            "plan": [],
            "steps": [],
        }
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        self.save()

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def plan(self, *phases: tuple[Sequence[Step], int]) -> None:
        """Prints and keeps when each step should begin and end. phases: steps, and how many at once."""
        clock = 0.0
        self.say(f"a plan for {_clock(self.left())}, as it should go; at the right the most that a step may take")
        for steps, at_once in phases:
            free = [clock] * at_once
            for step in steps:
                begins = min(free)
                ends = begins + (0.0 if step.unless else step.expected)
                free[free.index(begins)] = ends
                self.report["plan"].append({"step": step.name, "begins": begins, "ends": ends, "limit": step.limit})
                why = f"  not here: {step.unless}" if step.unless else ""
                self.say(f"  {_clock(begins)} – {_clock(ends)}  {step.name:32s} {_clock(step.limit)}{why}")
            clock = max(free)
        self.say(f"  {_clock(clock)}  the end")
        self.save()

    def run(self, steps: Sequence[Step], at_once: int = 1) -> bool:
        """Runs them in this order, so many at a time. Whether all went well."""
        waiting, running = list(steps), list[Running]()
        before = len(self.report["steps"])
        saved = 0.0
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    begun = self._begin(waiting.pop(0))
                    running += [begun] if begun else []
                running = [each for each in running if not self._over(each)]
                if running and time.monotonic() - saved > 1:
                    for each in running:
                        each.note()
                    self.save()
                    saved = time.monotonic()
                time.sleep(0.05 if running else 0)
        except BaseException:
            for each in running:
                self._stop(each, "stopped: the whole run was ended")
            raise
        finally:
            self.save()
        return all(entry["ok"] for entry in self.report["steps"][before:])

    def _begin(self, step: Step) -> Running | None:
        entry = {"step": step.name, "outcome": "running", "ok": False, "expected": step.expected, "limit": step.limit}
        self.report["steps"].append(entry)
        why = step.unless or ("no time left" if self.left() < LEAST_SECONDS else "")
        if not why:
            self._write(f"{step.name}: begins")
            ends = min(time.monotonic() + step.limit, self.deadline)
            try:
                return Running(step, entry, self.folder, ends, self.report["commit"])
            except OSError as error:
                why = f"cannot be started: {error}"
        entry["outcome"] = why
        self._tell(entry)
        return None

    def _over(self, running: Running) -> bool:
        """Looks after a step; whether it is over. What ended its process is named, and what is left goes on."""
        self._log(running, all_of_it=False)
        if running.process.poll() is None:
            if time.monotonic() < running.ends:
                return False
            self._stop(running, "stopped")
            return True
        running.kill()  # children that it has left behind
        self._log(running, all_of_it=True)
        code = running.process.returncode
        died = journal.close(running.journal, _in_words(code) if code != 1 else "hung; the log has its traceback")
        if died:
            self.say(f"{running.step.name}: DIED in {died.name}: {died.why}")
        enough_time = running.ends - time.monotonic() > LEAST_SECONDS
        if (died or code == journal.START_ANEW) and running.starts < MOST_STARTS and enough_time:
            running.start()
            return False
        self._end(running, "")
        return True

    def _stop(self, running: Running, why: str) -> None:
        running.kill()
        self._log(running, all_of_it=True)
        journal.close(running.journal, why)
        self._end(running, why)

    def _end(self, running: Running, why: str) -> None:
        running.end(why)
        if running.left_out:
            self.log.write(f"{running.step.name} | ... {running.left_out} lines are left out; the last ones:\n")
            self.log.writelines(f"{running.step.name} | {line}\n" for line in running.lines)
        path = running.step.writes
        if path and path.exists():
            with contextlib.suppress(ValueError):  # of one that was stopped in the middle of it
                self.report[running.step.name] = json.loads(path.read_text())
        self._tell(running.entry)

    def _tell(self, entry: dict[str, Any]) -> None:
        """What a step that is over has come to."""
        self.save()
        items = ", ".join(f"{count} {outcome}" for outcome, count in sorted(entry.get("items", {}).items()))
        seconds = f" in {entry['seconds']:.0f} s" if "seconds" in entry else ""
        self.say(f"{entry['step']}: {entry['outcome']}{seconds}{items and ': '}{items}")
        for bad in entry.get("bad", [])[:10]:
            self.say(f"    {bad['outcome']}: {bad['item']}: {bad['why'].partition(chr(10))[0][:200]}")

    def _log(self, running: Running, *, all_of_it: bool) -> None:
        for line in running.new_lines(all_of_it=all_of_it):
            if running.logged > MOST_LOGGED:
                running.left_out += 1
            else:
                running.logged += self.log.write(f"{running.step.name} | {line}\n")
        self.log.flush()

    def say(self, text: str) -> None:
        """To the terminal and the log, with the time since the beginning."""
        print(self._write(text), flush=True)

    def _write(self, text: str) -> str:
        line = f"{self.name} {_clock(time.monotonic() - self.began)}  {text}"
        self.log.write(line + "\n")
        self.log.flush()
        return line

    def save(self) -> None:
        """Writes the report, whole or not at all."""
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(json.dumps(self.report, indent=1) + "\n")
        part.replace(self.path)

    def finish(self) -> int:
        """The exit status: 0 where every step went well."""
        bad = [entry["step"] for entry in self.report["steps"] if not entry["ok"]]
        self.report |= {"finished": True, "ok": not bad}
        self.save()
        self.say(f"{'RED: ' + ', '.join(bad) if bad else 'green'}; report in {self.path}")
        self.scratch.cleanup()
        return 1 if bad else 0


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


# The steps that both commands begin with.

SEES_A_GPU = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 'torch sees no CUDA device')"
DEVICE = Step("device", [sys.executable, "-c", SEES_A_GPU], 15, 150)  # torch comes from a disk that nobody has read


def build(*, cuda: bool) -> Step:
    """The compiled half, in place; of the CUDA half only what the GPU of this machine runs. A second later where it is
    built.
    """
    here = tools.architecture() if cuda else ""
    options = f" -DFRCNN_FAST_CUDA_ARCHITECTURES={here}-real" if here else ""
    environment = {
        "FRCNN_FAST_CUDA": "ON" if cuda else "OFF",
        "CMAKE_ARGS": os.environ.get("CMAKE_ARGS", "") + options,
    }
    name, expected = ("build", 60) if cuda else ("build without CUDA", 30)
    return Step(name, [sys.executable, "setup.py", "build_ext", "--inplace"], expected, 4 * expected, environment)


def prepare(runner: Runner, device: str) -> bool:
    """Builds. Whether the CUDA half is there (on "cpu": whether the rest is); without it, what needs none can go on.
    SystemExit(2) where there is no GPU.
    """
    if device == "cpu":
        return runner.run([build(cuda=False)])
    if not runner.run([DEVICE]):
        runner.finish()
        raise SystemExit(2)
    return runner.run([build(cuda=True)]) or (runner.run([build(cuda=False)]) and False)


def first_steps(device: str) -> list[Step]:
    """What `prepare` runs, for the plan."""
    return [build(cuda=False)] if device == "cpu" else [DEVICE, build(cuda=True)]
