"""Data sets that lie in files of images and annotations: what all formats share."""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from frcnn_fast._names import checked_class_names, printable
from frcnn_fast.data.datasets import errors_of
from frcnn_fast.data.images import read_image
from frcnn_fast.data.records import ImageRecord, Place, Size, Source, place_of, refuse_size, rows_of, trust_swapped
from frcnn_fast.data.targets import Target
from frcnn_fast.data.transforms import Sample

_AT_ONCE = 64  # image headers that a thread reads at once


class FileDetection:
    """The images of one split with their boxes; `VocDetection`, `CocoDetection`, `YoloDetection` and `CsvDetection`
    read their own formats into it.

    The size that a file says must be that of its image. Where it is that of the image turned by its EXIF orientation,
    the image is turned. Where nothing tells (no size is said, or the tag keeps it), it is turned too, with one warning
    that counts such images. Height and width may be exchanged if the boxes show that they are, also with one warning.

    Boxes are cut at the image's edge; those that stick out by more than a pixel are counted in one warning. Left out of
    the targets, with one warning that counts them: objects without extent, and objects wholly outside the image;
    `left_out` holds their number. The other objects keep the order of the file.

    All annotations and the headers of all images are read when the object is made, so what is wrong there is found
    before the training starts. Images are decoded when they are asked for.

    Attributes:
        class_numbers: the files' own number of each class: COCO's category ids, YOLO's class numbers, else 1..K.

    Args:
        source: what was read from the files.
        class_names: label k is class_names[k - 1]. None: all names of the data set, of every split.
        difficult: False leaves the difficult objects (and crowds) out.
        ignore_other_classes: leave out the objects of classes that `class_names` lacks; `ignored` holds their number.
        skip_broken: leave out images that are broken or whose annotation is, with one warning that counts them;
            `skipped` says what is wrong. Every image is decoded once to find out.

    Raises:
        ValueError: an image is missing, an annotation is broken, of another size than its image, or holds a class that
            `class_names` lacks. The message names the file and the place in it, and says what to do. A broken image is
            reported when its item is read.
    """

    def __init__(
        self,
        source: Source,
        *,
        class_names: Sequence[str] | None = None,
        difficult: bool = True,
        ignore_other_classes: bool = False,
        skip_broken: bool = False,
    ) -> None:
        if ignore_other_classes and class_names is None:
            raise ValueError("ignore_other_classes: needs class_names, the classes that are not to be ignored")
        names = None if class_names is None else checked_class_names(class_names)
        self.title = source.title
        self.skipped: list[str] = []
        places = self._placed(source.records, skip_broken)
        with_swap = trust_swapped(places)
        if names is None or ignore_other_classes:
            names = self._names(source, names, skip_broken)
        self.class_names = names
        self.class_numbers = [source.numbers.get(name, label) for label, name in enumerate(names, start=1)]
        labels = {name: label for label, name in enumerate(names, start=1)}

        self._places: list[Place] = []
        rows = []
        for place in places:
            with self._or_skip(skip_broken):
                refuse_size(place, with_swap)
                if skip_broken and place.unreadable:
                    raise ValueError(place.unreadable)
                rows.append(rows_of(place, labels, difficult, ignore_other_classes))
                self._places.append(place)
        if skip_broken:
            errors = errors_of(self.read, range(len(self._places)))
            self.skipped += [error for error in errors if error]
            rows = [row for row, error in zip(rows, errors, strict=True) if not error]
            self._places = [place for place, error in zip(self._places, errors, strict=True) if not error]
        # One tensor for all images: a hundred thousand small ones take more memory, and more time to hand to a worker.
        self._ends = [0, *itertools.accumulate(len(row.labels) for row in rows)]
        self._boxes = torch.tensor([box for row in rows for box in row.boxes], dtype=torch.float32).reshape(-1, 4)
        self._labels = torch.tensor([label for row in rows for label in row.labels], dtype=torch.int64)
        self._difficult = torch.tensor([flag for row in rows for flag in row.difficult], dtype=torch.bool)
        areas = [area for row in rows for area in row.areas]
        self._areas = None if None in areas else torch.tensor(areas, dtype=torch.float32)
        self.ignored = sum(row.ignored for row in rows)
        left_out = [item.where for row in rows for item in row.left_out]
        cut = [item.where for row in rows for item in row.cut]
        self.left_out, self.cut = len(left_out), len(cut)

        undecided = [os.fspath(place.image) for place in self._places if place.undecided]
        exchanged = [place.record.size_where or place.record.where for place in self._places if place.swapped]
        self._warn("left out {} object(s) without extent or outside their image", left_out)
        self._warn("cut {} box(es) that stick out over the image's edge", cut)
        self._warn("turned {} image(s) by an orientation tag that keeps the size", undecided)
        self._warn("{} annotation(s) have width and height exchanged", exchanged)
        self._warn("{} name(s) are in the list again and are used once", source.repeated)
        self._warn("left out {} broken annotation(s) or image(s)", self.skipped)
        if skip_broken and self.skipped and not self._places:
            raise ValueError(f"{self.title}: nothing is left; {self.skipped[0]}")
        for place in self._places:
            place.record.objects.clear()  # the rows have them

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        image, target = self.read(index), self.target(index)
        copies = {key: value.clone() if isinstance(value, Tensor) else value for key, value in target.items()}
        return image, copies

    def read(self, index: int) -> Tensor:
        """The image of item `index`."""
        place = self._places[index]
        return read_image(place.image, upright=place.upright)

    def image_path(self, index: int) -> Path:
        """The file of image `index`."""
        return self._places[index].image

    def image_size(self, index: int) -> Size | None:
        """(height, width) of image `index`, without decoding it; None where its header cannot be read."""
        return self._places[index].size

    def is_turned(self, index: int) -> bool:
        """Whether image `index` is turned as its EXIF orientation says."""
        return self._places[index].upright

    def target(self, index: int) -> Target:
        """The target of item `index`, without opening its image."""
        image_id = self._places[index].record.image_id
        index %= len(self)
        rows = slice(self._ends[index], self._ends[index + 1])
        target = {
            "boxes": self._boxes[rows],
            "labels": self._labels[rows],
            "difficult": self._difficult[rows],
            "image_id": image_id,
        }
        return target if self._areas is None else {**target, "area": self._areas[rows]}

    def _placed(self, records: Sequence[ImageRecord], skip_broken: bool) -> list[Place]:
        def place_or_error(record: ImageRecord) -> Place | ValueError:
            try:
                return place_of(record)
            except ValueError as error:
                return error

        def found_in(start: int) -> list[Place | ValueError]:
            return [place_or_error(record) for record in records[start : start + _AT_ONCE]]

        places = []
        with ThreadPoolExecutor(4) as pool:  # a disk answers several questions at once
            for found in itertools.chain.from_iterable(pool.map(found_in, range(0, len(records), _AT_ONCE))):
                if isinstance(found, Place):
                    places.append(found)
                elif skip_broken:
                    self.skipped.append(str(found))
                else:
                    pool.shutdown(cancel_futures=True)
                    raise found
        return places

    @contextlib.contextmanager
    def _or_skip(self, skip_broken: bool) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            if not skip_broken:
                raise
            self.skipped.append(str(error))

    def _names(self, source: Source, wanted: list[str] | None, skip_broken: bool) -> list[str]:
        there = source.names(skip_broken)
        if not there:
            raise ValueError(f"{self.title}: no annotation holds an object, so there are no classes to learn")
        if wanted is None:
            return checked_class_names(there, f"{self.title}: class names")
        absent = [name for name in wanted if name not in there]
        if absent:
            text = f"class_names: no annotation has {', '.join(absent)}; there are {', '.join(there)}"
            if len(absent) == len(wanted):
                raise ValueError(f"{self.title}: {text}")
            self._warn("{} class(es) without any object: " + text, absent)
        return wanted

    def _warn(self, text: str, cases: Sequence[str]) -> None:
        if cases:
            message = f"{self.title}: {text.format(len(cases))}, the first at {printable(cases[0])}"
            warnings.warn(message, stacklevel=4)
