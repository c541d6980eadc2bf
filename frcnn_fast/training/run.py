"""A training run: from a data set to a folder with weights, records, an evaluation and drawings."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from frcnn_fast import __version__
from frcnn_fast._device import choose_device
from frcnn_fast._ranks import ranks
from frcnn_fast.data import DataConfig, DetectionDataset, check_datasets, class_names_of
from frcnn_fast.io import remove_torn
from frcnn_fast.model import DetectorConfig, FasterRCNN, build_detector, config_for, config_of, start_from
from frcnn_fast.model.protocol import freeze_stages
from frcnn_fast.training.checkpoints import Checkpoints
from frcnn_fast.training.folder import RunFolder, cut_back, new_run
from frcnn_fast.training.options import TrainOptions, recipe
from frcnn_fast.training.schemes import given_proposals
from frcnn_fast.training.session import Session, TrainResult
from frcnn_fast.training.start import Resumed, resumed
from frcnn_fast.training.state import Training
from frcnn_fast.training.tree import RunConfig, RunSettings, to_toml

__all__ = ["TrainResult", "train"]


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
        options: how to train; default: what suits the backbone. When resuming only "workers", "device", "keep" and
            "tensorboard" may differ from the run's.
        weights: what to start from: published classifier weights (.safetensors, .npz, .pth), or a detector, of which
            what fits is taken (`frcnn_fast.model.start_from`): a run's folder, or another library's checkpoint.
        test: images to evaluate on, at the end and every options.eval_every iterations.
        proposals: of the training and the test images, for the scheme "fast-rcnn": boxes [N, 4] by image id, in pixels
            of the image, or files of them (`frcnn_fast.data.read_proposals`). A resumed run finds files by itself.
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
        if config is None and backbone is None and weights is not None:
            config = config_of(weights)
        suits = config_for(backbone) if backbone is not None else config or DetectorConfig()
        options = (options or recipe(suits.backbone)).for_images(len(dataset))
        files = () if proposals is None or isinstance(proposals, Mapping) else tuple(map(os.path.abspath, proposals))
        settings = RunSettings(None if weights is None else os.fspath(weights), files or None, drawings)
        whole = RunConfig(data, config or suits, options, settings)
    options, settings = whole.training, whole.run
    stages = options.stages()
    boxes = proposals if isinstance(proposals, Mapping) else settings.proposals
    given = given_proposals(boxes, options.scheme, stages, dataset, test)
    detector_config = dataclasses.replace(whole.detector, parts=stages[-1].parts)
    if any(stage.through_boxes for stage in stages):
        detector_config = dataclasses.replace(detector_config, pooling="prroi_pool")
    with ranks() as job:
        device = choose_device(job.device(options.device))
        torch.manual_seed(options.seed)
        detector = build_detector(class_names_of(dataset), detector_config, backbone=backbone, head=head)
        loads = old is None or old.state is None or any(stage.anew for stage in stages)
        started = start_from(detector, settings.weights) if settings.weights is not None and loads else None
        options = dataclasses.replace(options, freeze=_frozen(detector, options, started is not None))
        whole = dataclasses.replace(whole, detector=detector.config, training=options)
        # Each rank draws other samples, and drops other features out.
        seed = options.seed + (job.rank << 32)
        detector.seed(seed)
        torch.manual_seed(seed)
        detector.to(device)
        job.made_by_first(lambda: check_datasets(dataset, test))
        training = Training(detector, options, device, job)
        if old is not None and old.state is not None:
            training.restore(old.state)
        folder = job.made_by_first(lambda: _go_on(old) if old is not None else _begin(whole, out or "", overwrite))
        session = Session(training, folder, whole, dataset, test, given, callback, progress and job.is_first)
        begins = f"resumed after {training.done} of {training.total} iterations" if old else f"results in {folder.path}"
        return session.run(*(started.lines() if started is not None else ()), begins)


def _begin(config: RunConfig, out: str | os.PathLike[str], overwrite: bool) -> RunFolder:
    """A new run's folder, with its settings."""
    if config.run.weights is not None:  # the run may be repeated from elsewhere
        settings = dataclasses.replace(config.run, weights=os.path.abspath(config.run.weights))
        config = dataclasses.replace(config, run=settings)
    title = f"frcnn-fast train --config FILE repeats this run (frcnn_fast {__version__}, torch {torch.__version__})"
    return new_run(out, to_toml(config, title), overwrite)


def _go_on(old: Resumed) -> RunFolder:
    """The folder of an earlier run, without what it wrote after the state that it goes on from, and without halves of
    files."""
    done = old.state.done if old.state else 0
    evaluated = old.state.facts["progress"]["evaluated"] if old.state else 0
    remove_torn(old.folder.path)
    Checkpoints(old.folder.checkpoints).cut_back(done)
    cut_back(old.folder.metrics, done, evaluated)
    return old.folder


def _frozen(detector: FasterRCNN, options: TrainOptions, started: bool) -> int:
    """Freeze the backbone's first stages; returns how many."""
    frozen = options.freeze
    if frozen is None:
        frozen = getattr(detector.backbone, "frozen_stages", 0) if started else 0
    freeze_stages(detector.backbone, frozen)
    return frozen
