"""A training run: from a data set to a folder with weights, records, an evaluation and drawings."""

from __future__ import annotations

import dataclasses
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import frcnn_fast
from frcnn_fast._device import choose_device
from frcnn_fast._progress import losses_in_short, progress_bar
from frcnn_fast.data import (
    Batch,
    DetectionDataset,
    ProposalSet,
    check_datasets,
    class_names_of,
    read_proposals,
    write_proposals,
)
from frcnn_fast.data.sheet import with_sheet
from frcnn_fast.data.targets import Target, checked_sample
from frcnn_fast.data.transforms import Sample
from frcnn_fast.evaluate import detect_all, evaluate
from frcnn_fast.evaluation import RecallResult, VocResult
from frcnn_fast.inference import Detector
from frcnn_fast.io import append_jsonl, load_weights, write_json
from frcnn_fast.model import DetectorConfig, FasterRCNN, build_detector, load_pretrained, save_detector
from frcnn_fast.model.presets import config_for
from frcnn_fast.model.protocol import freeze_stages
from frcnn_fast.propose import propose
from frcnn_fast.recall import recall
from frcnn_fast.training.batches import TrainingBatches
from frcnn_fast.training.checkpoints import Checkpoints
from frcnn_fast.training.folder import cut_back, new_run
from frcnn_fast.training.loop import Training, fit
from frcnn_fast.training.options import TrainOptions, recipe
from frcnn_fast.training.schemes import CHECKPOINT, FROM_FILES, FROM_RPN, PROPOSALS, Stage, given_proposals
from frcnn_fast.training.start import Start, resumed
from frcnn_fast.visualize import plot_losses, save_image, side_by_side


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
    proposals: Mapping[str, Any] | None = None,
    drawings: int = 8,
    callback: Callable[[dict[str, Any]], bool | None] | None = None,
    notes: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train a detector on any map-style data set (see `frcnn_fast.data` for its items).

    The run's folder receives config.json (all settings), train_batch.jpg (the first batches with their boxes),
    metrics.jsonl, loss.png, model.safetensors and checkpoints/, and with `test` evaluation.json and drawings/. Files
    are written beside their places and renamed, so that the ones before stay whole until then. Targets are checked
    before the first update (see `frcnn_fast.data.check_dataset`). Schemes of several stages keep weights and proposals
    of each in stages/; where only the RPN is trained, its proposals and their recall take the evaluation's place.

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
        options: how to train; default: what suits the backbone. When resuming only those of `CHANGEABLE` may differ
            from the run's.
        weights: file of published classifier weights to start from (.safetensors, .npz, .pth).
        test: images to evaluate on at the end.
        proposals: boxes [N, 4] by image id, in pixels of the image, of the training and test images: for the scheme
            "fast-rcnn", when resuming too (`frcnn_fast.data.read_proposals`).
        drawings: how many of them to draw.
        callback: called with every record of metrics.jsonl; returning True ends the training early.
        notes: kept in config.json and in the checkpoint (`frcnn_fast.io.load_checkpoint(out).extra`), in JSON's types.
        progress: whether to show a bar.

    Ctrl-C and SIGTERM end the iteration in progress, save the checkpoint and return with `stopped_by` set.

    Raises:
        ValueError: the data, the settings or the weights do not fit each other; a checkpoint is corrupt (the last good
            one is named).
        FloatingPointError: training diverged; the last checkpoint stays.
    """
    if resume is None:
        if out is None:
            raise ValueError("out: got nothing, expected the folder of the run (or resume=)")
        start = Start(config, options, weights, notes or {})
    else:
        if out is not None or config is not None or weights is not None or overwrite:
            raise ValueError("out, config, weights, overwrite: a resumed run has its own; leave them out")
        start = resumed(resume, options)
    suits = config_for(backbone) if backbone is not None else start.config or DetectorConfig()
    config, options = start.config or suits, start.options or recipe(suits.backbone)
    stages = options.stages()
    given = given_proposals(proposals, options.scheme, stages, dataset, test)
    config = dataclasses.replace(config, parts=stages[-1].parts)
    device = choose_device(options.device)
    torch.manual_seed(options.seed)
    detector = build_detector(class_names_of(dataset), config, backbone=backbone, head=head)
    if start.weights is not None and (start.state is None or any(stage.anew for stage in stages)):
        load_pretrained(detector, load_weights(start.weights), source=os.fspath(start.weights))
    if options.freeze is None:
        frozen = getattr(detector.backbone, "frozen_stages", 0) if start.weights is not None else 0
        options = dataclasses.replace(options, freeze=frozen)
    freeze_stages(detector.backbone, options.freeze or 0)
    detector.seed(options.seed)
    detector.to(device)
    check_datasets(dataset, test)
    training = Training(detector, options, device)

    if start.folder is None:
        settings = {
            "versions": {"frcnn_fast": frcnn_fast.__version__, "torch": torch.__version__},
            "class_names": detector.class_names,
            "detector": detector.config.to_dict(),
            "training": {**dataclasses.asdict(options), "device": str(device)},
            "weights": start.weights,
            **start.notes,
        }
        folder = new_run(out or "", settings, overwrite)
    else:
        folder = start.folder
    checkpoints = Checkpoints(folder.checkpoints, options.keep)
    if start.folder is not None:
        if start.state is not None:
            training.restore(start.state)
        checkpoints.cut_back(training.done)
        cut_back(folder.metrics, training.done, evaluated=0)

    unreadable: dict[str, None] = {}
    with progress_bar(training.total * options.batch_size, smoothing=0.05, disable=not progress) as bar:
        bar.update(training.done * options.batch_size)

        def batches(done: int, left: int) -> Iterable[Batch]:
            pinned = device.type == "cuda"
            source, boxes = stages[training.stage].proposals, given
            if source not in (FROM_RPN, FROM_FILES):
                boxes = read_proposals(folder.of_stage(source).proposals)
            found: Iterable[Batch] = TrainingBatches(
                dataset, config, options, pinned, total=left, start=done, unreadable=unreadable, proposals=boxes
            )
            return found if done else with_sheet(found, folder.sheet, detector.class_names, config.preprocess)

        def log(record: dict[str, Any]) -> bool | None:
            append_jsonl(folder.metrics, record)
            bar.set_postfix_str(losses_in_short(record), refresh=False)
            return callback(record) if callback else None

        def save_weights() -> None:
            save_detector(folder.weights, detector, extra={**start.notes, "iteration": training.done})

        def save() -> None:
            checkpoints.save(training.state())
            save_weights()

        def finish(stage: Stage) -> None:
            kept = folder.of_stage(stage.name)
            if CHECKPOINT in stage.keeps:
                save_detector(kept.weights, detector, extra={**start.notes, "iteration": training.done})
            if PROPOSALS in stage.keeps:
                write_proposals(kept.proposals, propose(detector, dataset, workers=options.workers, progress=progress))

        if start.state is not None:
            save_weights()  # it may have been interrupted between the two
        fitted = fit(training, batches, log=log, save=save, finish=finish, advance=bar.update)
    detector.eval()
    result = TrainResult(detector, folder.path, *fitted, evaluation=None, unreadable=list(unreadable))
    plot_losses(folder.metrics, folder.losses)
    if fitted.stopped_by or test is None:
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
    append_jsonl(folder.metrics, {"evaluated": fitted.iterations, **figures})
    _draw(detector, test, folder.drawings, drawings, given)
    return result


class _One:
    """A data set of one image."""

    def __init__(self, image: Tensor, target: Target, class_names: list[str]) -> None:
        self.sample, self.class_names = (image, target), class_names

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return self.sample


def _draw(detector: FasterRCNN, dataset: DetectionDataset, folder: Path, count: int, given: ProposalSet | None) -> None:
    """Detections beside the truth, for the first `count` images."""
    finder = Detector(detector)
    for index in range(min(count, len(dataset))):
        try:
            image, target = checked_sample(dataset[index], name=index, cut=[])
            if given is None:
                found = finder(image)
                detections = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}
            else:
                one = _One(image, target, detector.class_names)
                detections = next(detect_all(detector, one, given, progress=False))
            drawing = side_by_side(image, detections, target, detector.class_names)
            name = target["image_id"].replace(os.sep, "_")[:80]
            save_image(folder / f"{name}.png", drawing)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:  # a drawing is not worth the run's result
            warnings.warn(f"test image {index} was not drawn ({error})", stacklevel=2)
