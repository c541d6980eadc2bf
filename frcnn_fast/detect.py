"""Find objects in images and videos: draws them and writes JSON."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import torch

from frcnn_fast import _command
from frcnn_fast._names import printable
from frcnn_fast._progress import progress_bar
from frcnn_fast._ranks import ranks
from frcnn_fast.inference import Detector, Result
from frcnn_fast.inference.files import detect_images, detect_video
from frcnn_fast.inference.folder import Plan, ResultFolder
from frcnn_fast.inference.inputs import input_files, is_video
from frcnn_fast.model import FasterRCNN


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = _parser(prog)
    args = parser.parse_args(argv)
    with _command.errors(parser), ranks() as among:
        _check(args)
        detector = Detector(args.checkpoint, device=among.device(args.device))
        out = ResultFolder(args.out, among.rank if among.count > 1 else None)

        def begin() -> Plan:
            settings = {"detector": fingerprint(detector.model), "score_threshold": args.score_threshold}
            return out.begin(input_files(args.images), settings, overwrite=args.overwrite, resume=args.resume)

        plan = among.made_by_first(begin)
        out.own_lines.touch()  # a folder that cannot be written to is found out now
        mine = dict(list(plan.drawings.items())[among.rank :: among.count])
        broken = _Command(args, parser.prog, detector, out, show_bars=among.is_first and sys.stderr.isatty()).run(mine)
        among.wait_for_all()
        if among.is_first:
            out.finish(plan.files)
        among.wait_for_all()  # a rank that ends with an error has all the others ended
    return 1 if broken else 0


class _Command:
    """Looks at the files of this process, tells of each, and writes the records."""

    def __init__(
        self, args: argparse.Namespace, prog: str, detector: Detector, out: ResultFolder, show_bars: bool
    ) -> None:
        self.args, self.prog, self.detector, self.out, self.show_bars = args, prog, detector, out, show_bars
        self.settings = {"batch": args.batch_size, "score_threshold": args.score_threshold}
        self.broken = 0

    def run(self, drawings: Mapping[str, str]) -> int:
        """How many of the files (each with the name of its drawing) could not be looked at or drawn."""
        # Only on a terminal: elsewhere, a line for each image is enough.
        with progress_bar(len(drawings), desc="detecting", disable=not self.show_bars) as self.bar:
            # In order, and as many images as there are in a row together.
            for videos, names in itertools.groupby(drawings, key=is_video):
                part = {name: drawings[name] for name in names}
                self._videos(part) if videos else self._images(part)
        return self.broken

    def _images(self, drawings: Mapping[str, str]) -> None:
        on_gpu = self.detector.device.type == "cuda"
        threads = self.args.workers if self.args.workers is not None else (4 if on_gpu else 0)
        places = {name: self.out.path / file for name, file in drawings.items()}
        for name, result, drawing in detect_images(
            self.detector, places, draw=self.args.drawings, threads=threads, **self.settings
        ):
            self.bar.update()
            for error in (result, drawing):
                if isinstance(error, Exception):
                    self._complain(name, error)
            if isinstance(result, Result):
                file = drawings[name] if drawing is True else None
                self.out.add({**result.to_dict(), "drawing": file})
                self._tell(name, f"{len(result)} objects", file)

    def _videos(self, drawings: Mapping[str, str]) -> None:
        for name, planned in drawings.items():
            try:
                self._video(name, planned if self.args.drawings else None)
            except (ValueError, ImportError, RuntimeError, MemoryError, OSError) as error:
                self._complain(name, error)
            self.bar.update()

    def _video(self, name: str, file: str | None) -> None:
        known = self.out.first_frames(name) if self.args.resume else []
        place = None if file is None else self.out.path / file
        count, objects = len(known), sum(len(record["detections"]) for record in known)
        last: dict[str, Any] | None = None
        try:
            for frame, result in detect_video(
                self.detector, name, place, known=known, progress=self.show_bars, **self.settings
            ):
                count += 1
                if isinstance(result, Exception):
                    self._complain(f"{name}, frame {frame.number}", result)
                    continue
                if last is not None:
                    self.out.add(last)
                objects += len(result)
                last = {"image": name, "frame": frame.number, "time": frame.time, **result.to_dict(), "drawing": file}
        except BaseException:
            if last is not None:
                self.out.add(last)
            raise
        if last is not None:  # the video is whole, and so is its drawing
            self.out.add({**last, "last": True})
        self._tell(name, f"{count} frames, {objects} objects", file)

    def _tell(self, name: str, found: str, file: str | None) -> None:
        place = "not drawn" if file is None else printable(os.fspath(self.out.path / file))
        self._write(f"{printable(name)}: {found}, {place}", sys.stdout)

    def _complain(self, name: str, error: Exception) -> None:
        self.broken += 1
        text, shown = printable(str(error) or type(error).__name__), printable(name)
        line = text if text.startswith(shown) else f"{shown}: {text}"
        self._write(f"{self.prog}: error: {line}", sys.stderr)

    def _write(self, line: str, to: TextIO) -> None:
        # In one piece with its end: torchrun's processes do not buffer, and share the console.
        self.bar.write(line + "\n", file=to, end="")


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog or "python -m frcnn_fast.detect", description=__doc__)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help='images, videos, folders of them, or patterns ("photos/**/*.jpg")'
    )
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run's folder or model.safetensors")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder for drawings and detections.jsonl")
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument("--resume", action="store_true", help="go on with the result that DIR has: skip what is done")
    earlier.add_argument("--overwrite", action="store_true", help="replace the result that DIR has")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="least score (default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images a forward pass (default: 8 on a GPU, 1 on the processor)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="threads that read and draw (default: 4 on a GPU, else none)"
    )
    parser.add_argument(
        "--drawings", action=argparse.BooleanOptionalAction, default=True, help="whether to draw (default: yes)"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    return parser


def _check(args: argparse.Namespace) -> None:
    if not 0 <= args.score_threshold <= 1:
        raise ValueError(f"--score-threshold: got {args.score_threshold}, expected a score from 0 to 1")
    if args.batch_size is not None and args.batch_size < 1:
        raise ValueError(f"--batch-size: got {args.batch_size}, expected at least one image")
    if args.workers is not None and args.workers < 0:
        raise ValueError(f"--workers: got {args.workers}, expected a number of threads, 0 for none")


def fingerprint(model: FasterRCNN) -> str:
    """The same for the same weights, settings and classes, wherever they lie."""
    described = json.dumps([model.class_names, model.config.to_dict()], sort_keys=True)
    digest = hashlib.blake2b(described.encode(), digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
