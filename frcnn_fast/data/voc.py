"""PASCAL VOC data sets, and anything laid out like them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from frcnn_fast._names import printable
from frcnn_fast.data.files import FileDetection
from frcnn_fast.data.layout import Folder, find_image, find_split
from frcnn_fast.data.records import Box, ImageRecord, ObjectRecord, Source
from frcnn_fast.data.voc_xml import VocAnnotation, read_annotation


class VocDetection(FileDetection):
    """The images of one split of a PASCAL VOC tree with their boxes (see `FileDetection`).

    These layouts are read, in any case of the folders' names:

        ROOT/Annotations/ID.xml   ROOT/ImageSets/Main/SPLIT.txt   ROOT/JPEGImages/ID.jpg      (PASCAL VOC)
        ROOT/annotations/ID.xml   ROOT/SPLIT.txt                  ROOT/images/ID.jpg          (side by side)
        ROOT/SPLIT/ID.xml         beside the images ROOT/SPLIT/ID.jpg                         (flat)

    A set side by side or in one folder that has no list at all is the split "all" (or "train", "trainval"). Images may
    be .jpg, .png, .bmp, .tif, .webp or .gif.

    A line of a split's list is the image's ID, which may hold spaces, or begins with it; lists may be in UTF-8 or, with
    a byte-order mark, in UTF-16. Annotations may be in any encoding that they declare.

    VOC counts pixels from 1 and includes both ends; boxes here count from 0 and are half-open: (xmin - 1,
    ymin - 1, xmax, ymax). With `one_based=False` the annotations count from 0: (xmin, ymin, xmax + 1, ymax +
    1). Widths are the same as the VOC devkit's (xmax - xmin + 1) either way. Objects with xmin == xmax or ymin == ymax
    are clicks, not boxes: they have no extent.

    Args:
        root: see above.
        split: for example "trainval".
        class_names: label k is class_names[k - 1]. None: all names in the annotations of `root`, of every
            split, sorted, so that every split gets the same labels.
        difficult: False leaves the difficult objects out.
        one_based: see above.
        ignore_other_classes, skip_broken: see `FileDetection`.

    Raises:
        ValueError: as `FileDetection`; or a folder or list is missing.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        *,
        class_names: Sequence[str] | None = None,
        difficult: bool = True,
        one_based: bool = True,
        ignore_other_classes: bool = False,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(
            read_voc(Path(root), split, one_based),
            class_names=class_names,
            difficult=difficult,
            ignore_other_classes=ignore_other_classes,
            skip_broken=skip_broken,
        )


def read_voc(root: Path, split: str, one_based: bool = True) -> Source:
    """The records of a split.

    Raises:
        ValueError: there is no such split; says what is there.
    """
    found = find_split(root, split)
    annotations: dict[Path, VocAnnotation] = {}
    records = [_record(path, found.images, one_based, annotations) for path in found.annotations]

    def names(skip_broken: bool) -> list[str]:
        return names_in(found.everywhere, annotations, skip_broken)

    title = f"{printable(os.fspath(root))} ({split})"
    return Source(title, records, names, one_based=one_based, repeated=found.repeated)


def _record(path: Path, images: Folder, one_based: bool, annotations: dict[Path, VocAnnotation]) -> ImageRecord:
    record = ImageRecord(os.fspath(path), os.fspath(path), path.stem, None, None, [], [])
    try:
        annotation = read_annotation(path, record.faults)
        if not record.faults:
            annotations[path] = annotation
        record.size, record.size_where = annotation.size, f"{printable(annotation.path)}:{annotation.size_line}"
        record.objects = [
            ObjectRecord(
                f"{printable(annotation.path)}:{item.line}",
                item.name,
                half_open(item.corners, one_based),
                item.corners,
                item.difficult,
            )
            for item in annotation.objects
        ]
        record.image = find_image(images, path.stem, annotation.filename, annotation.path)
    except ValueError as error:
        record.faults.append(str(error))
    return record


def names_in(paths: Sequence[Path], known: Mapping[Path, VocAnnotation], skip_broken: bool) -> list[str]:
    """The class names in annotation files, sorted; `known` ones are not read again."""
    names = set[str]()
    for path in paths:
        try:
            annotation = known[path] if path in known else read_annotation(path)
        except ValueError:
            if not skip_broken:
                raise
            continue
        names.update(item.name for item in annotation.objects)
    return sorted(names)


def half_open(corners: Box, one_based: bool) -> Box:
    """The half-open box of the first and last pixels of an object; one without extent where it is a click."""
    xmin, ymin, xmax, ymax = corners
    first = 1.0 if one_based else 0.0
    if xmin == xmax or ymin == ymax:
        return (xmin - first, ymin - first, xmin - first, ymin - first)
    return (xmin - first, ymin - first, xmax - first + 1, ymax - first + 1)
