"""A training run: from a data set to a folder with weights, records, an evaluation and drawings."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frcnn_fast import __version__
from frcnn_fast._device import choose_device
from frcnn_fast.data import (
    Batch,
    DataConfig,
    DetectionDataset,
    check_datasets,
    class_names_of,
    read_proposals,
    write_proposals,
)
from frcnn_fast.data.sheet import with_sheet
from frcnn_fast.evaluate import evaluate
from frcnn_fast.evaluation import RecallResult, VocResult
from frcnn_fast.io import append_jsonl, write_json
from frcnn_fast.model import (
    DetectorConfig,
    FasterRCNN,
    build_detector,
    config_for,
    config_of,
    save_detector,
    start_from,
)
from frcnn_fast.model.protocol import freeze_stages
from frcnn_fast.propose import propose
from frcnn_fast.recall import recall
from frcnn_fast.training.batches import TrainingBatches
from frcnn_fast.training.checkpoints import Checkpoints
from frcnn_fast.training.drawings import draw_first
from frcnn_fast.training.folder import RunFolder, cut_back, new_run
from frcnn_fast.training.journal import Journal
from frcnn_fast.training.loop import Training, fit
from frcnn_fast.training.options import TrainOptions, recipe
from frcnn_fast.training.plan import plan
from frcnn_fast.training.schemes import CHECKPOINT, FROM_FILES, FROM_RPN, PROPOSALS, Stage, given_proposals
from frcnn_fast.training.start import resumed
from frcnn_fast.training.tree import RunConfig, RunSettings, to_toml
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
    proposals: Mapping[str, Any] | Sequence[str | os.PathLike[str]] | None = None,
    drawings: int = 8,
    callback: Callable[[dict[str, Any]], bool | None] | None = None,
    data: DataConfig | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train a detector on any map-style data set (see `frcnn_fast.data` for its items).

    The run's folder receives config.toml (all settings), train_batch.jpg (the first batches with their boxes),
    metrics.jsonl, train.log, loss.png, model.safetensors and checkpoints/, and with `test` evaluation.json and
    drawings/. Files are written beside their places and renamed, so that the ones before stay whole until then. Targets
    are checked before the first update (see `frcnn_fast.data.check_dataset`). A scheme of several stages keeps the
    weights and proposals of each in stages/; where only the RPN is trained, proposals.npz, test_proposals.npz and
    recall.json take the evaluation's place.

    Args:
        dataset: training images. One that cannot be read (ValueError or OSError) is left out with a warning.
        out: the run's folder. Where it has a run already, the new one goes to `out`-2, `out`-3, ...
        resume: instead of `out`, the folder of a run that was interrupted, in whatever way, or one of the files in its
            checkpoints/. It goes on from there with its own settings; on a processor the weights become the same, to
            the bit, as those of a run that was never interrupted. Records of later iterations are removed.
        overwrite: delete the run in `out` instead.
        backbone: one of your own (see `frcnn_fast.model.Backbone`). Default: the one that config.backbone names.
        head: a head of your own (see `FasterRCNN`).
        config: the detector's settings; default: those that suit the backbone, or those of the detector that `weights`
            names.
        options: how to train; default: what suits the backbone. When resuming only "workers", "device" and "keep" may
            differ from the run's.
        weights: what to start from: published classifier weights (.safetensors, .npz, .pth), or a detector, of which
            what fits is taken (`frcnn_fast.model.start_from`): a run's folder, or another library's checkpoint.
        test: images to evaluate on at the end.
        proposals: of the training and the test images, for the scheme "fast-rcnn": boxes [N, 4] by image id, in pixels
            of the image, or files of them (`frcnn_fast.data.read_proposals`). A resumed run finds files by itself.
        drawings: how many of them to draw.
        callback: called with every record of metrics.jsonl; returning True ends the training early.
        data: what `dataset` and `test` were opened with, where it was that; kept in config.toml and in the checkpoint,
            so that a command finds them again.
        progress: whether to show a plan and a bar.

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
        data, config, options, settings = old.config.data, old.config.detector, old.config.training, old.config.run
    elif out is None:
        raise ValueError("out: got nothing, expected the folder of the run (or resume=)")
    else:
        if config is None and backbone is None and weights is not None:
            config = config_of(weights)
        suits = config_for(backbone) if backbone is not None else config or DetectorConfig()
        config, options = config or suits, (options or recipe(suits.backbone)).for_images(len(dataset))
        files = () if proposals is None or isinstance(proposals, Mapping) else tuple(map(os.path.abspath, proposals))
        settings = RunSettings(None if weights is None else os.fspath(weights), files or None, drawings)
    stages = options.stages()
    given = given_proposals(
        proposals if isinstance(proposals, Mapping) else settings.proposals, options.scheme, stages, dataset, test
    )
    config = dataclasses.replace(config, parts=stages[-1].parts)
    if any(stage.through_boxes for stage in stages):
        config = dataclasses.replace(config, pooling="prroi_pool")
    device = choose_device(options.device)
    torch.manual_seed(options.seed)
    detector = build_detector(class_names_of(dataset), config, backbone=backbone, head=head)
    fresh = old is None or old.state is None or any(stage.anew for stage in stages)
    started = start_from(detector, settings.weights) if settings.weights is not None and fresh else None
    options = dataclasses.replace(options, freeze=_frozen(detector, options, started is not None))
    detector.seed(options.seed)
    detector.to(device)
    check_datasets(dataset, test)
    training = Training(detector, options, device)

    if old is None:
        if settings.weights is not None:  # the run may be repeated from elsewhere
            settings = dataclasses.replace(settings, weights=os.path.abspath(settings.weights))
        whole = RunConfig(data, detector.config, options, settings)
        title = f"frcnn-fast train --config FILE repeats this run (frcnn_fast {__version__}, torch {torch.__version__})"
        folder = new_run(out or "", to_toml(whole, title), overwrite)
    else:
        folder = old.folder
        if old.state is not None:
            training.restore(old.state)
        Checkpoints(folder.checkpoints).cut_back(training.done)
        cut_back(folder.metrics, training.done, evaluated=0)

    notes: dict[str, Any] = {"data": data.to_dict()} if data else {}
    if settings.proposals:
        notes["proposals"] = settings.proposals
    size = options.batch_size
    with Journal(folder, training.total * size, training.done * size, len(dataset), progress) as journal:
        begins = f"resumed after {training.done} of {training.total} iterations" if old else f"results in {folder.path}"
        taken = [] if started is None else started.lines()
        journal.say([*plan(detector, options, len(dataset), device, settings.weights is not None), *taken, begins])
        result = _run(training, folder, journal, dataset, given, notes, callback, progress)
    plot_losses(folder.metrics, folder.losses)
    if result.stopped_by or test is None:
        return result
    if detector.config.parts == "rpn":
        found = propose(detector, test, workers=options.workers, progress=progress)
        write_proposals(folder.test_proposals, found)
        result.recall = recall(found, test)
        write_json(folder.recall, result.recall.to_dict())
        return result
    result.evaluation = evaluate(detector, test, workers=options.workers, progress=progress, proposals=given)
    write_json(folder.evaluation, result.evaluation.to_dict())
    figures = {"map07": result.evaluation.map07, "map_area": result.evaluation.map_area}
    append_jsonl(folder.metrics, {"evaluated": result.iterations, **figures})
    draw_first(detector, test, folder.drawings, settings.drawings, given)
    return result


def _frozen(detector: FasterRCNN, options: TrainOptions, started: bool) -> int:
    """Freeze the backbone's first stages; returns how many."""
    frozen = options.freeze
    if frozen is None:
        frozen = getattr(detector.backbone, "frozen_stages", 0) if started else 0
    freeze_stages(detector.backbone, frozen)
    return frozen


def _run(
    training: Training,
    folder: RunFolder,
    journal: Journal,
    dataset: DetectionDataset,
    given: Mapping[str, Tensor] | None,
    notes: Mapping[str, Any],
    callback: Callable[[dict[str, Any]], bool | None] | None,
    progress: bool,
) -> TrainResult:
    """Everything between the settings and the evaluation. notes: for the checkpoints."""
    detector, options, device = training.detector, training.options, training.device
    checkpoints = Checkpoints(folder.checkpoints, options.keep)
    unreadable: dict[str, None] = {}

    def batches(done: int, left: int) -> Iterable[Batch]:
        pinned, boxes = device.type == "cuda", given
        source = training.stages[training.stage].proposals
        if source not in (FROM_RPN, FROM_FILES):
            boxes = read_proposals(folder.of_stage(source).proposals)
        found: Iterable[Batch] = TrainingBatches(
            dataset, detector.config, options, pinned, total=left, start=done, unreadable=unreadable, proposals=boxes
        )
        return found if done else with_sheet(found, folder.sheet, detector.class_names, detector.config.preprocess)

    def log(record: dict[str, Any]) -> bool | None:
        journal.record(record)
        return callback(record) if callback else None

    def save_weights(to: Path = folder.weights) -> None:
        save_detector(to, detector, extra={"iteration": training.done, **notes})

    def save() -> None:
        checkpoints.save(training.state())
        save_weights()

    def finish(stage: Stage) -> None:
        kept = folder.of_stage(stage.name)
        if CHECKPOINT in stage.keeps:
            save_weights(kept.weights)
        if PROPOSALS in stage.keeps:
            write_proposals(kept.proposals, propose(detector, dataset, workers=options.workers, progress=progress))

    if training.done:
        save_weights()  # the run may have been killed between the two
    fitted = fit(training, batches, log=log, save=save, finish=finish, advance=journal.advance)
    detector.eval()
    return TrainResult(detector, folder.path, *fitted, evaluation=None, unreadable=list(unreadable))
