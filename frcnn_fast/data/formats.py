"""Which format a folder of data has, found by looking."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from frcnn_fast._names import printable
from frcnn_fast.data.coco import coco_files, read_coco
from frcnn_fast.data.files import FileDetection
from frcnn_fast.data.layout import subfolders, voc_splits
from frcnn_fast.data.records import Source
from frcnn_fast.data.table import csv_files, read_csv
from frcnn_fast.data.voc import read_voc
from frcnn_fast.data.yolo import read_yolo
from frcnn_fast.data.yolo_layout import yolo_splits


class Reading(NamedTuple):
    """What a format may need to be told. `class_names` are those of a YOLO data set that has none of its own."""

    one_based: bool = True
    images: Path | None = None
    class_names: Sequence[str] | None = None


class Format(NamedTuple):
    title: str
    splits: Callable[[Path], Sequence[str]]  # [] where a folder (or file) is none of this format
    read: Callable[[Path, str, Reading], Source]
    looks_like: str


FORMATS = {
    "voc": Format(
        "PASCAL VOC",
        voc_splits,
        lambda root, split, reading: read_voc(root, split, reading.one_based),
        "Annotations/*.xml beside JPEGImages/, or XML files beside the images",
    ),
    "coco": Format(
        "COCO",
        lambda root: list(coco_files(root)),
        lambda root, split, reading: read_coco(root, split, reading.images),
        "annotations/instances_SPLIT.json, or a JSON file beside the images",
    ),
    "yolo": Format(
        "YOLO",
        yolo_splits,
        lambda root, split, reading: read_yolo(root, split, reading.class_names),
        "data.yaml, or labels/*.txt beside images/ with classes.txt",
    ),
    "csv": Format(
        "CSV",
        lambda root: list(csv_files(root)),
        lambda root, split, reading: read_csv(root, split, reading.one_based, reading.images),
        "a table with the columns filename, class, xmin, ymin, xmax, ymax",
    ),
}


def find_format(root: Path) -> str:
    """The format of a data set, a key of `FORMATS`.

    Raises:
        ValueError: there is none, or there are several; says what is there.
    """
    shown = printable(os.fspath(root))
    if not root.exists():
        raise ValueError(f"{shown}: no data set: there is no such folder")
    found = _formats_of(root)
    if len(found) == 1:
        return next(iter(found))
    if found:
        there = "; ".join(f"{name} with the splits {', '.join(splits)}" for name, splits in found.items())
        raise ValueError(f"{shown}: may be read as {there}: name the format (dataset)")
    deeper = [folder for folder in subfolders(root) if _formats_of(folder)] if root.is_dir() else []
    hint = f"did you mean {' or '.join(printable(os.fspath(folder)) for folder in deeper[:3])}? " if deeper else ""
    inside = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))[:12] if root.is_dir() else []
    there = f"; the folder has {', '.join(map(printable, inside)) or 'nothing'}" if root.is_dir() else ""
    expected = "; ".join(f"{form.title}: {form.looks_like}" for form in FORMATS.values())
    raise ValueError(f"{shown}: no data set found; {hint}expected one of {expected}{there}")


def splits_of(root: Path, name: str) -> list[str]:
    """The splits that a data set has in the format `name`.

    Raises:
        ValueError: there are none.
    """
    splits = list(FORMATS[name].splits(root))
    if not splits:
        expected = f"{FORMATS[name].title}: {FORMATS[name].looks_like}"
        raise ValueError(f"{printable(os.fspath(root))}: no data set found; expected {expected}")
    return splits


def _formats_of(root: Path) -> dict[str, Sequence[str]]:
    return {name: splits for name, form in FORMATS.items() if (splits := form.splits(root))}


def open_files(
    root: Path,
    name: str,
    split: str,
    reading: Reading,
    *,
    class_names: Sequence[str] | None = None,
    ignore_other_classes: bool = False,
    skip_broken: bool = False,
) -> FileDetection:
    """A split of a data set in the format `name` (see `FileDetection`)."""
    return FileDetection(
        FORMATS[name].read(root, split, reading),
        class_names=class_names,
        ignore_other_classes=ignore_other_classes,
        skip_broken=skip_broken,
    )
