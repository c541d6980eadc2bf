"""PASCAL VOC data sets, and anything laid out like them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from frcnn_fast.data.transforms import Sample, read_image
from frcnn_fast.data.voc_xml import VocAnnotation, VocObject, read_annotation

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


class VocDetection:
    """The images of one split with their boxes.

    Two layouts are read:

        ROOT/Annotations/ID.xml   ROOT/ImageSets/Main/SPLIT.txt   ROOT/JPEGImages/ID.jpg      (PASCAL VOC)
        ROOT/SPLIT/ID.xml         beside the images ROOT/SPLIT/ID.jpg                       (flat)

    In the first, a line of the split's list begins with the image's ID; the rest of the line is ignored.

    VOC counts pixels from 1 and includes both ends; boxes here count from 0 and are half-open: (xmin - 1,
    ymin - 1, xmax, ymax). With `one_based=False` the annotations count from 0: (xmin, ymin, xmax + 1, ymax +
    1). Widths are the same as the VOC devkit's (xmax - xmin + 1) either way. Boxes are cut at the image's
    edge where the annotation gives its size.

    Left out of the targets, with one warning that counts them: objects whose annotation has no extent (xmin
    == xmax or ymin == ymax: clicks, not boxes), and objects wholly outside the image. `left_out` holds
    their number. The other objects keep the order of the file.

    All annotations are read when the object is made, so a broken one is found before the training starts.
    Images are opened when they are asked for.

    Args:
        root: see above.
        split: for example "trainval".
        class_names: label k is class_names[k - 1]. None: all names in the annotations of `root`, of every
            split, sorted, so that every split gets the same labels.
        difficult: False leaves the difficult objects out.
        one_based: see above.

    Raises:
        ValueError: a folder, list, annotation or image is missing, an annotation is broken, or holds a
            class that `class_names` lacks. The message names the file, and the line in it, and says what to
            do. A broken image file is reported when its item is read.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        *,
        class_names: Sequence[str] | None = None,
        difficult: bool = True,
        one_based: bool = True,
    ) -> None:
        self.root, self.split = Path(root), split
        self._first_pixel = 1.0 if one_based else 0.0
        paths = self._annotation_paths()
        annotations = {path: read_annotation(path) for path in paths}
        self.class_names = self._names_in_data(annotations) if class_names is None else _checked_names(class_names)
        labels = {name: label for label, name in enumerate(self.class_names, start=1)}

        self._items: list[tuple[Path, dict]] = []
        empty: list[str] = []
        for path in paths:
            annotation = annotations[path]
            boxes, targets, flags = [], [], []
            for item in annotation.objects:
                label = _label(labels, item, annotation)
                if item.difficult and not difficult:
                    continue
                box = self._box(item, annotation.size)
                if box is None:
                    empty.append(f"{path}:{item.line}")
                    continue
                boxes.append(box)
                targets.append(label)
                flags.append(item.difficult)
            target = {
                "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                "labels": torch.tensor(targets, dtype=torch.int64),
                "difficult": torch.tensor(flags, dtype=torch.bool),
                "image_id": path.stem,
            }
            self._items.append((self._image_path(path, annotation), target))
        self.left_out = len(empty)
        if empty:
            warnings.warn(
                f"{self.root} ({split}): left out {len(empty)} object(s) without extent or outside their"
                f" image, the first at {empty[0]}",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        image_path, target = self._items[index]
        copies = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in target.items()}
        return read_image(image_path), copies

    def image_path(self, index: int) -> Path:
        """The file of image `index`."""
        return self._items[index][0]

    def target(self, index: int) -> dict:
        """The target of item `index`, without opening its image."""
        return self._items[index][1]

    def _annotation_paths(self) -> list[Path]:
        """The annotation file of every image of the split, in the list's order (flat layout: sorted)."""
        folder = self.root / "Annotations"
        if folder.is_dir():
            lists = self.root / "ImageSets" / "Main"
            split_list = lists / f"{self.split}.txt"
            if not split_list.is_file():
                there = ", ".join(sorted(path.stem for path in lists.glob("*.txt"))) or "no lists at all"
                raise ValueError(f"{split_list}: no such file; {lists} has {there}")
            ids = [line.split()[0] for line in split_list.read_text().splitlines() if line.strip()]
            if not ids:
                raise ValueError(f"{split_list}: the list is empty; put one image's name on each line")
            return [folder / f"{image_id}.xml" for image_id in ids]
        flat = sorted((self.root / self.split).glob("*.xml"))
        if not flat:
            nested = sorted(path.parent.name for path in self.root.glob("*/Annotations"))
            hint = f"; did you mean {self.root / nested[0]}?" if nested else ""
            raise ValueError(
                f"{self.root}: no PASCAL VOC data: expected the folders Annotations, ImageSets/Main and"
                f" JPEGImages, or XML files beside the images in {self.split}/{hint}"
            )
        return flat

    def _names_in_data(self, annotations: dict[Path, VocAnnotation]) -> list[str]:
        voc_layout = (self.root / "Annotations").is_dir()
        everywhere = sorted(self.root.glob("Annotations/*.xml" if voc_layout else "*/*.xml"))
        names = {
            item.name
            for path in everywhere
            for item in (annotations[path] if path in annotations else read_annotation(path)).objects
        }
        if not names:
            raise ValueError(f"{self.root}: no annotation holds an object, so there are no classes to learn")
        return sorted(names)

    def _image_path(self, path: Path, annotation: VocAnnotation) -> Path:
        """The image of an annotation: the file of the same name, or else the one that the annotation
        names."""
        folder = path.parent.parent / "JPEGImages" if path.parent.name == "Annotations" else path.parent
        for suffix in _IMAGE_SUFFIXES:
            candidate = folder / (path.stem + suffix)
            if candidate.is_file():
                return candidate
        named = Path(annotation.filename).name  # a name, never a path out of the data set
        if named and (folder / named).is_file():
            return folder / named
        raise ValueError(
            f"{folder / path.stem}.jpg: no such image file (nor .jpeg, .png{', ' + named if named else ''}),"
            f" but {path} describes it; restore it or take its name out of the list"
        )

    def _box(self, item: VocObject, size: tuple[int, int] | None) -> tuple[float, float, float, float] | None:
        """The half-open box of an object, cut at the image's edge; None if nothing of it is left."""
        xmin, ymin, xmax, ymax = item.corners
        if xmin == xmax or ymin == ymax:
            return None
        first = self._first_pixel
        x1, y1, x2, y2 = max(xmin - first, 0.0), max(ymin - first, 0.0), xmax - first + 1, ymax - first + 1
        if size is not None:
            y2, x2 = min(y2, size[0]), min(x2, size[1])
        return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _checked_names(class_names: Sequence[str]) -> list[str]:
    names = list(class_names)
    if isinstance(class_names, str) or not names or len(set(names)) != len(names):
        raise ValueError(f"class_names must be a list of different names, got {class_names!r}")
    return names


def _label(labels: dict[str, int], item: VocObject, annotation: VocAnnotation) -> int:
    if item.name not in labels:
        raise ValueError(
            f"{annotation.path}:{item.line}: class {item.name!r} is not in the label list"
            f" ({', '.join(labels)}); add it to class_names or mend the annotation"
        )
    return labels[item.name]
