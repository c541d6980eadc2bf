"""What the commands share: choosing a data set, and saying plainly what went wrong."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from frcnn_fast._options import add_options, chosen
from frcnn_fast._ranks import Ranks
from frcnn_fast.data import ProposalSet, read_proposals
from frcnn_fast.data.config import AUTO, NONE, DataConfig
from frcnn_fast.evaluation import CocoResult, VocResult

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


@contextlib.contextmanager
def first_speaks(job: Ranks) -> Iterator[None]:
    """Under torchrun the results on stdout are those of the first rank alone."""
    if job.is_first:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


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


def add_dataset_arguments(parser: argparse.ArgumentParser, default: str = "", leave_out: Sequence[str] = ()) -> None:
    """The fields of `DataConfig` as options; `default` says what is used where none of them is given, else its own."""
    group = parser.add_argument_group("data", default and f"default: {default}")
    add_options(group, DataConfig, leave_out, defaults=None if default else DataConfig())


def data_config(args: argparse.Namespace, notes: Any = None) -> DataConfig:
    """The data that the command line names; where it names none, that of a run's `notes`, with what else is given.

    Notes that are not of this version, or of somebody else, are none.
    """
    given = chosen(args, DataConfig)
    if not {"dataset", "data_root"} & set(given):
        with contextlib.suppress(ValueError):
            noted = DataConfig.from_dict(notes or {})
            # A run without an evaluation does not mean that there is nothing to evaluate on.
            test_split = AUTO if noted.test_split == NONE else noted.test_split
            return dataclasses.replace(noted, **{"test_split": test_split, **given})
    return DataConfig(**given)


def open_proposals(files: Any, notes: Any = None) -> ProposalSet | None:
    """The proposals in the files that the command line names, or else in those of a run's notes, if any."""
    noted = notes if isinstance(notes, list) and all(isinstance(file, str) for file in notes) else []
    return read_proposals(*(files or noted)) if files or noted else None


def last_line(result: VocResult | CocoResult) -> str:
    """The figure that scripts read."""
    return f"COCO AP {result.ap:.4f}" if isinstance(result, CocoResult) else f"VOC07 mAP {result.map07:.4f}"
