"""Train a detector, evaluate it and draw what it finds."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import sys
from collections.abc import Sequence
from typing import Any

from frcnn_fast import _command
from frcnn_fast._options import add_options, chosen
from frcnn_fast._ranks import ranks
from frcnn_fast.data import DetectionDataset
from frcnn_fast.data.config import AUTO
from frcnn_fast.training.anchors import fitting_anchors, mean_best_iou, resized_sides
from frcnn_fast.training.folder import free_folder
from frcnn_fast.training.interrupt import exit_status
from frcnn_fast.training.presets import PRESETS
from frcnn_fast.training.run import TrainResult, train
from frcnn_fast.training.start import resumed
from frcnn_fast.training.tree import TABLES, Layer, RunConfig, build, preset_layer, read_layers, to_toml

__all__ = ["TrainResult", "main", "train"]


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    prog = prog or "python -m frcnn_fast.train"
    parser = _parser(prog, _defaults(arguments) if {"-h", "--help"} & set(arguments) else None)
    args = parser.parse_args(arguments)
    with _command.errors(parser), ranks() as job, _command.first_speaks(job):
        result = _resume(args) if args.resume else _begin(args)
        if result is None:
            return 0
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


def _parser(prog: str, defaults: RunConfig | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [--preset NAME] [--config FILE] [--resume RUN] [options]",
        description=__doc__,
        epilog="In brackets: the defaults, with the --preset, --config and --backbone given.",
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), help="a whole training by name (default: none)")
    parser.add_argument(
        "--config", metavar="FILE", help="settings in TOML, such as a run's config.toml (default: none)"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="folder of the run (default: runs/DATASET); DIR-2, ... where DIR has a run already"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete the run that DIR has")
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with an interrupted run: its folder, or a file in its checkpoints/ (default: a new run)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the settings as TOML and end")
    for table, settings in TABLES.items():
        add_options(parser.add_argument_group(table), settings, defaults=getattr(defaults, table, None))
    return parser


def _given(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    return {table: chosen(args, settings) for table, settings in TABLES.items()}


def _layers(args: argparse.Namespace) -> list[Layer]:
    layers: list[Layer] = [preset_layer(args.preset)] if args.preset else []
    layers += read_layers(args.config) if args.config else []
    return [*layers, _given(args)]


def _defaults(arguments: Sequence[str]) -> RunConfig | None:
    """What --help shows as defaults; None where the arguments name something that is not there."""
    without = [argument for argument in arguments if argument not in ("-h", "--help")]
    with contextlib.suppress(SystemExit, ValueError), contextlib.redirect_stderr(io.StringIO()):
        return build(_layers(_parser("", None).parse_args(without)))
    return None


def _begin(args: argparse.Namespace) -> TrainResult | None:
    config = build(_layers(args))
    assert config.data is not None
    asked, data = config.data, config.data.resolved()
    training = data.open_train()
    test = data.open_test(training.class_names)
    print(data.described(training, test), file=sys.stderr)
    if test is None and asked.test_split == AUTO:
        print(f"no evaluation: {data.without_test()}", file=sys.stderr)
    if config.run.anchors == "auto":
        config = _with_anchors(config, training)
    options = config.training.for_images(len(training))
    # The names as they are now: the data may be other data when this run is repeated.
    data = dataclasses.replace(data, class_names=tuple(training.class_names))
    if args.dry_run:
        print(to_toml(dataclasses.replace(config, data=data, training=options), "the settings"), end="")
        return None
    out = args.out or f"runs/{data.dataset}"
    return train(
        training,
        out=out if args.overwrite else free_folder(out).path,
        overwrite=args.overwrite,
        config=config.detector,
        options=options,
        weights=config.run.weights,
        test=test,
        proposals=config.run.proposals,
        drawings=config.run.drawings,
        data=data,
    )


def _with_anchors(config: RunConfig, training: DetectionDataset) -> RunConfig:
    sides = resized_sides(training, config.detector)
    detector = fitting_anchors(sides, config.detector)
    before, after = mean_best_iou(sides, config.detector), mean_best_iou(sides, detector)
    print(
        f"anchors: sizes {detector.anchor_sizes}, ratios {detector.anchor_ratios}; the mean IoU of a box with the "
        f"anchor most like it is {after:.3f} (with those given {before:.3f})",
        file=sys.stderr,
    )
    return dataclasses.replace(config, detector=detector, run=dataclasses.replace(config.run, anchors="given"))


def _resume(args: argparse.Namespace) -> TrainResult:
    given = _given(args)
    if args.out or args.overwrite or args.preset or args.config or any(given[t] for t in TABLES if t != "training"):
        raise ValueError("--resume: the run has its own folder, data, detector and weights; leave these options out")
    old = resumed(args.resume)
    options = dataclasses.replace(old.config.training, **given["training"])
    if old.config.data is None:
        raise ValueError(f"--resume: {args.resume} has a data set of the caller's own; resume it from Python")
    training = old.config.data.open_train()
    return train(training, resume=args.resume, options=options, test=old.config.data.open_test(training.class_names))


if __name__ == "__main__":
    sys.exit(main())
