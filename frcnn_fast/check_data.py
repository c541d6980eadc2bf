"""List everything that is wrong or odd in a data set, before a training finds it one by one."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from frcnn_fast import _command
from frcnn_fast._names import checked_class_names, printable
from frcnn_fast._options import add_options, chosen
from frcnn_fast.data.config import AUTO
from frcnn_fast.data.datasets import class_names_of, errors_of, quick_target
from frcnn_fast.data.formats import FORMATS, Reading, find_format, splits_of
from frcnn_fast.data.images import read_image
from frcnn_fast.data.records import Box, Place, Source, place_of, placed, refuse_size, trust_swapped
from frcnn_fast.data.targets import TargetError, check_target, checked_image, image_name
from frcnn_fast.data.transforms import resized_shape
from frcnn_fast.model import DetectorConfig, preset

FEW_OBJECTS = 10
_SHAPE_IOU = 0.3  # below it no anchor is positive but as the object's best


class Finding(NamedTuple):
    """One thing that is wrong (`is_error`: a training refuses it) or merely odd."""

    is_error: bool
    text: str  # begins with the place: a file and a line, or an image's name

    def __str__(self) -> str:
        return f"{'error' if self.is_error else 'odd'}: {self.text}"


class Object(NamedTuple):
    """An object for the questions that need all of them."""

    where: str  # file and line, or image and row
    image: str
    name: str
    box: Box  # half-open, pixels of the image
    written: Box  # as in the file
    size: tuple[int, int] | None  # of the image, height and width
    as_corners: bool  # whether it is written as x1, y1, x2, y2 in pixels


class Report:
    """Findings and what they were found in."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.images: dict[str, set[str]] = {}  # of every split: their annotations' files, or their names
        self.objects: list[Object] = []
        self.found = ""  # what was found and how it was read

    def error(self, text: str) -> None:
        self.findings.append(Finding(True, text))

    def odd(self, text: str) -> None:
        self.findings.append(Finding(False, text))

    @property
    def errors(self) -> int:
        return sum(finding.is_error for finding in self.findings)

    def summary(self) -> str:
        images, classes = set().union(*self.images.values()), len({item.name for item in self.objects})
        return (
            f"{len(images)} images, {len(self.objects)} objects of {classes} classes: {self.errors} errors, "
            f"{len(self.findings) - self.errors} odd"
        )


def check_files(
    root: str | os.PathLike[str],
    splits: Sequence[str] | None = None,
    *,
    dataset: str | None = None,
    reading: Reading | None = None,
    class_names: Sequence[str] | None = None,
    ignore_other_classes: bool = False,
    config: DetectorConfig | None = None,
) -> Report:
    """Everything that is wrong or odd in a data set of files.

    Args:
        splits: default: all that are there.
        dataset: its format, a key of `frcnn_fast.data.formats.FORMATS`; None looks.
        reading: what else the format is told.
        config: the detector that is to be trained; its sizes tell which objects are tiny.
    """
    report, root = Report(), Path(root)
    names = None if class_names is None else checked_class_names(class_names)
    reading = (reading or Reading())._replace(class_names=names)
    try:
        form = dataset or find_format(root)
        splits = splits_of(root, form) if splits is None else splits
    except ValueError as error:
        report.error(str(error))
        return report
    report.found = f"{printable(os.fspath(root))} is {FORMATS[form].title}, splits {', '.join(map(printable, splits))}"
    for split in splits:
        try:
            source = FORMATS[form].read(root, split, reading)
        except ValueError as error:
            report.error(str(error))
            continue
        for name in source.repeated:
            report.odd(f"{source.title}: the list has {printable(name)} again")
        _check_split(report, source, split, names, ignore_other_classes)
    _check_splits(report)
    _check_objects(report, config or DetectorConfig(), names)
    return report


def _check_split(
    report: Report, source: Source, split: str, names: Sequence[str] | None, ignore_other_classes: bool
) -> None:
    places = []
    seen = report.images.setdefault(split, set())
    done = {image for images in report.images.values() for image in images}
    for record in source.records:
        seen.add(record.key)
        if record.key in done:  # by another split
            continue
        for fault in record.faults:
            report.error(fault)
        if record.image is None:
            continue
        try:
            # What is sound in a broken record is looked at too.
            places.append(place_of(dataclasses.replace(record, faults=[])))
        except ValueError as error:
            report.error(str(error))
    broken = errors_of(lambda k: read_image(places[k].image), range(len(places)))
    trusted = trust_swapped(places)
    for place, damage in zip(places, broken, strict=True):
        if damage:
            report.error(damage)
        try:
            refuse_size(place, trusted)
        except ValueError as refused:
            report.error(str(refused))
            continue
        line = place.record.size_where or place.record.where
        if place.swapped:
            report.odd(f"{line}: width and height are exchanged in {place.record.size_name}")
        if place.undecided:
            report.odd(f"{line}: the image has an orientation tag that the annotation cannot decide on; it is turned")
        _check_rows(report, source, place, names, ignore_other_classes)


def _check_rows(
    report: Report, source: Source, place: Place, names: Sequence[str] | None, ignore_other_classes: bool
) -> None:
    size = "" if place.size is None else f" of {place.size[1]} x {place.size[0]}"
    for item in place.record.objects:
        if names is not None and item.name not in names:
            if not ignore_other_classes:
                listed = ", ".join(names)
                report.error(f"{item.where}: class {printable(item.name)!r} is not in the label list ({listed})")
            continue
        shown = _shown(item.written)
        box, sticks_out = placed(item, place)
        if box is None:
            report.odd(f"{item.where}: the box {shown} has no extent or lies outside its image{size}; it is left out")
            continue
        if sticks_out:
            report.odd(f"{item.where}: the box {shown} sticks out over its image{size}; it is cut")
        if source.one_based and 0 in item.written[:2]:
            report.odd(f"{item.where}: the box {shown} begins at 0; if the annotations count from 0, use --zero-based")
        report.objects.append(
            Object(item.where, place.record.key, item.name, box, item.written, place.size, source.corners)
        )


def check_any(dataset: Any, *, config: DetectorConfig | None = None, split: str = "dataset") -> Report:
    """Everything that is wrong or odd in any map-style data set; loads every item."""
    report = Report()
    try:
        names = class_names_of(dataset)
    except ValueError as error:
        report.error(str(error))
        return report
    seen = report.images.setdefault(split, set())
    for index in range(len(dataset)):
        try:
            quick = quick_target(dataset, index)
            sample = dataset[index]
            if not isinstance(sample, (tuple, list)) or len(sample) != 2:
                raise TargetError(f"item {index}: got {type(sample).__name__}, expected (image, target)")
            image = checked_image(sample[0], image_name(sample[1], index))
        except Exception as error:
            report.error(f"{index}: {printable(str(error) or type(error).__name__)}")
            continue
        size = (int(image.shape[1]), int(image.shape[2]))
        target, faults, cut = check_target(sample[1], size, len(names), name=index)
        name = image_name(sample[1], index)
        if name in seen:
            report.odd(f"image {name}: another one has this image_id")
        seen.add(name)
        report.findings += [Finding(True, f"image {name}: {fault}") for fault in faults]
        report.findings += [
            Finding(False, f"image {name}: target['boxes'][{row}] sticks out; it is cut") for row in cut
        ]
        if quick is not None and len(quick[0].get("boxes", ())) != len(target.get("boxes", ())):
            report.odd(f"image {name}: target({index}) has another number of boxes than item {index}")
        if not faults:
            for row, (box, label) in enumerate(zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)):
                where = f"image {name}: target['boxes'][{row}]"
                report.objects.append(Object(where, name, names[label - 1], tuple(box), tuple(box), size, True))
    _check_objects(report, config or DetectorConfig(), names)
    return report


def _check_splits(report: Report) -> None:
    """Images in two splits that should have none in common."""
    splits = sorted(report.images)
    for place, split in enumerate(splits):
        for other in splits[place + 1 :]:
            # trainval holds train and val, "all" holds every other one.
            if {split, other} & {"all", "trainval"} and "test" not in (split, other):
                continue
            common = sorted(report.images[split] & report.images[other])
            if common:
                report.odd(
                    f"{printable(split)} and {printable(other)} have {len(common)} images in common, the first "
                    f"{printable(common[0])}"
                )


def _check_objects(report: Report, config: DetectorConfig, names: Sequence[str] | None) -> None:
    _check_duplicates(report)
    _check_coordinates(report)
    _check_sizes(report, config)
    _check_classes(report, names)


def _check_duplicates(report: Report) -> None:
    first: dict[Any, Object] = {}
    for item in report.objects:
        key = (item.image, tuple(round(value, 1) for value in item.box))
        if key not in first:
            first[key] = item
        elif first[key].where != item.where:
            what = "again" if first[key].name == item.name else f"also as {printable(first[key].name)!r}"
            report.odd(f"{item.where}: the box {_shown(item.written)} is there {what} ({first[key].where})")


def _check_coordinates(report: Report) -> None:
    by_image = defaultdict(list)
    for item in report.objects:
        by_image[item.image].append(item)
    for items in by_image.values():
        large = items[0].size is None or min(items[0].size) > 8
        if large and all(max(item.box) <= 1.5 for item in items):
            report.odd(
                f"{items[0].where}: the box {_shown(items[0].written)}, as all of its image, looks like fractions of "
                "the image, 0..1; expected pixels"
            )
    sized = [item for item in report.objects if item.size is not None]
    if len(sized) >= 4 and all(item.as_corners and _may_be_xywh(item) for item in sized):
        report.odd(
            f"{sized[0].where}: the box {_shown(sized[0].written)}, as all {len(sized)}, looks like x, y, width, "
            "height too (it would lie inside its image); see the boxes drawn in train_batch.jpg"
        )


def _may_be_xywh(item: Object) -> bool:
    assert item.size is not None
    x, y, width, height = item.written
    return x + width <= item.size[1] + 1 and y + height <= item.size[0] + 1


def _check_sizes(report: Report, config: DetectorConfig) -> None:
    """Objects for which the detector has no anchor of about their size, once resized."""
    anchors = [
        (size / math.sqrt(ratio), size * math.sqrt(ratio))
        for level in config.anchor_sizes
        for size in level
        for ratio in config.anchor_ratios
    ]
    smallest = min(width * height for width, height in anchors)
    tiny, sides = [], []
    for item in report.objects:
        height, width = item.size or (config.shorter or 1, config.longer or 1)
        _, _, scale = resized_shape(height, width, config.shorter, config.longer)
        w, h = (item.box[2] - item.box[0]) * scale, (item.box[3] - item.box[1]) * scale
        sides.append(math.sqrt(w * h))
        best = max(min(w, a) * min(h, b) / (w * h + a * b - min(w, a) * min(h, b)) for a, b in anchors)
        if best < _SHAPE_IOU and w * h < smallest:
            tiny.append((w * h, w, h, item))
    if tiny:
        _, w, h, item = min(tiny, key=lambda row: row[0])
        side = math.sqrt(smallest)
        report.odd(
            f"{item.where}: tiny against the anchors: {len(tiny)} of {len(sides)} objects, the smallest {w:.1f} x "
            f"{h:.1f} pixels once resized, where the smallest anchor has {side:.0f} x {side:.0f} and the median object "
            f"{statistics.median(sides):.0f}; set --anchor-sizes, or --shorter and --longer"
        )


def _check_classes(report: Report, names: Sequence[str] | None) -> None:
    counts = Counter(item.name for item in report.objects)
    for name in names or ():
        counts.setdefault(name, 0)
    alike = defaultdict(list)
    for name in counts:
        alike["".join(name.casefold().split())].append(name)
        if name.casefold() == "background":
            report.odd(f"class {name!r}: the background is no class; its objects would be learnt as one")
    for group in alike.values():
        if len(group) > 1:
            report.odd(f"classes {', '.join(map(repr, group))}: differ in case or spaces only")
    for name, count in sorted(counts.items()):
        if count < FEW_OBJECTS:
            report.odd(f"class {printable(name)!r}: has {count} objects")


def _shown(corners: Iterable[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in corners)})"


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(prog=prog or "python -m frcnn_fast.check_data", description=__doc__)
    _command.add_dataset_arguments(parser, leave_out=("train_split", "test_split", "skip_broken"))
    parser.add_argument("--split", nargs="+", metavar="NAME", help="which to look at (default: all that are there)")
    add_options(parser.add_argument_group("detector (default: what suits the backbone)"), DetectorConfig)
    args = parser.parse_args(argv)
    with _command.errors(parser):
        settings = chosen(args, DetectorConfig)
        data = _command.data_config(args)
        if data.data_root is None:
            raise ValueError("data_root: got nothing, expected the folder of the data")
        report = check_files(
            data.data_root,
            args.split,
            dataset=None if data.dataset == AUTO else data.dataset,
            reading=data.reading(),
            class_names=data.class_names,
            ignore_other_classes=data.ignore_other_classes,
            config=preset(settings.pop("backbone", "vgg16"), **settings),
        )
        if report.found:
            print(report.found)
        for finding in sorted(report.findings, key=lambda finding: not finding.is_error):
            print(finding)
        print(report.summary())
    return 1 if report.errors else 0


if __name__ == "__main__":
    sys.exit(main())
