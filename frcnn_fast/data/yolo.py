"""YOLO's text files: a line an object, in fractions of the image."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from frcnn_fast._names import checked_class_names, printable
from frcnn_fast.data.files import FileDetection
from frcnn_fast.data.images import IMAGE_SUFFIXES
from frcnn_fast.data.layout import IMAGE_FOLDERS, Folder
from frcnn_fast.data.records import Box, ImageRecord, ObjectRecord, Source
from frcnn_fast.data.yolo_layout import description_of, image_folders_of, images_of, listed_names, names_of, read_text

_SLACK = 1e-3  # fractions are rounded when they are written


class YoloDetection(FileDetection):
    """The images of one split of a data set in YOLO's format with their boxes (see `FileDetection`).

    An image's label file has a line `class x y width height` an object: the class counted from 0, the box's centre and
    size as fractions of the image. Of a polygon (`class x1 y1 x2 y2 x3 y3 ...`) the enclosing box is taken. An image
    without a label file has no objects. Label k is the class k - 1 of `names`, whose numbers may have gaps.

    These layouts are read:

        ROOT/data.yaml, which says where `train`, `val` and `test` are, and `names`   (any name of the one such file)
        ROOT/images/SPLIT/NAME.jpg   ROOT/labels/SPLIT/NAME.txt   ROOT/classes.txt
        ROOT/SPLIT/images/NAME.jpg   ROOT/SPLIT/labels/NAME.txt   ROOT/classes.txt
        ROOT/NAME.jpg                ROOT/NAME.txt                ROOT/classes.txt

    The label file of .../images/NAME.jpg is .../labels/NAME.txt, or the one beside the image.

    Args:
        root: the folder, or the data.yaml itself.
        split: for example "train".
        class_names: label k is class_names[k - 1]. None: all names in the order of their numbers. Where the data set
            has no names, these are the names of the numbers 0, 1, ...
        ignore_other_classes, skip_broken: see `FileDetection`.

    Raises:
        ValueError: as `FileDetection`; or there is no such split, or data.yaml is broken.
        ImportError: pyyaml, which reads data.yaml, is missing.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        *,
        class_names: Sequence[str] | None = None,
        ignore_other_classes: bool = False,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(
            read_yolo(Path(root), split, class_names),
            class_names=class_names,
            ignore_other_classes=ignore_other_classes,
            skip_broken=skip_broken,
        )


def read_yolo(root: Path, split: str, class_names: Sequence[str] | None = None) -> Source:
    """The records of a split.

    Raises:
        ValueError: there is no such split, or data.yaml is broken.
    """
    shown = printable(os.fspath(root))
    description = description_of(root)
    names: dict[int, str] | None
    if description is not None:
        names, images, repeated = names_of(description), *images_of(description, split)
    else:
        folders = image_folders_of(root)
        if split not in folders:
            there = ", ".join(map(printable, folders)) or "no labels in YOLO's format at all"
            raise ValueError(f"{shown}: no split {split!r}; there are {there}")
        names, repeated = listed_names(root), []
        images = Folder(folders[split]).with_suffix(*IMAGE_SUFFIXES)
    if names is None:
        if class_names is None:
            raise ValueError(
                f"{shown}: the classes have no names; put them into {printable(os.fspath(root / 'classes.txt'))}, one a"
                " line, or give class_names"
            )
        names = dict(enumerate(checked_class_names(class_names)))
    files = _LabelFiles()
    records = [_record(image, files.of(image), names) for image in images]
    if records and not any(files.of(image) for image in images):
        where = printable(os.fspath(_beside_images(images[0])))
        raise ValueError(f"{shown} ({split}): no image has a label file, expected for example {where}")
    ordered = [names[number] for number in sorted(names)]
    numbers = {name: number for number, name in names.items()}
    return Source(f"{shown} ({split})", records, lambda _: ordered, numbers=numbers, corners=False, repeated=repeated)


class _LabelFiles:
    """The label file of each image; a folder is listed once."""

    def __init__(self) -> None:
        self._folders: dict[Path, Folder] = {}

    def of(self, image: Path) -> Path | None:
        for path in (_beside_images(image), image.with_suffix(".txt")):
            folder = self._folders.setdefault(path.parent, Folder(path.parent))
            if (found := folder.find(path.name)) is not None:
                return found
        return None


def _beside_images(image: Path) -> Path:
    """.../labels/NAME.txt of .../images/NAME.jpg; the last folder of that name counts."""
    parts = list(image.with_suffix(".txt").parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place].lower() in IMAGE_FOLDERS:
            parts[place] = "labels"
            break
    return Path(*parts)


def _record(image: Path, labels: Path | None, names: dict[int, str]) -> ImageRecord:
    record = ImageRecord(printable(os.fspath(labels or image)), os.fspath(image), image.stem, image, None, [], [])
    record.relative = True
    if labels is None:
        return record
    try:
        text = read_text(labels)
    except ValueError as error:
        record.faults.append(str(error))
        return record
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            where = f"{record.where}:{number}"
            try:
                record.objects.append(_object(where, line.split(), names))
            except ValueError as error:
                record.faults.append(str(error))
    return record


def _object(where: str, words: list[str], names: dict[int, str]) -> ObjectRecord:
    shown = printable(" ".join(words))[:60]
    advice = "; mend the line or take it out"
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"{where}: got {shown!r}, expected numbers: class, x, y, width, height{advice}")
    number, *place = values
    polygon = len(place) >= 6 and len(place) % 2 == 0
    if len(place) != 4 and not polygon:
        hint = ""
        if len(place) == 5:
            hint = " (is the last one a score? then it is a file of detections, not of the truth)"
        raise ValueError(f"{where}: has {len(values)} numbers, expected 5: class, x, y, width, height{hint}{advice}")
    if number != int(number) or int(number) not in names:
        known = f"a whole number from {min(names)} to {max(names)}" if names else "none: there are no classes"
        raise ValueError(f"{where}: the class is {words[0][:20]}, expected {known}, as the names have it{advice}")
    if not all(-_SLACK <= value <= 1 + _SLACK for value in place):
        hint = "; are these pixels?" if max(place) > 2 else ""
        raise ValueError(f"{where}: got {shown!r}, expected fractions of the image, 0..1{hint}{advice}")
    if polygon:
        box: Box = (min(place[::2]), min(place[1::2]), max(place[::2]), max(place[1::2]))
    else:
        x, y, width, height = place
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        place = [x, y, width, height]
    return ObjectRecord(where, names[int(number)], box, box if polygon else (x, y, width, height))
