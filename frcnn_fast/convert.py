"""Make a run of a checkpoint of torchvision, detectron2 or mmdetection, for evaluate, detect and train --weights."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from frcnn_fast import _command
from frcnn_fast._options import add_options, chosen
from frcnn_fast.model import DetectorConfig, from_checkpoint, save_detector


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(prog=prog or "python -m frcnn_fast.convert", description=__doc__)
    parser.add_argument("file", metavar="FILE", help="the checkpoint: .pth, .pkl, .safetensors; nothing in it is run")
    parser.add_argument("-o", "--out", required=True, metavar="RUN", help="folder that receives model.safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace the detector that RUN has")
    parser.add_argument(
        "--class-names", nargs="+", metavar="NAME", help="of its classes (default: COCO's, where it has as many)"
    )
    parser.add_argument(
        "--norm-eps",
        type=float,
        metavar="X",
        help="what torchvision's frozen normalisations add to the variances (default: 1e-5; 0 for COCO's weights of "
        "fasterrcnn_resnet50_fpn as published, and what was trained on from these)",
    )
    add_options(parser.add_argument_group("detector (default: what the library has)"), DetectorConfig)
    args = parser.parse_args(argv)
    with _command.errors(parser):
        path = Path(args.out) / "model.safetensors"
        if os.path.lexists(path) and not args.overwrite:
            raise ValueError(f"--out: {path} is there already; choose another folder, or replace it with --overwrite")
        settings = chosen(args, DetectorConfig)
        detector = from_checkpoint(args.file, class_names=args.class_names, norm_eps=args.norm_eps, **settings)
        save_detector(path, detector, extra={"converted_from": os.path.abspath(args.file)})
        print(f"{path}: {detector.config.backbone}, {len(detector.class_names)} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
