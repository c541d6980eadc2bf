"""Train a detector, evaluate it and draw what it finds."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence

from frcnn_fast import _command
from frcnn_fast._device import choose_device
from frcnn_fast._options import add_options, chosen
from frcnn_fast.data.config import AUTO, DataConfig
from frcnn_fast.model import DetectorConfig, preset
from frcnn_fast.training import TrainOptions, recipe
from frcnn_fast.training.folder import RunFolder, free_folder
from frcnn_fast.training.interrupt import exit_status
from frcnn_fast.training.run import TrainResult, train
from frcnn_fast.training.start import resumed

__all__ = ["TrainResult", "main", "train"]


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(prog=prog or "python -m frcnn_fast.train", description=__doc__)
    parser.add_argument(
        "--out", metavar="DIR", help="folder of the run (default: runs/DATASET); DIR-2, ... where DIR has a run already"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete the run that DIR has")
    parser.add_argument(
        "--resume", metavar="RUN", help="go on with an interrupted run: its folder, or a file in its checkpoints/"
    )
    parser.add_argument("--weights", metavar="FILE", help="ImageNet weights to start from: .safetensors, .npz, .pth")
    parser.add_argument(
        "--proposals",
        nargs="+",
        metavar="FILE",
        help="for --scheme fast-rcnn: proposals of the training and test images, in files, folders or runs",
    )
    parser.add_argument("--drawings", type=int, default=8, help="test images to draw (default: %(default)s)")
    _command.add_dataset_arguments(parser)
    add_options(parser.add_argument_group("training (default: what suits the backbone)"), TrainOptions)
    add_options(parser.add_argument_group("detector (default: what suits the backbone)"), DetectorConfig)
    args = parser.parse_args(argv)
    with _command.errors(parser):
        result = _resume(args) if args.resume else _begin(args)
        if result.unreadable:
            print(
                f"{parser.prog}: unreadable images that were left out: {len(result.unreadable)}, the first: "
                f"{result.unreadable[0]}",
                file=sys.stderr,
            )
        if result.stopped_by:
            print(
                f"{parser.prog}: interrupted after {result.iterations} iterations; the detector so far is in "
                f"{result.out / 'model.safetensors'}",
                file=sys.stderr,
            )
            return exit_status(result.stopped_by)
        if result.recall is not None:
            print(result.recall.table())
            print(f"proposals, curves and weights: {result.out}")
            return 0
        if result.evaluation is None:
            print(f"curves and weights: {result.out}")
            return 0
        print(result.evaluation.table())
        print(f"drawings, curves and weights: {result.out}")
        print(_command.last_line(result.evaluation))
    return 0


def _begin(args: argparse.Namespace) -> TrainResult:
    asked = _command.data_config(args)
    data = asked.resolved()
    settings = chosen(args, DetectorConfig)
    name = settings.pop("backbone", "small" if data.dataset == "digits" else "vgg16")
    config = preset(name, **settings)
    options = recipe(name, **chosen(args, TrainOptions))
    training = data.open_train()
    test = data.open_test(training.class_names)
    if test is None and asked.test_split == AUTO:
        print(f"no evaluation: {data.without_test()}", file=sys.stderr)
    out = args.out or f"runs/{data.dataset}"
    folder = RunFolder(out) if args.overwrite else free_folder(out)
    print(
        f"{name}, {len(training.class_names)} classes, {len(training)} images: {options.iterations} iterations "
        f"of {options.batch_size} on {choose_device(options.device)}, results in {folder.path}",
        file=sys.stderr,
    )
    return train(
        training,
        out=folder.path,
        overwrite=args.overwrite,
        config=config,
        options=options,
        weights=args.weights,
        test=test,
        proposals=_command.open_proposals(args.proposals),
        drawings=args.drawings,
        notes={"data": data.to_dict(), "proposals": [os.path.abspath(file) for file in args.proposals or ()]},
    )


def _resume(args: argparse.Namespace) -> TrainResult:
    own = args.out, args.overwrite, args.weights, args.proposals, chosen(args, DataConfig), chosen(args, DetectorConfig)
    if any(own):
        raise ValueError("--resume: the run has its own folder, data, detector and weights; leave these options out")
    start = resumed(args.resume, None)
    assert start.config is not None
    assert start.options is not None
    options = dataclasses.replace(start.options, **chosen(args, TrainOptions))
    data = dataclasses.replace(
        DataConfig.from_dict(start.notes.get("data", {})), class_names=tuple(start.class_names or ())
    )
    training = data.open_train()
    test = data.open_test(training.class_names)
    done = start.state.done if start.state else 0
    print(f"{start.config.backbone}, resumed after {done} of {options.iterations} iterations", file=sys.stderr)
    proposals = _command.open_proposals(None, start.notes.get("proposals"))
    return train(training, resume=args.resume, options=options, test=test, proposals=proposals, drawings=args.drawings)


if __name__ == "__main__":
    sys.exit(main())
