"""A run from its first update to its last file."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from frcnn_fast.data import Batch, DetectionDataset, read_proposals, write_proposals
from frcnn_fast.data.sheet import with_sheet
from frcnn_fast.evaluate import evaluate
from frcnn_fast.evaluation import RecallResult, VocResult
from frcnn_fast.io import load_checkpoint, write_json
from frcnn_fast.model import FasterRCNN, save_detector
from frcnn_fast.propose import propose
from frcnn_fast.recall import recall
from frcnn_fast.training.batches import TrainingBatches
from frcnn_fast.training.checkpoints import Checkpoints
from frcnn_fast.training.drawings import draw_first
from frcnn_fast.training.folder import RunFolder
from frcnn_fast.training.journal import Journal
from frcnn_fast.training.loop import Record, fit
from frcnn_fast.training.plan import plan
from frcnn_fast.training.schemes import CHECKPOINT, FROM_FILES, FROM_RPN, PROPOSALS, Stage
from frcnn_fast.training.state import Training
from frcnn_fast.training.tree import RunConfig
from frcnn_fast.visualize import plot_losses


@dataclasses.dataclass
class TrainResult:
    """What a run leaves behind."""

    detector: FasterRCNN
    out: Path  # the run's folder
    iterations: int
    stopped_by: signal.Signals | None  # Ctrl-C or SIGTERM; None where the training came to its end
    evaluation: VocResult | None  # None without a test set, and where only the RPN was trained
    unreadable: list[str]  # errors of the images that were left out
    recall: RecallResult | None = None  # where only the RPN was trained


class Session:
    """What happens at a record, a checkpoint, an evaluation and the end. All ranks do the same; the first one writes
    and speaks.

    Args:
        given: proposals for a scheme that trains on given ones, by image id.
    """

    def __init__(
        self,
        training: Training,
        folder: RunFolder,
        config: RunConfig,
        dataset: DetectionDataset,
        test: DetectionDataset | None,
        given: Mapping[str, Tensor] | None,
        callback: Callable[[Record], bool | None] | None,
        progress: bool,
    ) -> None:
        self.training, self.folder, self.config = training, folder, config
        self.dataset, self.test, self.given = dataset, test, given
        self.callback, self.progress = callback, progress
        self.ranks, self.options = training.ranks, training.options
        self.checkpoints = Checkpoints(folder.checkpoints, self.options.keep)
        self.unreadable: dict[str, None] = {}
        first, size = self.ranks.is_first, self.options.batch_size
        self.journal = Journal(
            folder if first else None,
            training.total * size,
            training.done * size,
            len(dataset),
            progress,
            self.options.tensorboard,
            training.done,
        )

    def run(self, *begins: str) -> TrainResult:
        """Train to the end, evaluate, draw. `begins` says from what and where."""
        training, from_weights = self.training, self.config.run.weights is not None
        with self.journal:
            told = plan(training.detector, self.options, len(self.dataset), training.device, from_weights)
            self.journal.say([*told, *begins])
            if training.done:
                self.save_weights(self.folder.weights)  # the run may have been killed between the two
            fitted = fit(
                training,
                self.batches,
                log=self.log,
                save=self.save,
                evaluate=self.evaluate if self.test is not None else None,
                finish=self.finish,
                advance=self.journal.advance,
            )
        detector = training.outcome.eval()
        result = TrainResult(detector, self.folder.path, *fitted, evaluation=None, unreadable=list(self.unreadable))
        if self.ranks.is_first:
            plot_losses(self.folder.metrics, self.folder.losses)
        if self.test is not None and not fitted.stopped_by:
            self.ranks.wait_for_all()
            self.judge(result, self.test)
        return result

    def judge(self, result: TrainResult, test: DetectionDataset) -> None:
        """The evaluation of the best weights, or the recall where only the RPN was trained, and drawings."""
        detector, folder, workers = result.detector, self.folder, self.options.workers
        if detector.config.parts == "rpn":
            if self.ranks.is_first:
                found = propose(detector, test, workers=workers, progress=self.progress)
                write_proposals(folder.test_proposals, found)
                result.recall = recall(found, test)
                write_json(folder.recall, result.recall.to_dict())
            return
        if self.training.progress.best is not None:
            detector.load_state_dict(load_checkpoint(folder.best).tensors)
        result.evaluation = evaluate(detector, test, workers=workers, progress=self.progress, proposals=self.given)
        if self.ranks.is_first:
            write_json(folder.evaluation, result.evaluation.to_dict())
            if self.options.eval_every == 0:
                self.journal.evaluated(result.iterations, _scores(result.evaluation))
            draw_first(detector, test, folder.drawings, self.config.run.drawings, self.given)

    def batches(self, done: int, left: int) -> Iterable[Batch]:
        training = self.training
        source, boxes = training.stages[training.stage].proposals, self.given
        if source not in (FROM_RPN, FROM_FILES):
            boxes = read_proposals(self.folder.of_stage(source).proposals)
        config = training.detector.config
        found: Iterable[Batch] = TrainingBatches(
            self.dataset,
            config,
            self.options,
            training.device.type == "cuda",
            total=left,
            start=done,
            unreadable=self.unreadable,
            ranks=self.ranks,
            proposals=boxes,
        )
        if done or not self.ranks.is_first:
            return found
        return with_sheet(found, self.folder.sheet, training.detector.class_names, config.preprocess)

    def log(self, record: Record) -> bool | None:
        self.journal.record(record)
        return self.callback(record) if self.callback and self.ranks.is_first else None

    def save(self) -> None:
        state = self.training.state()
        if self.ranks.is_first:
            self.checkpoints.save(state)
        self.save_weights(self.folder.weights)

    def save_weights(self, file: Path) -> None:
        """What `evaluate` and `detect` take."""
        extra: dict[str, Any] = {"iteration": self.training.done}
        if self.config.data is not None:
            extra["data"] = self.config.data.to_dict()
        if self.config.run.proposals:
            extra["proposals"] = self.config.run.proposals
        if self.ranks.is_first:
            save_detector(file, self.training.outcome, extra=extra)

    def evaluate(self) -> float | None:
        """The score of the weights as they are; None in a stage after which they detect nothing yet."""
        training = self.training
        parts = training.detector.config.parts
        if self.test is None or parts == "rpn" or (parts == "roi_head" and self.given is None):
            return None
        result = evaluate(
            training.outcome, self.test, workers=self.options.workers, progress=False, proposals=self.given
        )
        scores = _scores(result)
        score = scores[self.options.best_by]
        best = training.progress.is_better(score)
        if best:
            self.save_weights(self.folder.best)
        self.journal.evaluated(training.done, scores, best)
        return score

    def finish(self, stage: Stage) -> None:
        """Keep what a stage leaves for a later one, or for the user."""
        kept, detector = self.folder.of_stage(stage.name), self.training.outcome
        if CHECKPOINT in stage.keeps:
            self.save_weights(kept.weights)
        if PROPOSALS in stage.keeps and self.ranks.is_first:
            found = propose(detector, self.dataset, workers=self.options.workers, progress=self.progress)
            write_proposals(kept.proposals, found)
        self.ranks.wait_for_all()


def _scores(result: VocResult) -> dict[str, float]:
    return {"map07": result.map07, "map_area": result.map_area}
