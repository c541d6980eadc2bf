"""Show how a detector comes to what it finds in one image: an HTML page with the boxes of every stage, and its time."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from frcnn_fast import _command
from frcnn_fast._device import choose_device
from frcnn_fast._names import printable
from frcnn_fast.inference import Detector
from frcnn_fast.inference.story import tell
from frcnn_fast.inference.story_page import write_page

PAGE = "index.html"


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = _parser(prog)
    args = parser.parse_args(argv)
    with _command.errors(parser):
        if not 0 <= args.score_threshold <= 1:
            raise ValueError(f"--score-threshold: got {args.score_threshold}, expected a score from 0 to 1")
        if args.repeats < 1:
            raise ValueError(f"--repeats: got {args.repeats}, expected at least 1")
        page = Path(args.out) / PAGE
        if os.path.lexists(page) and not args.overwrite:
            raise ValueError(
                f"--out: {printable(os.fspath(page))} is an earlier page; choose another folder, or replace it with "
                "--overwrite"
            )
        detector = Detector(args.checkpoint, device=choose_device(args.device))
        story = tell(detector, args.image, score_threshold=args.score_threshold, repeats=args.repeats)
        write_page(story, page)
        print(
            f"{printable(args.image)}: {len(story.anchors)} anchors, {len(story.candidates.boxes)} candidates, "
            f"{len(story.proposals.boxes)} proposals, {len(story.result)} objects, {printable(os.fspath(page))}"
        )
    return 0


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog or "python -m frcnn_fast.explain", description=__doc__)
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run's folder or model.safetensors")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help=f"folder for the page, {PAGE}")
    parser.add_argument("--overwrite", action="store_true", help="replace the page that DIR has (default: an error)")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="least score (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="runs whose times are taken (default: %(default)s)"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
