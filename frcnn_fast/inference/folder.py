"""Where a command's detections go: records, drawings, and what a stopped run needs to go on."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frcnn_fast._names import printable
from frcnn_fast.inference.inputs import is_video
from frcnn_fast.io import append_jsonl, read_jsonl, write_json, write_jsonl

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run has to do."""

    files: list[str]  # every input, in order
    drawings: dict[str, str]  # input that is not done yet -> the file name of its drawing


class ResultFolder:
    """A folder of detections.

    detections.jsonl    a record an image, as it is done
    detections-K.jsonl  the same of the process of rank K, while several work together
    detections.json     at the end: all records as one list
    plan.json           what the results depend on, and the names of the drawings
    a.png, ...          drawings
    """

    def __init__(self, path: str | os.PathLike[str], rank: int | None = None) -> None:
        """`rank`: of the process, where several write to the folder."""
        self.path = Path(path)
        self.lines, self.whole = self.path / "detections.jsonl", self.path / "detections.json"
        self.plan = self.path / "plan.json"
        self.own_lines = self.lines if rank is None else self.path / f"detections-{rank}.jsonl"

    def begin(
        self, files: Sequence[str], settings: Mapping[str, Any], *, overwrite: bool = False, resume: bool = False
    ) -> Plan:
        """Make the folder ready, for every process that will write to it.

        Args:
            files: all inputs.
            settings: what the detections depend on, in JSON's types.
            overwrite: delete the result that is there.
            resume: keep it and go on: inputs that have a record are done. Where there is none, begin.

        Raises:
            ValueError: there is a result and neither is wanted, or it was made with other settings.
        """
        earlier = [file for file in (*self._parts(), self.whole, self.plan) if os.path.lexists(file)]
        if earlier and not (overwrite or resume):
            raise ValueError(
                f"--out: {printable(os.fspath(earlier[0]))} is an earlier result; choose another folder, go on with it "
                "with --resume, or replace it with --overwrite"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        planned: dict[str, str] = {}
        records: list[Record] = []
        if resume and earlier:
            planned, records = self._checked_plan(settings), self._records()
            self.whole.unlink(missing_ok=True)
        else:
            for file in [*self._earlier_drawings(), *earlier]:
                file.unlink(missing_ok=True)
        self._write_lines(records)
        done = {name for record in records if (name := _done(record)) is not None}
        taken = {entry.name for entry in os.scandir(self.path)} | set(planned.values())
        for name in files:
            if name not in planned:
                planned[name] = _free_name(name, ".mp4" if is_video(name) else ".png", taken)
        write_json(self.plan, {**settings, "drawings": planned})
        return Plan(list(files), {name: planned[name] for name in files if name not in done})

    def add(self, record: Mapping[str, Any]) -> None:
        append_jsonl(self.own_lines, record)

    def finish(self, files: Sequence[str]) -> None:
        """Bring the records of every process into the order of `files` and write detections.json."""
        place = {name: number for number, name in enumerate(files)}
        # What an earlier run found in inputs that are not named now comes first.
        records = sorted(self._records(), key=lambda record: (place.get(record["image"], -1), record.get("frame", 0)))
        self._write_lines(records)
        write_json(self.whole, records)

    def first_frames(self, video: str) -> list[Record]:
        """The records of a video's first frames, as far as they are without a gap, from an earlier run."""
        frames = {r["frame"]: r for r in self._records() if r["image"] == video and "frame" in r}
        return [frames[number] for number in itertools.takewhile(frames.__contains__, itertools.count())]

    def _parts(self) -> list[Path]:
        """Every file of records that is there."""
        return [file for file in (self.lines, *sorted(self.path.glob("detections-*.jsonl"))) if file.is_file()]

    def _records(self) -> list[Record]:
        """Every record once."""
        records: dict[Any, Record] = {}
        for file in self._parts():
            for number, record in enumerate(read_jsonl(file), start=1):
                if not isinstance(record.get("image"), str):
                    raise ValueError(f"{printable(os.fspath(file))}: record {number} names no image; remove its line")
                records.setdefault((record["image"], record.get("frame")), record)
        return list(records.values())

    def _write_lines(self, records: Sequence[Record]) -> None:
        """These records in one file: whole lines only, whatever a crash left behind."""
        write_jsonl(self.lines, records)
        for file in self._parts():
            if file != self.lines:
                file.unlink()

    def _checked_plan(self, settings: Mapping[str, Any]) -> dict[str, str]:
        """The drawings of the earlier run; ValueError where it had other settings."""
        shown = printable(os.fspath(self.plan))
        try:
            plan, drawings = self._read_plan()
        except ValueError as error:
            raise ValueError(f"--resume: {shown} cannot be read ({error}); begin anew with --overwrite") from error
        for name, value in settings.items():
            if plan.get(name) != value:
                raise ValueError(
                    f"--resume: {shown} was made with {name} {plan.get(name)!r}, now it is {value!r}; give the same, "
                    "or choose another folder"
                )
        return drawings

    def _read_plan(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The plan's entries, and {input: its drawing}."""
        try:
            plan = json.loads(self.plan.read_bytes())
            return plan, {name: file for name, file in plan["drawings"].items() if os.path.basename(file) == file}
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ValueError(printable(str(error))) from error

    def _earlier_drawings(self) -> list[Path]:
        """The drawings that the earlier result lists or had planned, and no other file."""
        names: list[Any] = []
        with contextlib.suppress(ValueError):
            names += self._read_plan()[1].values()
        with contextlib.suppress(ValueError):
            names += [record.get("drawing") for file in self._parts() for record in read_jsonl(file)]
        return [self.path / name for name in names if isinstance(name, str) and name == os.path.basename(name)]


def _done(record: Record) -> str | None:
    """The input that this record says is done."""
    return record["image"] if "frame" not in record or record.get("last") else None


def _free_name(image: str, suffix: str, taken: set[str]) -> str:
    """A file name for an image's drawing that nothing in the folder has, so not the image itself either."""
    stem = Path(image).stem
    name, number = f"{stem}{suffix}", 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}{suffix}"
    taken.add(name)
    return name
