"""A training run: from a data set to a folder with weights, records, an evaluation and drawings."""

from __future__ import annotations

import dataclasses
import os
import signal
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frcnn_fast import __version__
from frcnn_fast._device import choose_device
from frcnn_fast._ranks import ranks
from frcnn_fast.data import Batch, DataConfig, DetectionDataset, check_datasets, class_names_of
from frcnn_fast.data.sheet import with_sheet
from frcnn_fast.data.targets import checked_sample
from frcnn_fast.evaluate import evaluate
from frcnn_fast.evaluation import VocResult
from frcnn_fast.inference import Detector
from frcnn_fast.io import load_checkpoint, load_weights, write_json
from frcnn_fast.model import DetectorConfig, FasterRCNN, build_detector, load_pretrained, save_detector
from frcnn_fast.model.presets import config_for
from frcnn_fast.model.protocol import freeze_stages
from frcnn_fast.training.batches import TrainingBatches
from frcnn_fast.training.checkpoints import Checkpoints
from frcnn_fast.training.folder import RunFolder, cut_back, new_run
from frcnn_fast.training.journal import Journal
from frcnn_fast.training.loop import Record, Training, fit
from frcnn_fast.training.options import TrainOptions, recipe
from frcnn_fast.training.plan import plan
from frcnn_fast.training.start import Resumed, resumed
from frcnn_fast.training.tree import RunConfig, RunSettings, to_toml
from frcnn_fast.visualize import plot_losses, save_image, side_by_side


@dataclasses.dataclass
class TrainResult:
    """What a run leaves behind."""

    detector: FasterRCNN
    out: Path  # the run's folder
    iterations: int
    stopped_by: signal.Signals | None  # Ctrl-C or SIGTERM; None where the training came to its end
    evaluation: VocResult | None
    unreadable: list[str]  # errors of the images that were left out


def train(
    dataset: DetectionDataset,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    backbone: nn.Module | None = None,
    head: nn.Module | None = None,
    config: DetectorConfig | None = None,
    options: TrainOptions | None = None,
    weights: str | os.PathLike[str] | None = None,
    test: DetectionDataset | None = None,
    drawings: int = 8,
    callback: Callable[[dict[str, Any]], bool | None] | None = None,
    data: DataConfig | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train a detector on any map-style data set (see `frcnn_fast.data` for its items).

    The run's folder receives config.toml (all settings), train_batch.jpg (the first batches with their boxes),
    metrics.jsonl, train.log, loss.png, model.safetensors and checkpoints/, and with `test` evaluation.json and
    drawings/. Files are written beside their places and renamed, so that the ones before stay whole until then. Targets
    are checked before the first update (see `frcnn_fast.data.check_dataset`).

    Args:
        dataset: training images. One that cannot be read (ValueError or OSError) is left out with a warning.
        out: the run's folder. Where it has a run already, the new one goes to `out`-2, `out`-3, ...
        resume: instead of `out`, the folder of a run that was interrupted, in whatever way, or one of the files in its
            checkpoints/. It goes on from there with its own settings; on a processor the weights become the same, to
            the bit, as those of a run that was never interrupted. Records of later iterations are removed.
        overwrite: delete the run in `out` instead.
        backbone: one of your own (see `frcnn_fast.model.Backbone`). Default: the one that config.backbone names.
        head: a head of your own (see `FasterRCNN`).
        config: the detector's settings; default: those that suit the backbone.
        options: how to train; default: what suits the backbone. When resuming only "workers", "device" and "keep" may
            differ from the run's.
        weights: file of published classifier weights to start from (.safetensors, .npz, .pth).
        test: images to evaluate on, at the end and every options.eval_every iterations.
        drawings: how many of them to draw.
        callback: called with every record of metrics.jsonl; returning True ends the training early.
        data: what `dataset` and `test` were opened with, where it was that; kept in config.toml and in the checkpoint,
            so that a command finds them again.
        progress: whether to show a plan and a bar.

    Under torchrun all ranks call this: they share every mini-batch, options.batch_size counts the images of all, and
    the first one writes. With options.eval_every the best weights are kept in best.safetensors, and they are what
    the result, the evaluation and the drawings are made with; else the last ones.

    Ctrl-C and SIGTERM end the iteration in progress, save the checkpoint and return with `stopped_by` set.

    Raises:
        ValueError: the data, the settings or the weights do not fit each other; a checkpoint is corrupt (the last good
            one is named).
        FloatingPointError: training diverged; the last checkpoint stays.
    """
    if len(dataset) == 0:
        raise ValueError("dataset: got an empty data set, expected at least one image")
    old = None
    if resume is not None:
        if out is not None or config is not None or weights is not None or overwrite:
            raise ValueError("out, config, weights, overwrite: a resumed run has its own; leave them out")
        old = resumed(resume, options)
        whole = old.config
    elif out is None:
        raise ValueError("out: got nothing, expected the folder of the run (or resume=)")
    else:
        suits = config_for(backbone) if backbone is not None else config or DetectorConfig()
        options = (options or recipe(suits.backbone)).for_images(len(dataset))
        settings = RunSettings(None if weights is None else os.fspath(weights), drawings)
        whole = RunConfig(data, config or suits, options, settings)
    with ranks() as job:
        device = choose_device(job.device(whole.training.device))
        torch.manual_seed(whole.training.seed)
        detector = build_detector(class_names_of(dataset), whole.detector, backbone=backbone, head=head)
        fresh = old is None or old.state is None
        frozen = _prepare(detector, whole.training, whole.run.weights if fresh else None)
        whole = dataclasses.replace(
            whole, detector=detector.config, training=dataclasses.replace(whole.training, freeze=frozen)
        )
        detector.to(device)
        detector.seed(whole.training.seed + (job.rank << 32))
        torch.manual_seed(whole.training.seed + (job.rank << 32))  # each rank drops out other features
        job.made_by_first(lambda: check_datasets(dataset, test))
        training = Training(detector, whole.training, device, job)
        if old is not None and old.state is not None:
            training.restore(old.state)
        folder = job.made_by_first(lambda: _begin(whole, out or "", overwrite) if old is None else _go_on(old))
        progress = progress and job.is_first
        run = _Run(training, folder, dataset, test, whole, callback, progress)
        return run.trained(begins=f"results in {folder.path}" if old is None else "")


def _begin(config: RunConfig, out: str | os.PathLike[str], overwrite: bool) -> RunFolder:
    if config.run.weights is not None:  # the run may be repeated from elsewhere
        settings = dataclasses.replace(config.run, weights=os.path.abspath(config.run.weights))
        config = dataclasses.replace(config, run=settings)
    title = f"frcnn-fast train --config FILE repeats this run (frcnn_fast {__version__}, torch {torch.__version__})"
    return new_run(out, to_toml(config, title), overwrite)


def _go_on(old: Resumed) -> RunFolder:
    """Remove what the run has written after the state that it goes on from."""
    done = old.state.done if old.state else 0
    evaluated = old.state.facts["progress"]["evaluated"] if old.state else 0
    Checkpoints(old.folder.checkpoints).cut_back(done)
    cut_back(old.folder.metrics, done, evaluated)
    return old.folder


def _prepare(detector: FasterRCNN, options: TrainOptions, weights: str | None) -> int:
    """Load the weights to start from, and freeze the backbone's first stages; returns how many."""
    if weights is not None:
        load_pretrained(detector, load_weights(weights), source=weights)
    frozen = options.freeze
    if frozen is None:
        frozen = getattr(detector.backbone, "frozen_stages", 0) if weights is not None else 0
    freeze_stages(detector.backbone, frozen)
    return frozen


class _Run:
    """A run from its first update to its last file. All ranks do the same; the first one writes and speaks."""

    def __init__(
        self,
        training: Training,
        folder: RunFolder,
        dataset: DetectionDataset,
        test: DetectionDataset | None,
        config: RunConfig,
        callback: Callable[[Record], bool | None] | None,
        progress: bool,
    ) -> None:
        self.training, self.folder, self.config = training, folder, config
        self.dataset, self.test, self.callback, self.progress = dataset, test, callback, progress
        self.checkpoints = Checkpoints(folder.checkpoints, training.options.keep)
        self.unreadable: dict[str, None] = {}
        self.first = training.ranks.is_first
        size = training.options.batch_size
        self.journal = Journal(
            folder if self.first else None, training.total * size, training.done * size, len(dataset), progress
        )

    def trained(self, begins: str) -> TrainResult:
        training, options = self.training, self.training.options
        begins = begins or f"resumed after {training.done} of {training.total} iterations"
        from_weights = self.config.run.weights is not None
        with self.journal:
            self.journal.say(
                [*plan(training.detector, options, len(self.dataset), training.device, from_weights), begins]
            )
            if training.done:
                self.save_weights()  # the run may have been killed between the two
            fitted = fit(
                training,
                self.batches,
                log=self.log,
                save=self.save,
                evaluate=self.evaluate if self.test is not None else None,
                advance=self.journal.advance,
            )
        detector = training.outcome.eval()
        result = TrainResult(detector, self.folder.path, *fitted, evaluation=None, unreadable=list(self.unreadable))
        if self.first:
            plot_losses(self.folder.metrics, self.folder.losses)
        if self.test is None or fitted.stopped_by:
            return result
        training.ranks.wait_for_all()
        if training.progress.best is not None:
            detector.load_state_dict(load_checkpoint(self.folder.best).tensors)
        result.evaluation = evaluate(detector, self.test, workers=options.workers, progress=self.progress)
        if self.first:
            write_json(self.folder.evaluation, result.evaluation.to_dict())
            if options.eval_every == 0:
                self.journal.evaluated(fitted.iterations, _scores(result.evaluation), best=False)
            _draw(detector, self.test, self.folder.drawings, self.config.run.drawings)
        return result

    def batches(self, done: int, left: int) -> Iterable[Batch]:
        training, config = self.training, self.training.detector.config
        found: Iterable[Batch] = TrainingBatches(
            self.dataset,
            config,
            training.options,
            training.device.type == "cuda",
            total=left,
            start=done,
            unreadable=self.unreadable,
            ranks=training.ranks,
        )
        draw = self.first and not done
        return with_sheet(found, self.folder.sheet, training.detector.class_names, config.preprocess) if draw else found

    def log(self, record: Record) -> bool | None:
        self.journal.record(record)
        return self.callback(record) if self.callback and self.first else None

    def save(self) -> None:
        state = self.training.state()
        if self.first:
            self.checkpoints.save(state)
        self.save_weights()

    def save_weights(self, best: bool = False) -> None:
        if self.first:
            data = self.config.data
            extra = {"iteration": self.training.done, **({"data": data.to_dict()} if data else {})}
            save_detector(self.folder.best if best else self.folder.weights, self.training.outcome, extra=extra)

    def evaluate(self) -> float:
        training = self.training
        workers = training.options.workers
        assert self.test is not None
        scores = _scores(evaluate(training.outcome, self.test, workers=workers, progress=False))
        score = scores[training.options.best_by]
        best = training.progress.is_better(score)
        if best:
            self.save_weights(best=True)
        self.journal.evaluated(training.done, scores, best)
        return score


def _scores(result: VocResult) -> dict[str, float]:
    return {"map07": result.map07, "map_area": result.map_area}


def _draw(detector: FasterRCNN, dataset: DetectionDataset, folder: Path, count: int) -> None:
    """Detections beside the truth, for the first `count` images."""
    finder = Detector(detector)
    for index in range(min(count, len(dataset))):
        try:
            image, target = checked_sample(dataset[index], name=index, cut=[])
            found = finder(image)
            detections = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}
            drawing = side_by_side(image, detections, target, detector.class_names)
            name = target["image_id"].replace(os.sep, "_")[:80]
            save_image(folder / f"{name}.png", drawing)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:  # a drawing is not worth the run's result
            warnings.warn(f"test image {index} was not drawn ({error})", stacklevel=2)
