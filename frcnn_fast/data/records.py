"""What the readers of annotation files have in common: records of images and objects, and how they become targets."""

from __future__ import annotations

import ctypes
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from frcnn_fast._names import printable
from frcnn_fast.data.images import ImageHeader, read_header

Size = tuple[int, int]  # height, width
Box = tuple[float, float, float, float]


class ObjectRecord(NamedTuple):
    """One object as a file has it."""

    where: str  # file and line, or place in the file
    name: str  # of its class
    box: Box  # half-open, from 0, in pixels, or as fractions of the image where the record is `relative`
    written: Box  # as in the file, for messages
    difficult: bool = False
    area: float | None = None  # where the file says one


@dataclasses.dataclass
class ImageRecord:
    """One image as a file has it. A record with faults is broken: its objects may be fewer than the file's."""

    where: str  # the place that describes it
    key: str  # which image it is, also in another split
    image_id: str
    image: Path | None  # None where it was not found, which is one of the faults
    size: Size | None  # what the file says
    objects: list[ObjectRecord]
    faults: list[str]
    size_name: str = "<size>"  # what the file calls it
    size_where: str = ""
    relative: bool = False


@dataclasses.dataclass
class Source:
    """The records of a split.

    Attributes:
        title: what messages call the split.
        records: in the file's order.
        names: the class names of the whole data set; the argument says whether broken files are passed over.
        numbers: the files' own number of each class, where they have such.
        corners: whether boxes are written as x1, y1, x2, y2.
        one_based: whether pixels are counted from 1.
        repeated: names that a list has more than once.
    """

    title: str
    records: list[ImageRecord]
    names: Callable[[bool], list[str]]
    numbers: dict[str, int] = dataclasses.field(default_factory=dict)
    corners: bool = True
    one_based: bool = False
    repeated: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Place:
    """A record's image and the frame of its boxes."""

    record: ImageRecord
    image: Path
    size: Size | None  # of the frame; None where neither the image's header nor the record says it
    upright: bool = False  # the frame is the image turned as its orientation tag says
    undecided: bool = False  # nothing tells whether it is
    swapped: bool = False  # the size has height and width exchanged
    unreadable: str = ""  # what is wrong with the image's header


@dataclasses.dataclass
class Rows:
    """A record's objects in their labels, and those that did not become any."""

    boxes: list[Box]
    labels: list[int]
    difficult: list[bool]
    areas: list[float | None]
    left_out: list[ObjectRecord]
    cut: list[ObjectRecord]
    ignored: int


def place_of(record: ImageRecord) -> Place:
    """The frame of a record's boxes.

    Raises:
        ValueError: the record has a fault, or its image is of another size (`refuse_size` refuses exchanged ones).
    """
    if record.faults or record.image is None:
        raise ValueError(record.faults[0])
    image = record.image
    try:
        header = read_header(image)
    except ValueError as error:
        return Place(record, image, record.size, unreadable=str(error))
    said, stored, upright = record.size, header.size, header.upright_size
    if said is None or _near(said, upright) or _near(said, stored):
        return _turned(record, image, header)
    if _near(said, (stored[1], stored[0])) and _fits(record, stored):
        return Place(record, image, stored, swapped=True)
    raise ValueError(
        f"{_size_where(record)}: {record.size_name} is {said[1]} x {said[0]}, but the image "
        f"{printable(os.fspath(image))} has {stored[1]} x {stored[0]} pixels; was it resized or turned after it was "
        "annotated? Restore the image or correct the annotation, or take its name out of the list"
    )


def _size_where(record: ImageRecord) -> str:
    return record.size_where or record.where


def _turned(record: ImageRecord, image: Path, header: ImageHeader) -> Place:
    """Whether the boxes were drawn on the image as stored or as a viewer shows it."""
    said, stored, upright = record.size, header.size, header.upright_size
    if header.orientation == 1:
        return Place(record, image, stored)
    if stored == upright:
        return Place(record, image, upright, upright=True, undecided=True)
    fits_stored, fits_upright = (_fits(record, size) for size in (stored, upright))
    if fits_stored != fits_upright:
        turned = fits_upright  # what the boxes say
    else:
        turned = said is None or _near(said, upright)
    undecided = said is None and fits_stored and fits_upright
    return Place(record, image, upright if turned else stored, turned, undecided=undecided)


def _near(size: Size, other: Size) -> bool:
    """Some tools are off by a pixel."""
    return abs(size[0] - other[0]) <= 1 and abs(size[1] - other[1]) <= 1


def _fits(record: ImageRecord, size: Size) -> bool:
    """Whether no box sticks out by more than a pixel. Fractions fit any image."""
    return record.relative or all(item.box[2] <= size[1] + 1 and item.box[3] <= size[0] + 1 for item in record.objects)


def trust_swapped(places: Sequence[Place]) -> bool:
    """Whether exchanged sizes are a tool's way of writing them: a box that fits its image is too large for the size, or
    no record of an image that is not square has it right."""
    swapped = [place for place in places if place.swapped]
    if any(not _fits(place.record, place.record.size or (0, 0)) for place in swapped):
        return True
    telling = [place for place in places if place.record.size and place.size and place.size[0] != place.size[1]]
    return len(swapped) >= 3 and len(swapped) == len(telling)


def refuse_size(place: Place, trusted: bool) -> None:
    """ValueError for an exchanged size that may as well mean an image that was turned after it was annotated."""
    if place.swapped and not trusted:
        assert place.size is not None
        raise ValueError(
            f"{_size_where(place.record)}: {place.record.size_name} has width and height exchanged: "
            f"the image {printable(os.fspath(place.image))} has {place.size[1]} x {place.size[0]} pixels; was it "
            "turned after it was annotated? Turn it back or correct the annotation, or take its name out of the list"
        )


def rows_of(
    place: Place, labels: Mapping[str, int], difficult: bool = True, ignore_other_classes: bool = False
) -> Rows:
    """The objects of a record as rows of a target.

    Raises:
        ValueError: a class that `labels` lacks.
    """
    rows = Rows([], [], [], [], [], [], 0)
    for item in place.record.objects:
        if item.name not in labels:
            if ignore_other_classes:
                rows.ignored += 1
                continue
            raise ValueError(
                f"{item.where}: class {printable(item.name)!r} is not in the label list ({', '.join(labels)}); add it "
                "to class_names, ignore other classes or mend the annotation"
            )
        if item.difficult and not difficult:
            continue
        box, sticks_out = placed(item, place)
        if box is None:
            rows.left_out.append(item)
            continue
        rows.boxes.append(box)
        rows.labels.append(labels[item.name])
        rows.difficult.append(item.difficult)
        rows.areas.append(item.area)
        if sticks_out:
            rows.cut.append(item)
    return rows


def _float32(value: float) -> float:
    return ctypes.c_float(value).value


def placed(item: ObjectRecord, place: Place) -> tuple[Box | None, bool]:
    """An object's box in pixels, cut at the image's edge (None if nothing of it is left), and whether more than a pixel
    was cut off."""
    whole = item.box
    if place.record.relative:
        if place.size is None:  # an image that cannot be read; its item is an error by itself
            return None, False
        height, width = place.size
        whole = (whole[0] * width, whole[1] * height, whole[2] * width, whole[3] * height)
    if whole[0] >= whole[2] or whole[1] >= whole[3]:
        return None, False
    x1, y1, x2, y2 = max(whole[0], 0.0), max(whole[1], 0.0), whole[2], whole[3]
    if place.size is not None:
        y2, x2 = min(y2, place.size[0]), min(x2, place.size[1])
    if _float32(x1) >= _float32(x2) or _float32(y1) >= _float32(y2):  # as the target holds them
        return None, False
    return (x1, y1, x2, y2), max(abs(a - b) for a, b in zip(whole, (x1, y1, x2, y2), strict=True)) > 1
