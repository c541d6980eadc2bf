"""What the commands share: choosing a data set, and saying plainly what went wrong."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from frcnn_fast.data import DetectionDataset, DigitsDetection, VocDetection
from frcnn_fast.data.layout import NoSplitError
from frcnn_fast.evaluation import VocResult

NO_SPLIT = "none"
INTERRUPTED = 130  # the shell's status for Ctrl-C


@contextlib.contextmanager
def errors(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Bad input ends the command with one line and status 1 instead of a traceback; Ctrl-C with status 130."""
    print_anything()
    try:
        yield
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, ImportError, OSError, FloatingPointError) as error:
        print(f"{parser.prog}: error: {_one_line(str(error))}", file=sys.stderr)
        sys.exit(1)


def print_anything() -> None:
    """From here on what the console cannot show (a class "ratón" in ASCII) is printed escaped instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        # Not every stand-in for a console can be told so.
        with contextlib.suppress(ValueError, OSError):
            if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
                stream.reconfigure(errors="backslashreplace")


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
    group.add_argument(
        "--test-split", metavar="NAME", help="VOC split to evaluate on (default: test); none: train without evaluation"
    )
    group.add_argument(
        "--skip-broken",
        action="store_true",
        help="leave out, and count, images that are broken or badly annotated",
    )
    group.add_argument(
        "--ignore-other-classes", action="store_true", help="leave out objects of other classes than the detector's"
    )
    group.add_argument("--zero-based", action="store_true", help="the annotations count pixels from 0, not from 1")


def data_notes(args: argparse.Namespace) -> dict[str, Any]:
    """The data that a run uses, for its checkpoint."""
    return {
        "dataset": args.dataset,
        "data_root": args.data_root and os.path.abspath(args.data_root),
        "test_split": args.test_split,
        "zero_based": args.zero_based,
        "skip_broken": args.skip_broken,
        "ignore_other_classes": args.ignore_other_classes,
    }


def notes_of(extra: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `data_notes` in a checkpoint, or nothing where somebody else wrote other things there."""
    notes = extra.get("data")
    strings = ("dataset", "data_root", "test_split")
    if not isinstance(notes, Mapping) or any(not isinstance(notes.get(key), (str, type(None))) for key in strings):
        return {}
    return notes


def fill_in(args: argparse.Namespace, notes: Mapping[str, Any]) -> None:
    """Where the command line names no data set, take that of a run (its `data_notes`), if any."""
    if args.dataset is None and args.data_root is None and notes.get("dataset") in ("digits", "voc"):
        noted = notes.get("test_split")
        args.test_split = args.test_split or (None if noted == NO_SPLIT else noted)
        for flag in ("zero_based", "skip_broken", "ignore_other_classes"):
            setattr(args, flag, bool(getattr(args, flag) or notes.get(flag, False)))
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
    return VocDetection(
        args.data_root,
        split,
        class_names=class_names,
        one_based=not args.zero_based,
        ignore_other_classes=args.ignore_other_classes,
        skip_broken=args.skip_broken,
    )


def open_test(args: argparse.Namespace, class_names: Sequence[str]) -> DetectionDataset | None:
    """The data set to evaluate on after a training; None, with a line on the console, where there is none."""
    if args.test_split == NO_SPLIT:
        return None
    try:
        return open_dataset(args, args.test_split or "test", class_names)
    except NoSplitError as error:
        if args.test_split:
            raise
        print(f"no evaluation: {error}; --test-split names another", file=sys.stderr)
        return None


def last_line(result: VocResult) -> str:
    """The figure that scripts read."""
    return f"VOC07 mAP {result.map07:.4f}"
