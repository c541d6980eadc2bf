"""Find objects in image files: draws them and writes JSON."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from frcnn_fast import _command
from frcnn_fast._names import printable
from frcnn_fast._progress import progress_bar
from frcnn_fast.inference import Detector, Result
from frcnn_fast.inference.ahead import ahead
from frcnn_fast.inference.folder import ResultFolder
from frcnn_fast.inference.inputs import input_files
from frcnn_fast.inference.sources import try_load
from frcnn_fast.model import FasterRCNN
from frcnn_fast.visualize import save_image


class Seen(NamedTuple):
    """An image that was looked at."""

    name: str
    result: Result | Exception  # what was found, or why not
    drawing: str | Exception | None  # the file in the result's folder, or why there is none


def detect_files(
    detector: Detector,
    drawings: dict[str, str],
    out: ResultFolder,
    *,
    batch: int | None = None,
    score_threshold: float | None = None,
    draw: bool = True,
    threads: int = 0,
) -> Iterator[Seen]:
    """Look at image files and draw what is found, in order. One bad file does not cost the others their detections.

    Args:
        drawings: {image file: the file name of its drawing in the folder `out`}.
        batch, score_threshold: as `Detector` takes them.
        draw: False saves no drawings.
        threads: that read files and draw; 0 does it between the forward passes.
    """

    def drawn(item: tuple[str, Result | Exception]) -> Seen:
        name, result = item
        if isinstance(result, Exception) or not draw:
            return Seen(name, result, None)
        try:
            save_image(out.path / drawings[name], result.plot())
            return Seen(name, result, drawings[name])
        except (ValueError, RuntimeError, MemoryError, OSError) as error:
            return Seen(name, result, error)

    loaded = ahead(try_load, drawings, threads)
    results = detector.outcomes(loaded, batch=batch, score_threshold=score_threshold)
    yield from ahead(drawn, zip(drawings, results), threads)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = _parser(prog)
    args = parser.parse_args(argv)
    with _command.errors(parser):
        _check(args)
        detector = Detector(args.checkpoint, device=args.device)
        on_gpu = detector.device.type == "cuda"
        threads = args.workers if args.workers is not None else (4 if on_gpu else 0)
        out, broken = ResultFolder(args.out), 0
        settings = {"detector": fingerprint(detector.model), "score_threshold": args.score_threshold}
        plan = out.begin(input_files(args.images), settings, overwrite=args.overwrite, resume=args.resume)
        out.own_lines.touch()  # a folder that cannot be written to is found out now
        todo = plan.drawings
        # Not a line every ten seconds as well: every image has its own.
        with progress_bar(len(todo), desc="detecting", disable=not sys.stderr.isatty()) as bar:
            for name, result, drawing in detect_files(
                detector,
                todo,
                out,
                batch=args.batch_size,
                score_threshold=args.score_threshold,
                draw=args.drawings,
                threads=threads,
            ):
                bar.update()
                for error in (result, drawing):
                    if isinstance(error, Exception):
                        broken += 1
                        bar.write(_complaint(parser.prog, name, error), file=sys.stderr)
                if isinstance(result, Result):
                    file = None if isinstance(drawing, Exception) else drawing
                    out.add({**result.to_dict(), "drawing": file})
                    place = "not drawn" if file is None else printable(os.fspath(out.path / file))
                    bar.write(f"{printable(name)}: {len(result)} objects, {place}", file=sys.stdout)
        out.finish(plan.files)
    return 1 if broken else 0


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog or "python -m frcnn_fast.detect", description=__doc__)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help='image files, folders of them, or patterns ("photos/**/*.jpg")'
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


def _complaint(prog: str, name: str, error: Exception) -> str:
    text = printable(str(error) or type(error).__name__)
    shown = printable(name)
    return f"{prog}: error: {text if text.startswith(shown) else f'{shown}: {text}'}"


if __name__ == "__main__":
    sys.exit(main())
