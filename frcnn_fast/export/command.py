"""Write a detector as an ONNX file or as a program of torch.export, and compare what it finds with the detector."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from frcnn_fast import _command
from frcnn_fast.export.detector import EXPORTERS, export_onnx, export_pt2
from frcnn_fast.model import load_detector

FORMATS = ("onnx", "pt2")


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(prog=prog or "python -m frcnn_fast.export", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a run, or its checkpoint file")
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="file to write")
    parser.add_argument("--format", choices=FORMATS, help="of the file (default: as its name ends)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    parser.add_argument(
        "--exporter",
        choices=EXPORTERS,
        default=EXPORTERS[0],
        help="for onnx: torch.export's programs, or TorchScript [%(default)s]",
    )
    parser.add_argument("--image", nargs="+", default=[], metavar="IMAGE", help="images to compare on (default: noise)")
    args = parser.parse_args(argv)
    with _command.errors(parser):
        kind = args.format or Path(args.out).suffix[1:]
        if kind not in FORMATS:
            raise ValueError(f"--out: no format in the name of {args.out}; say --format {'|'.join(FORMATS)}")
        if os.path.lexists(args.out) and not args.overwrite:
            raise ValueError(f"--out: {args.out} is there already; choose another name, or replace it with --overwrite")
        detector = load_detector(args.run)
        if kind == "onnx":
            found = export_onnx(detector, args.out, exporter=args.exporter, images=args.image)
        else:
            found = export_pt2(detector, args.out, images=args.image)
        print(f"{args.out}: {found}")
        if not found.detections:
            print("nothing was found to compare: name an --image with objects")
    return 0
