"""Train a detector, evaluate it and draw what it finds."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frcnn_fast import _command
from frcnn_fast._options import add_options, chosen
from frcnn_fast.data import DetectionDataset
from frcnn_fast.detect import detect
from frcnn_fast.evaluate import evaluate
from frcnn_fast.evaluation import VocResult
from frcnn_fast.io import append_jsonl, load_weights, write_json
from frcnn_fast.model import DetectorConfig, FasterRCNN, build_detector, load_pretrained, preset, save_detector
from frcnn_fast.model.config import config_for
from frcnn_fast.model.protocol import freeze_stages
from frcnn_fast.training import TrainOptions, fit, recipe
from frcnn_fast.training.batches import training_batches
from frcnn_fast.visualize import plot_losses, save_image, side_by_side

Callback = Callable[[dict[str, Any]], bool | None]


@dataclasses.dataclass
class TrainResult:
    """What a run leaves behind."""

    detector: FasterRCNN
    out: Path
    iterations: int
    interrupted: bool
    evaluation: VocResult | None


def train(
    dataset: DetectionDataset,
    *,
    out: str | os.PathLike[str],
    backbone: nn.Module | None = None,
    head: nn.Module | None = None,
    config: DetectorConfig | None = None,
    options: TrainOptions | None = None,
    weights: str | os.PathLike[str] | None = None,
    test: DetectionDataset | None = None,
    drawings: int = 8,
    callback: Callback | None = None,
    notes: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train a detector on any map-style data set (see `frcnn_fast.data` for its items).

    The folder `out` receives metrics.jsonl (begun anew), loss.png and model.safetensors, and with `test`
    evaluation.json and drawings/. A checkpoint is written beside its place and renamed: an earlier one stays whole
    until then.

    Args:
        dataset: training images.
        backbone: one of your own: `out_channels`, `strides`, forward to one map per stride. Default: the one that
            config.backbone names.
        head: a head of your own (see `FasterRCNN`).
        config: the detector's settings; default: those that suit the backbone.
        options: how to train; default: what suits the backbone.
        weights: file of published classifier weights to start from (.safetensors, .npz, .pth).
        test: images to evaluate on at the end.
        drawings: how many of them to draw.
        callback: called with every record of metrics.jsonl; returning True ends the training early.
        notes: kept in the checkpoint (`frcnn_fast.io.load_checkpoint(out).extra`), in JSON's types.

    Ctrl-C ends the iteration in progress, saves the checkpoint and returns with `interrupted` set.

    Raises:
        ValueError: the data, the settings or the weights do not fit each other.
        FloatingPointError: training diverged; the last checkpoint stays.
    """
    if config is None:
        config = config_for(backbone) if backbone is not None else DetectorConfig()
    options = options or recipe(config.backbone)
    device = _command.device(options.device)
    torch.manual_seed(options.seed)
    detector = build_detector(dataset.class_names, config, backbone=backbone, head=head)
    if weights is not None:
        load_pretrained(detector, load_weights(weights), source=os.fspath(weights))
    frozen = options.freeze
    if frozen is None:
        frozen = getattr(detector.backbone, "frozen_stages", 0) if weights is not None else 0
    freeze_stages(detector.backbone, frozen)
    detector.seed(options.seed)
    detector.to(device)
    batches = training_batches(dataset, config, options, pin_memory=device.type == "cuda")

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    metrics = folder / "metrics.jsonl"
    for old in (metrics, folder / "loss.png", folder / "evaluation.json"):
        old.unlink(missing_ok=True)

    def log(record: dict[str, Any]) -> bool | None:
        append_jsonl(metrics, record)
        return callback(record) if callback else None

    def save(iteration: int) -> None:
        save_detector(folder / "model.safetensors", detector, extra={**(notes or {}), "iteration": iteration})

    fitted = fit(detector, batches, options, log=log, save=save, device=device)
    detector.eval()
    result = TrainResult(detector, folder, fitted.iterations, fitted.interrupted, None)
    plot_losses(metrics, folder / "loss.png")
    if fitted.interrupted or test is None:
        return result
    result.evaluation = evaluate(detector, test, workers=options.workers)
    write_json(folder / "evaluation.json", result.evaluation.to_dict())
    figures = {"map07": result.evaluation.map07, "map_area": result.evaluation.map_area}
    append_jsonl(metrics, {"evaluated": fitted.iterations, **figures})
    _draw(detector, test, folder / "drawings", drawings)
    return result


def _draw(detector: FasterRCNN, dataset: DetectionDataset, folder: Path, count: int) -> None:
    """Detections beside the truth, for the first `count` images."""
    for index in range(min(count, len(dataset))):
        image, target = dataset[index]
        drawing = side_by_side(image, detect(detector, image), target, detector.class_names)
        name = str(target.get("image_id", index)).replace(os.sep, "_")
        save_image(folder / f"{name}.png", drawing)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(prog=prog or "python -m frcnn_fast.train", description=__doc__)
    parser.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/DATASET)")
    parser.add_argument("--weights", metavar="FILE", help="ImageNet weights to start from: .safetensors, .npz, .pth")
    parser.add_argument("--drawings", type=int, default=8, help="test images to draw (default: %(default)s)")
    _command.add_dataset_arguments(parser, "digits")
    parser.add_argument("--train-split", default="trainval", help="VOC split to train on (default: %(default)s)")
    parser.add_argument("--class-names", nargs="+", metavar="NAME", help="default: all names in the VOC annotations")
    add_options(parser.add_argument_group("training (default: what suits the backbone)"), TrainOptions)
    add_options(parser.add_argument_group("detector (default: what suits the backbone)"), DetectorConfig)
    args = parser.parse_args(argv)
    with _command.errors(parser):
        _command.fill_in(args, {})
        settings = chosen(args, DetectorConfig)
        name = settings.pop("backbone", "small" if args.dataset == "digits" else "vgg16")
        config = preset(name, **settings)
        options = recipe(name, **chosen(args, TrainOptions))
        train_split = "train" if args.dataset == "digits" else args.train_split
        training = _command.open_dataset(args, train_split, args.class_names)
        test = _command.open_dataset(args, args.test_split or "test", training.class_names)
        out = args.out or f"runs/{args.dataset}"
        print(
            f"{name}, {len(training.class_names)} classes, {len(training)} images: {options.iterations} iterations "
            f"of {options.batch_size} on {_command.device(options.device)}, results in {out}",
            file=sys.stderr,
        )
        result = train(
            training,
            out=out,
            config=config,
            options=options,
            weights=args.weights,
            test=test,
            drawings=args.drawings,
            notes={"data": _command.data_notes(args)},
        )
        if result.interrupted:
            print(
                f"{parser.prog}: interrupted after {result.iterations} iterations; the detector so far is in "
                f"{result.out / 'model.safetensors'}",
                file=sys.stderr,
            )
            return _command.INTERRUPTED
        assert result.evaluation is not None
        print(result.evaluation.table())
        print(f"drawings, curves and weights: {result.out}")
        print(_command.last_line(result.evaluation))
    return 0


if __name__ == "__main__":
    sys.exit(main())
