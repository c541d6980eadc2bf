"""What a process works through, noted before each item begins and when it has ended, so that another can go on.

A row or a test on a GPU may end its process (a crash), never end (a hang), or spoil the process for all that come after
it (a CUDA error, which sticks). The journal then names it, and whoever started the process (`bench.steps`) starts it
again: it passes over everything that the journal names.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

START_ANEW = 75  # exit status: the CUDA context is gone, so what is left needs a new process
RUNNING, PASSED, FAILED, SKIPPED, DIED = "running", "passed", "failed", "skipped", "died"


@dataclass(frozen=True)
class Item:
    """A row or a test. outcome: as above. why: it failed, was skipped or died. at: when that was noted, as of 1970."""

    name: str
    outcome: str = RUNNING
    why: str = ""
    at: float = field(default_factory=time.time)


class Journal:
    """path: where it is kept; None: nowhere. limit: seconds after which the process of an item that still runs ends
    itself, with a traceback of where it hangs.
    """

    def __init__(self, path: Path | None, limit: float | None = None) -> None:
        self.path, self.limit = path, limit
        self.before = read(path) if path else {}
        self.start = min((item.at for item in self.before.values()), default=time.time())
        self._stderr = os.dup(2)  # which a test runner may redirect later

    def begin(self, name: str) -> None:
        """Before it runs."""
        self._note(Item(name))
        if self.limit:
            faulthandler.dump_traceback_later(self.limit, exit=True, file=self._stderr)

    def end(self, name: str, outcome: str, why: str = "") -> str:
        """After it ran. Why the process can go on no more, or ""."""
        faulthandler.cancel_dump_traceback_later()
        lost = why_lost()
        if lost:
            outcome, why = FAILED, f"it leaves a CUDA error: {lost}; {why}".removesuffix("; ")
        self._note(Item(name, outcome, why[:2000]))
        return lost

    def _note(self, item: Item) -> None:
        if self.path:
            note(self.path, item)


def note(path: Path, item: Item) -> None:
    """Adds a line."""
    with path.open("a") as file:
        file.write("\n" + json.dumps(asdict(item)) + "\n")  # whatever a process that died has left there


def read(path: Path) -> dict[str, Item]:
    """The newest of every item, by name. A line that was not written to its end does not count."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            item = Item(**json.loads(line))
            found[item.name] = item
    return found


def close(path: Path, why: str) -> Item | None:
    """Of a process that has ended: what it was in the middle of, now noted as what it died of."""
    item = next((item for item in read(path).values() if item.outcome == RUNNING), None)
    if item:
        note(path, item := Item(item.name, DIED, why))
    return item


def why_lost() -> str:
    """Why this process can use its GPU no more, or ""."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    try:
        torch.cuda.synchronize()
    except Exception as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""
