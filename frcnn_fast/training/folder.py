"""The folder of a training run: which files it has, and that no other run's are lost."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

from frcnn_fast.io import PathLike, atomic_path, read_jsonl, write_jsonl


class RunFolder:
    """The names of a run's files."""

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        self.settings = self.path / "config.toml"
        self.metrics = self.path / "metrics.jsonl"
        self.log = self.path / "train.log"
        self.weights = self.path / "model.safetensors"
        self.best = self.path / "best.safetensors"
        self.losses = self.path / "loss.png"
        self.evaluation = self.path / "evaluation.json"
        self.sheet = self.path / "train_batch.jpg"
        self.drawings = self.path / "drawings"
        self.board = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.proposals = self.path / "proposals.npz"  # of the training images
        self.test_proposals = self.path / "test_proposals.npz"
        self.recall = self.path / "recall.json"
        self.stages = self.path / "stages"

    @property
    def files(self) -> tuple[Path, ...]:
        pictures = self.losses, self.sheet, self.drawings, self.board
        proposals = self.proposals, self.test_proposals, self.recall, self.stages
        texts = self.settings, self.metrics, self.log, self.evaluation
        return *texts, self.weights, self.best, self.checkpoints, *proposals, *pictures

    def of_stage(self, name: str) -> RunFolder:
        """Where the stage of that name keeps its weights and proposals; "": here."""
        return RunFolder(self.stages / name) if name else self

    @property
    def is_free(self) -> bool:
        """Whether it has no file of a run; other files do not matter."""
        return not any(file.exists() for file in self.files)


def cut_back(metrics: Path, done: int, evaluated: int) -> None:
    """Remove the records after iteration `done` from a file of records, those of evaluations after iteration
    `evaluated`, and a last line that was not finished."""
    if metrics.exists():
        last = {"iteration": done, "evaluated": evaluated}
        records = read_jsonl(metrics)
        write_jsonl(metrics, [r for r in records if all(r.get(key, 0) <= most for key, most in last.items())])


def free_folder(out: PathLike) -> RunFolder:
    """`out`, or else the first of `out`-2, `out`-3, ... without a run in it."""
    out = os.fspath(out).rstrip(os.sep) or os.sep
    names = itertools.chain([out], (f"{out}-{number}" for number in itertools.count(2)))
    return next(folder for folder in map(RunFolder, names) if folder.is_free)


def new_run(out: PathLike, settings: str, overwrite: bool = False) -> RunFolder:
    """Begin a run: its folder, with its settings in it.

    Args:
        out: the folder; where it has a run already, `free_folder` chooses another.
        settings: the text of config.toml.
        overwrite: delete the run that is there instead.
    """
    if overwrite:
        folder = RunFolder(out)
        for file in folder.files:
            shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
    while True:
        folder = free_folder(out)
        folder.path.mkdir(parents=True, exist_ok=True)
        try:
            open(folder.settings, "x").close()  # two runs that begin at once do not get the same folder
        except FileExistsError:
            continue
        with atomic_path(folder.settings) as beside:
            beside.write_text(settings, encoding="utf-8")
        return folder
