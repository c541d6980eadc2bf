"""COCO's annotation files."""

from __future__ import annotations

import json
import math
import mmap
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frcnn_fast._names import printable
from frcnn_fast.data.files import FileDetection
from frcnn_fast.data.image_files import ImageFolder, image_folders
from frcnn_fast.data.layout import ANNOTATION_FOLDERS, Folder, files_of_splits, subfolder
from frcnn_fast.data.records import ImageRecord, ObjectRecord, Source

_KEYS = (b'"images"', b'"annotations"', b'"categories"')
_OTHER_TASKS = ("captions", "person_keypoints", "stuff", "panoptic", "image_info")


class CocoDetection(FileDetection):
    """The images of one COCO annotation file with their boxes (see `FileDetection`).

    A box is `bbox`, (x, y, width, height) in pixels from 0; masks, polygons and run lengths are not read. Labels are
    the categories in the order of their ids, which may have gaps: label k has the id `class_numbers[k - 1]`. A crowd
    (`iscrowd`) is a difficult object. Targets have `area`, the area that the file says, which tells small from large
    objects in `CocoEvaluator`; `image_id` is the file's id of the image.

    These layouts are read where `annotations` is a folder:

        ROOT/annotations/instances_SPLIT.json   ROOT/SPLIT/NAME.jpg or ROOT/images/SPLIT/NAME.jpg   (COCO)
        ROOT/annotations/SPLIT.json             ROOT/images/NAME.jpg
        ROOT/SPLIT/_annotations.coco.json       ROOT/SPLIT/NAME.jpg, any name of the one JSON file in the folder

    Args:
        annotations: the JSON file, or the folder of the data set.
        split: for example "train2017"; where there is only one it may be left out.
        images: the folder of the images. Default: found near the annotations.
        class_names: label k is class_names[k - 1]. None: all categories.
        difficult: False leaves the crowds out.
        ignore_other_classes, skip_broken: see `FileDetection`.

    Raises:
        ValueError: as `FileDetection`; or the file is missing, is not JSON, or holds no COCO annotations.
    """

    def __init__(
        self,
        annotations: str | os.PathLike[str],
        split: str | None = None,
        *,
        images: str | os.PathLike[str] | None = None,
        class_names: Sequence[str] | None = None,
        difficult: bool = True,
        ignore_other_classes: bool = False,
        skip_broken: bool = False,
    ) -> None:
        root = Path(annotations)
        if split is None:
            names = list(coco_files(root))
            if len(names) != 1:
                text = f"has the splits {', '.join(names)}" if names else "has no COCO annotations (a JSON file)"
                raise ValueError(f"{printable(os.fspath(root))}: {text}, expected one; name the split or the file")
            split = names[0]
        super().__init__(
            read_coco(root, split, None if images is None else Path(images)),
            class_names=class_names,
            difficult=difficult,
            ignore_other_classes=ignore_other_classes,
            skip_broken=skip_broken,
        )


def coco_files(root: Path) -> dict[str, Path]:
    """The annotation file of each split; a file is the only split of itself.

    Raises:
        ValueError: two files are the same split.
    """
    if root.is_file():
        return {_split_name(root.stem): root} if _has_annotations(root) else {}
    if not root.is_dir():
        return {}
    annotations = subfolder(root, ANNOTATION_FOLDERS)
    return files_of_splits(root, [annotations] if annotations else [], _split_name, _annotation_files)


def _annotation_files(folder: Path) -> list[Path]:
    files = [path for path in Folder(folder).with_suffix(".json") if _has_annotations(path)]
    # Beside the boxes of COCO lie its captions and key points.
    return [path for path in files if not path.stem.startswith(_OTHER_TASKS)] or files


def _has_annotations(path: Path) -> bool:
    """Whether a JSON file has the keys of COCO's format; its size does not matter."""
    if path.suffix.lower() != ".json":
        return False
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return all(data.find(key) >= 0 for key in _KEYS)
    except (OSError, ValueError):  # it cannot be read, or is empty
        return False


def _split_name(stem: str) -> str:
    name = re.sub(r"^(instances|annotations?|labels?|coco)(?=[_.-]|$)", "", stem, flags=re.IGNORECASE)
    name = re.sub(r"[_.-](annotations?|instances|labels?|coco)(\.coco)?$", "", name, flags=re.IGNORECASE).strip("_.-")
    return "all" if name.lower() in ("", "default", "coco") else name


def read_coco(root: Path, split: str, images: Path | None = None) -> Source:
    """The records of a split.

    Raises:
        ValueError: there is no such split, or its file is not JSON or holds no COCO annotations.
    """
    files = coco_files(root)
    if split not in files:
        there = ", ".join(map(printable, files)) or "no COCO annotations at all"
        raise ValueError(f"{printable(os.fspath(root))}: no split {split!r}; there are {there}")
    path = files[split]
    return _Reader(path).source([images] if images else image_folders(root, split, path))


class _Reader:
    """One file. Everything that is wrong with a single image or annotation is a fault of its record."""

    def __init__(self, path: Path) -> None:
        self.path, self.shown = path, printable(os.fspath(path))

    def source(self, folders: Sequence[Path]) -> Source:
        document = self._document()
        names = self._categories(document["categories"])
        items = document["images"]
        finder = ImageFolder(folders, [str(item.get("file_name")) for item in items if isinstance(item, dict)])
        records: list[ImageRecord] = []
        by_id: dict[Any, ImageRecord] = {}
        for place, item in enumerate(items):
            record = self._image(f"{self.shown}: images[{place}]", item, finder)
            records.append(record)
            if record.image_id and by_id.setdefault(item["id"], record) is not record:
                record.faults.append(f"{record.where}: another image has this id")
        for place, item in enumerate(document["annotations"]):
            where = f"{self.shown}: annotations[{place}]"
            try:
                record, found = self._object(where, item, by_id, names)
                record.objects.append(found)
            except ValueError as error:
                owner = item.get("image_id") if isinstance(item, dict) else None
                broken = by_id.get(owner) if isinstance(owner, (int, str)) else None
                if broken is None:
                    broken = ImageRecord(where, where, "", None, None, [], [])
                    records.append(broken)
                broken.faults.append(str(error))
        ordered = [names[number] for number in sorted(names)]
        numbers = {name: number for number, name in names.items()}
        return Source(self.shown, records, lambda _: ordered, numbers=numbers, corners=False)

    def _document(self) -> dict[str, list[Any]]:
        try:
            document = json.loads(self.path.read_bytes())
        except OSError as error:
            raise ValueError(f"{self.shown}: cannot be read ({error.strerror}); restore the file") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.shown}:{error.lineno}: not JSON ({error.msg}); restore the file") from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"{self.shown}: not JSON ({printable(str(error))}); restore the file") from error
        if not isinstance(document, dict):
            raise ValueError(f"{self.shown}: is {_kind(document)}, expected an object with images, annotations")
        for key in ("images", "annotations", "categories"):
            if not isinstance(document.get(key), list):
                what = f"{key} is {_kind(document[key])}" if key in document else f"has no {key}"
                raise ValueError(f"{self.shown}: {what}, expected a list; see COCO's data format")
        return document

    def _categories(self, items: list[Any]) -> dict[int, str]:
        names: dict[int, str] = {}
        for place, item in enumerate(items):
            where = f"{self.shown}: categories[{place}]"
            number, name = (item.get("id"), item.get("name")) if isinstance(item, dict) else (None, None)
            if not isinstance(number, int) or isinstance(number, bool) or not isinstance(name, str) or not name.strip():
                raise ValueError(f"{where} is {_short(item)}, expected an object with a whole id and a name")
            if number in names:
                raise ValueError(f"{where}: the id {number} is there twice ({names[number]!r} and {name!r})")
            names[number] = name
        return names

    def _image(self, where: str, item: Any, finder: ImageFolder) -> ImageRecord:
        record = ImageRecord(where, where, "", None, None, [], [], size_name="width x height")
        number = item.get("id") if isinstance(item, dict) else None
        name = item.get("file_name") if isinstance(item, dict) else None
        if not (_is_whole(number) or isinstance(number, str)) or not isinstance(name, str) or not name:
            record.faults.append(f"{where} is {_short(item)}, expected an object with an id and a file_name")
            return record
        record.image_id, record.where = str(number), f"{where} (id {printable(str(number))})"
        record.key = name
        width, height = item.get("width"), item.get("height")
        if _is_number(width) and _is_number(height) and width >= 1 and height >= 1:
            record.size = (int(height), int(width))
        try:
            record.image = finder.find(name, record.where)
        except ValueError as error:
            record.faults.append(str(error))
        return record

    def _object(
        self, where: str, item: Any, images: dict[Any, ImageRecord], names: dict[int, str]
    ) -> tuple[ImageRecord, ObjectRecord]:
        if not isinstance(item, dict):
            raise ValueError(f"{where} is {_short(item)}, expected an object with image_id, category_id and bbox")
        if "id" in item:
            number = item["id"]
            where = f"{where} (id {number if _is_whole(number) else _short(number)})"
        image, category, box = item.get("image_id"), item.get("category_id"), item.get("bbox")
        if not isinstance(image, (int, str)) or image not in images:
            raise ValueError(f"{where}: image_id is {_short(image)}, expected the id of one of the images")
        if not _is_whole(category) or category not in names:
            raise ValueError(f"{where}: category_id is {_short(category)}, expected the id of one of the categories")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise ValueError(f"{where}: bbox is {_short(box)}, expected 4 finite numbers: x, y, width, height")
        x, y, width, height = map(float, box)
        if width < 0 or height < 0:
            raise ValueError(f"{where}: bbox is {_short(box)}, expected x, y, width, height, no negative ones")
        area, crowd = item.get("area"), item.get("iscrowd", 0)
        if area is not None and not (_is_number(area) and area >= 0):
            raise ValueError(f"{where}: area is {_short(area)}, expected a number of at least 0")
        if crowd not in (0, 1, None):
            raise ValueError(f"{where}: iscrowd is {_short(crowd)}, expected 0 or 1")
        corners = (x, y, x + width, y + height)
        size = width * height if area is None else float(area)
        return images[image], ObjectRecord(where, names[category], corners, (x, y, width, height), bool(crowd), size)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**53


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")


def _short(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = _kind(value)
    return printable(text if len(text) <= 60 else text[:57] + "...")
