"""What the commands share: choosing a data set and a device, and saying plainly what went wrong."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from frcnn_fast._extras import require
from frcnn_fast.data import DetectionDataset, DigitsDetection, VocDetection
from frcnn_fast.evaluation import VocResult

INTERRUPTED = 130  # the shell's status for Ctrl-C


@contextlib.contextmanager
def errors(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Bad input ends the command with one line and status 1 instead of a traceback; Ctrl-C with status 130."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, ImportError, OSError, FloatingPointError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        sys.exit(1)


def progress_bar(total: int, **settings: Any) -> Any:
    """A tqdm bar that counts images: live on a terminal, a line every ten seconds in a log."""
    interval = 0.1 if sys.stderr.isatty() else 10.0
    tqdm = require("tqdm", "train").tqdm
    return tqdm(total=total, unit="img", dynamic_ncols=True, mininterval=interval, maxinterval=interval, **settings)


def device(name: str | None) -> torch.device:
    """The device called `name`; by default the GPU that torch sees, else the processor."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: got {name!r}, expected for example 'cpu' or 'cuda:0' ({error})") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {name!r}, but torch finds no usable GPU here; use 'cpu'")
    return found


def add_dataset_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        choices=("digits", "voc"),
        help=f"digits: embedded, handwritten digits on photographs; voc: a PASCAL VOC tree (default: {default})",
    )
    group.add_argument("--data-root", metavar="DIR", help="the VOC tree: Annotations, ImageSets/Main, JPEGImages")
    group.add_argument("--test-split", metavar="NAME", help="VOC split to evaluate on (default: test)")
    group.add_argument("--zero-based", action="store_true", help="the annotations count pixels from 0, not from 1")


def data_notes(args: argparse.Namespace) -> dict[str, Any]:
    """The data that a run uses, for its checkpoint."""
    return {
        "dataset": args.dataset,
        "data_root": args.data_root and os.path.abspath(args.data_root),
        "test_split": args.test_split,
        "zero_based": args.zero_based,
    }


def fill_in(args: argparse.Namespace, notes: Mapping[str, Any]) -> None:
    """Where the command line names no data set, take that of a run (its `data_notes`), if any."""
    if args.dataset is None and args.data_root is None:
        args.test_split = args.test_split or notes.get("test_split")
        args.zero_based = args.zero_based or notes.get("zero_based", False)
        args.dataset, args.data_root = notes.get("dataset"), notes.get("data_root")
    args.dataset = args.dataset or ("voc" if args.data_root else "digits")


def open_dataset(args: argparse.Namespace, split: str, class_names: Sequence[str] | None = None) -> DetectionDataset:
    """The data set that the arguments name; the digits have the splits "train" and "test"."""
    if args.dataset == "digits":
        if args.data_root:
            raise ValueError("--data-root: is for --dataset voc; the digits need no data")
        return DigitsDetection(split)
    if not args.data_root:
        raise ValueError("--data-root: got nothing, expected the folder of a PASCAL VOC tree (--dataset voc)")
    return VocDetection(args.data_root, split, class_names=class_names, one_based=not args.zero_based)


def last_line(result: VocResult) -> str:
    """The figure that scripts read."""
    return f"VOC07 mAP {result.map07:.4f}"
