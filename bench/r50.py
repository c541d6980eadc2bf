"""R50-FPN in our model and in torchvision's own, from the same weights: an iteration and an image, in turns.

    python -m bench.r50 --rounds 4 --json bench/results/r50-time.json

Both train on blood cells with a shorter side of 480 pixels, 2 images at a time, their stem and first stage frozen as
torchvision does it, and detect on single images; settings are torchvision's. The weights are random: the backbone's
statistics are those of a batch, so that the features are of the usual size. What is timed, and how, is as in
`bench.bccd --time`. Before it, both detect on one image, and have to find the same.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import schema
from bench.bccd import SLICE, Contestant, for_rounds, in_turns, new_report
from bench.competitors import torchvision_missing
from frcnn_fast.data import VocDetection
from frcnn_fast.model import DetectorConfig, from_checkpoint
from frcnn_fast.model.protocol import freeze_stages
from frcnn_fast.training import TrainOptions, recipe
from frcnn_fast.training.step import PRECISIONS

SIZES: dict[str, Any] = {"shorter": 480, "longer": 640}
FROZEN = 2  # stages: the stem and layer1


def contestants(data: Path, rounds: int, precision: str) -> tuple[dict[str, Contestant], DetectorConfig, TrainOptions]:
    """Both, from the same random weights, and by which recipe they train.

    Raises:
        ValueError: torchvision is not installed, or the two do not find the same in an image.
    """
    if torchvision_missing:
        raise ValueError(f"{torchvision_missing}; `make bench-env` installs it")
    from bench.competitors.torchvision_detector import on_resnet50_fpn

    names = VocDetection(data, "test").class_names
    torch.manual_seed(0)
    theirs = on_resnet50_fpn(len(names) + 1, frozen_stages=FROZEN)
    ours = from_checkpoint(theirs.model.state_dict(), class_names=names, **SIZES)
    freeze_stages(ours.backbone, FROZEN)
    options = for_rounds(recipe("resnet50_fpn", seed=0, precision=precision), rounds)
    both = {"frcnn_fast": ours, "torchvision": theirs}
    config = ours.config
    made = {system: Contestant(detector, data, config, options) for system, detector in both.items()}
    moving = {s: sum(p.numel() for p in one.detector.parameters() if p.requires_grad) for s, one in made.items()}
    ((_, mine),), ((_, other),) = (list(one.detect(1)) for one in made.values())
    if moving["frcnn_fast"] != moving["torchvision"] or mine["labels"].tolist() != other["labels"].tolist():
        raise ValueError(
            f"the two are not the same detector: they train {moving} numbers, and find {len(mine['labels'])} and "
            f"{len(other['labels'])} objects"
        )
    return made, config, options


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 2 where something is missing."""
    root = Path(os.environ.get("FRCNN_DATA", "."))
    parser = argparse.ArgumentParser(
        prog="python -m bench.r50", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4, help=f"of {SLICE} iterations and images each")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="float32", help="of both")
    parser.add_argument(
        "--data", type=Path, default=root / "bccd" / "BCCD", help="the VOC tree (default: under FRCNN_DATA)"
    )
    parser.add_argument("--json", type=Path, help="write the report here")
    args = parser.parse_args(argv)
    try:
        if args.rounds < 1:
            raise ValueError(f"--rounds: got {args.rounds}, expected at least 1")
        made, config, options = contestants(args.data, args.rounds, args.precision)
        report = {**new_report(config, options), **in_turns(made, args.rounds), "benchmark": "r50"}
    except (ValueError, OSError) as error:
        print(f"bench.r50: {error}", file=sys.stderr)
        return 2
    if args.json:
        schema.save(report, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
