"""What the commands share: choosing a data set, and saying plainly what went wrong."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
        print(f"{parser.prog}: error: {_one_line(str(error))}", file=sys.stderr)
        sys.exit(1)


def _one_line(message: str) -> str:
    lines = message.strip().splitlines() or [""]
    if lines[0].startswith("Caught ") and len(lines) > 1:
        # A DataLoader raises a worker's error with the worker's traceback in its message; the last line is the error.
        return lines[-1].partition(": ")[2]
    return " ".join(line.strip() for line in lines)


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
