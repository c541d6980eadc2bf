"""PASCAL VOC data sets, and anything laid out like them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from frcnn_fast._names import checked_class_names, printable
from frcnn_fast.data.datasets import errors_of
from frcnn_fast.data.images import ImageHeader, read_header, read_image
from frcnn_fast.data.layout import Folder, find_image, find_split
from frcnn_fast.data.targets import Target
from frcnn_fast.data.transforms import Sample
from frcnn_fast.data.voc_xml import VocAnnotation, VocObject, read_annotation

Size = tuple[int, int]  # height, width


@dataclasses.dataclass
class Place:
    """An annotation's image: where it is and in which frame its boxes are."""

    annotation: VocAnnotation
    image: Path
    size: Size | None  # of the frame; None where neither the image's header nor the annotation says it
    upright: bool = False  # the frame is the image turned as its orientation tag says
    undecided: bool = False  # nothing tells whether it is
    swapped: bool = False  # <size> has height and width exchanged
    unreadable: str = ""  # what is wrong with the image's header


@dataclasses.dataclass
class Rows:
    """An annotation's objects as a target, and those that did not become one."""

    target: Target
    left_out: list[VocObject]
    cut: list[VocObject]
    ignored: int


class VocDetection:
    """The images of one split with their boxes.

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
    1). Widths are the same as the VOC devkit's (xmax - xmin + 1) either way. Boxes are cut at the image's
    edge; those that stick out by more than a pixel are counted in one warning.

    An annotation's <size> must be that of its image. Where it is that of the image turned by its EXIF orientation, the
    image is turned. Where nothing tells (the tag keeps the size), it is turned too, with one warning that counts such
    images. Height and width may be exchanged if the boxes show that they are, also with one warning.

    Left out of the targets, with one warning that counts them: objects whose annotation has no extent (xmin
    == xmax or ymin == ymax: clicks, not boxes), and objects wholly outside the image. `left_out` holds
    their number. The other objects keep the order of the file.

    All annotations and the headers of all images are read when the object is made, so what is wrong there is found
    before the training starts. Images are decoded when they are asked for.

    Args:
        root: see above.
        split: for example "trainval".
        class_names: label k is class_names[k - 1]. None: all names in the annotations of `root`, of every
            split, sorted, so that every split gets the same labels.
        difficult: False leaves the difficult objects out.
        one_based: see above.
        ignore_other_classes: leave out the objects of classes that `class_names` lacks; `ignored` holds their number.
        skip_broken: leave out images that are broken or whose annotation is, with one warning that counts them;
            `skipped` says what is wrong. Every image is decoded once to find out.

    Raises:
        ValueError: a folder, list, annotation or image is missing, an annotation is broken, of another size than its
            image, or holds a class that `class_names` lacks. The message names the file, and the line in it, and says
            what to do. A broken image is reported when its item is read.
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
        if ignore_other_classes and class_names is None:
            raise ValueError("ignore_other_classes: needs class_names, the classes that are not to be ignored")
        names = None if class_names is None else checked_class_names(class_names)
        self.root, self.split = Path(root), split
        self.skipped: list[str] = []
        found = find_split(self.root, split)
        annotations: dict[Path, VocAnnotation] = {}
        places: list[Place] = []
        for path in found.annotations:
            with self._or_skip(skip_broken):
                annotations[path] = read_annotation(path)
                places.append(place_of(annotations[path], found.images, one_based))
        with_swap = trust_swapped(places)
        if names is None or ignore_other_classes:
            everywhere = names_in(found.everywhere, annotations, skip_broken)
            names = self._names(everywhere, names)
        self.class_names = names
        labels = {name: label for label, name in enumerate(names, start=1)}

        self._places: list[Place] = []
        self._targets: list[Target] = []
        left_out: list[str] = []
        cut: list[str] = []
        self.ignored = 0
        for place in places:
            with self._or_skip(skip_broken):
                refuse_size(place, with_swap)
                if skip_broken and place.unreadable:
                    raise ValueError(place.unreadable)
                rows = rows_of(place, labels, one_based, difficult, ignore_other_classes)
                self._places.append(place)
                self._targets.append(rows.target)
                left_out += [_line(place.annotation, item) for item in rows.left_out]
                cut += [_line(place.annotation, item) for item in rows.cut]
                self.ignored += rows.ignored
        if skip_broken:
            self._skip_undecodable()
        self.left_out, self.cut = len(left_out), len(cut)
        undecided = [os.fspath(place.image) for place in self._places if place.undecided]
        exchanged = [f"{place.annotation.path}:{place.annotation.size_line}" for place in self._places if place.swapped]
        self._warn("left out {} object(s) without extent or outside their image", left_out)
        self._warn("cut {} box(es) that stick out over the image's edge", cut)
        self._warn("turned {} image(s) by an orientation tag that keeps the size", undecided)
        self._warn("{} annotation(s) have width and height exchanged in <size>", exchanged)
        self._warn("{} name(s) are in the list again and are used once", found.repeated)
        self._warn("left out {} broken annotation(s) or image(s)", self.skipped)
        if skip_broken and self.skipped and not self._places:
            raise ValueError(f"{printable(os.fspath(root))} ({split}): nothing is left; {self.skipped[0]}")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        image, target = self.read(index), self._targets[index]
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

    def target(self, index: int) -> Target:
        """The target of item `index`, without opening its image."""
        return self._targets[index]

    @contextlib.contextmanager
    def _or_skip(self, skip_broken: bool) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            if not skip_broken:
                raise
            self.skipped.append(str(error))

    def _skip_undecodable(self) -> None:
        errors = errors_of(self.read, range(len(self)))
        self.skipped += [error for error in errors if error]
        self._places = [place for place, error in zip(self._places, errors, strict=True) if not error]
        self._targets = [target for target, error in zip(self._targets, errors, strict=True) if not error]

    def _names(self, everywhere: Sequence[str], wanted: list[str] | None) -> list[str]:
        if not everywhere:
            raise ValueError(f"{self.root}: no annotation holds an object, so there are no classes to learn")
        if wanted is None:
            return checked_class_names(everywhere)
        absent = [name for name in wanted if name not in everywhere]
        if absent:
            text = f"class_names: no annotation has {', '.join(absent)}; there are {', '.join(everywhere)}"
            if len(absent) == len(wanted):
                raise ValueError(f"{self.root}: {text}")
            self._warn("{} class(es) without any object: " + text, absent)
        return wanted

    def _warn(self, text: str, cases: Sequence[str]) -> None:
        if cases:
            first = printable(cases[0])
            warnings.warn(f"{self.root} ({self.split}): {text.format(len(cases))}, the first at {first}", stacklevel=3)


def _line(annotation: VocAnnotation, item: VocObject) -> str:
    return f"{annotation.path}:{item.line}"


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


def place_of(annotation: VocAnnotation, images: Folder, one_based: bool) -> Place:
    """Find the image of an annotation and the frame of its boxes.

    Raises:
        ValueError: there is no such image, or it is of another size (`refuse_size` refuses exchanged ones).
    """
    path = Path(annotation.path)
    image = find_image(images, path.stem, annotation.filename, annotation.path)
    try:
        header = read_header(image)
    except ValueError as error:
        return Place(annotation, image, annotation.size, unreadable=str(error))
    said, stored, upright = annotation.size, header.size, header.upright_size
    if said is None or _near(said, upright) or _near(said, stored):
        return _turned(annotation, image, header, one_based)
    if _near(said, (stored[1], stored[0])):
        place = Place(annotation, image, stored, swapped=True)
        if _fits(annotation, stored, one_based):
            return place
    raise ValueError(
        f"{printable(annotation.path)}:{annotation.size_line}: <size> is {said[1]} x {said[0]}, but the image "
        f"{printable(os.fspath(image))} has {stored[1]} x {stored[0]} pixels; was it resized or turned after it was "
        "annotated? Restore the image or correct the annotation, or take its name out of the list"
    )


def _turned(annotation: VocAnnotation, image: Path, header: ImageHeader, one_based: bool) -> Place:
    """Whether the boxes were drawn on the image as stored or as a viewer shows it."""
    said, stored, upright = annotation.size, header.size, header.upright_size
    if header.orientation == 1:
        return Place(annotation, image, stored)
    if stored == upright:
        return Place(annotation, image, upright, upright=True, undecided=True)
    fits_stored, fits_upright = (_fits(annotation, size, one_based) for size in (stored, upright))
    if fits_stored != fits_upright:
        turned = fits_upright  # what the boxes say
    else:
        turned = said is None or _near(said, upright)
    return Place(
        annotation,
        image,
        upright if turned else stored,
        turned,
        undecided=said is None and fits_stored and fits_upright,
    )


def _near(size: Size, other: Size) -> bool:
    """Some tools are off by a pixel."""
    return abs(size[0] - other[0]) <= 1 and abs(size[1] - other[1]) <= 1


def _fits(annotation: VocAnnotation, size: Size, one_based: bool) -> bool:
    """Whether no box sticks out by more than a pixel."""
    last = 1 if one_based else 0
    return all(item.corners[2] <= size[1] + last and item.corners[3] <= size[0] + last for item in annotation.objects)


def trust_swapped(places: Sequence[Place]) -> bool:
    """Whether exchanged sizes are a tool's way of writing them: a box that fits its image is too large for the size, or
    no annotation of an image that is not square has it right."""
    swapped = [place for place in places if place.swapped]
    if any(not _fits(place.annotation, place.annotation.size or (0, 0), True) for place in swapped):
        return True
    telling = [place for place in places if place.annotation.size and place.size and place.size[0] != place.size[1]]
    return len(swapped) >= 3 and len(swapped) == len(telling)


def refuse_size(place: Place, trusted: bool) -> None:
    """ValueError for an exchanged size that may as well mean an image that was turned after it was annotated."""
    if place.swapped and not trusted:
        assert place.size is not None
        raise ValueError(
            f"{printable(place.annotation.path)}:{place.annotation.size_line}: <size> has width and height exchanged: "
            f"the image {printable(os.fspath(place.image))} has {place.size[1]} x {place.size[0]} pixels; was it "
            "turned after it was annotated? Turn it back or correct the annotation, or take its name out of the list"
        )


def rows_of(
    place: Place, labels: Mapping[str, int], one_based: bool, difficult: bool = True, ignore_other_classes: bool = False
) -> Rows:
    """The target of an annotation."""
    boxes, targets, flags = [], [], []
    left_out, cut, ignored = [], [], 0
    for item in place.annotation.objects:
        if item.name not in labels:
            if ignore_other_classes:
                ignored += 1
                continue
            raise ValueError(
                f"{printable(place.annotation.path)}:{item.line}: class {printable(item.name)!r} is not in the label"
                f" list ({', '.join(labels)}); add it to class_names, ignore other classes or mend the annotation"
            )
        if item.difficult and not difficult:
            continue
        box, sticks_out = half_open(item, place.size, one_based)
        if box is None:
            left_out.append(item)
            continue
        boxes.append(box)
        targets.append(labels[item.name])
        flags.append(item.difficult)
        if sticks_out:
            cut.append(item)
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(targets, dtype=torch.int64),
        "difficult": torch.tensor(flags, dtype=torch.bool),
        "image_id": Path(place.annotation.path).stem,
    }
    return Rows(target, left_out, cut, ignored)


def half_open(
    item: VocObject, size: Size | None, one_based: bool
) -> tuple[tuple[float, float, float, float] | None, bool]:
    """The half-open box of an object, cut at the image's edge (None if nothing of it is left), and whether more than a
    pixel was cut off."""
    xmin, ymin, xmax, ymax = item.corners
    if xmin == xmax or ymin == ymax:
        return None, False
    first = 1.0 if one_based else 0.0
    whole = (xmin - first, ymin - first, xmax - first + 1, ymax - first + 1)
    x1, y1, x2, y2 = max(whole[0], 0.0), max(whole[1], 0.0), whole[2], whole[3]
    if size is not None:
        y2, x2 = min(y2, size[0]), min(x2, size[1])
    # Compared as the target holds them.
    low, high = torch.tensor([x1, y1], dtype=torch.float32), torch.tensor([x2, y2], dtype=torch.float32)
    if not bool((low < high).all()):
        return None, False
    return (x1, y1, x2, y2), max(abs(a - b) for a, b in zip(whole, (x1, y1, x2, y2), strict=True)) > 1
