"""What a run tells while it goes on: records for programs, lines for people, a bar on a terminal."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from frcnn_fast._extras import require
from frcnn_fast._progress import losses_in_short, progress_bar
from frcnn_fast.io import append_jsonl
from frcnn_fast.training.folder import RunFolder
from frcnn_fast.training.plan import duration, time_left


class Journal:
    """metrics.jsonl, train.log and the console of one run.

    Args:
        folder: None writes nothing.
        total: images of the whole training; `seen` of them are behind.
        images: images of the training set, for the count of passes.
        progress: whether to say anything on the console.
        tensorboard: whether to write the records for TensorBoard too, from iteration `begin` on.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        total: int,
        seen: int,
        images: int,
        progress: bool,
        tensorboard: bool = False,
        begin: int = 0,
    ) -> None:
        self._folder, self._total, self._seen, self._images, self._progress = folder, total, seen, images, progress
        self._bar = progress_bar(total, initial=seen, smoothing=0.05, disable=not progress)
        self._told_time = False
        self._board: Any = None
        if tensorboard and folder is not None:
            require("tensorboard", "tensorboard")
            writer = require("torch.utils.tensorboard", "tensorboard").SummaryWriter
            # What a run wrote after the state that it goes on from is not shown.
            self._board = writer(os.fspath(folder.board), purge_step=begin + 1)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is not None:
            self.say([f"ended by {kind.__name__ if kind else ''}: {value}"], console=False)
        self._bar.close()
        if self._board is not None:
            self._board.close()

    def say(self, lines: Iterable[str], console: bool = True) -> None:
        """Lines into train.log, and onto the console."""
        if self._folder is None:
            return
        now = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
        with open(self._folder.log, "a", encoding="utf-8", errors="backslashreplace") as file:
            for line in lines:
                file.write(f"{now}  {line}\n")
                if console and self._progress:
                    self._bar.write(line, file=sys.stderr)

    def _show(self, values: Mapping[str, Any], iteration: int) -> None:
        if self._board is not None:
            for name, value in values.items():
                if name != "iteration":
                    self._board.add_scalar(name, value, iteration)

    def advance(self, images: int) -> None:
        self._seen += images
        self._bar.update(images)

    def record(self, record: Mapping[str, Any]) -> None:
        """The losses of the last iterations."""
        if self._folder is None:
            return
        append_jsonl(self._folder.metrics, record)
        self._show(record, record["iteration"])
        short, speed = losses_in_short(record), record["images_per_second"]
        self._bar.set_postfix_str(short, refresh=False)
        left = (self._total - self._seen) / speed
        line = (
            f"iteration {record['iteration']} (pass {self._seen / self._images:.2f})  {short}  lr {record['lr']:.3g}  "
            f"{speed:.3g} images/s, {duration(left)} left"
        )
        self.say([line], console=False)
        if not self._told_time:
            self._told_time = True
            self.say(time_left(left))

    def evaluated(self, done: int, scores: Mapping[str, float], best: bool = False) -> None:
        """The scores of the weights after `done` iterations."""
        if self._folder is not None:
            append_jsonl(self._folder.metrics, {"evaluated": done, **scores})
            self._show(scores, done)
            shown = "  ".join(f"{name} {score:.4f}" for name, score in scores.items())
            self.say([f"evaluation after {done} iterations: {shown}{', the best so far' * best}"])
