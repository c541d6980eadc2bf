"""Tables of boxes: CSV files with a row an object."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from frcnn_fast._names import printable
from frcnn_fast.data.files import FileDetection
from frcnn_fast.data.image_files import ImageFolder, image_folders
from frcnn_fast.data.layout import ANNOTATION_FOLDERS, Folder, files_of_splits, subfolder
from frcnn_fast.data.records import ImageRecord, ObjectRecord, Source
from frcnn_fast.data.text import decode_list
from frcnn_fast.data.voc import half_open

# What columns are called, the usual name first.
_COLUMNS = {
    "filename": ("filename", "file_name", "file", "image", "image_name", "image_path", "path", "image_id"),
    "class": ("class", "class_name", "label", "label_name", "name", "category"),
    "xmin": ("xmin", "x_min", "x1", "left"),
    "ymin": ("ymin", "y_min", "y1", "top"),
    "xmax": ("xmax", "x_max", "x2", "right"),
    "ymax": ("ymax", "y_max", "y2", "bottom"),
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
}
_NEEDED = tuple(_COLUMNS)[:6]


class CsvDetection(FileDetection):
    """The images of one table with their boxes (see `FileDetection`).

    The first line has the columns' names, `filename,width,height,class,xmin,ymin,xmax,ymax` in any order, of which
    width and height may be missing; each other line is an object. Lines of one image need not stand together. A line
    with a file name and nothing more is an image without objects. Commas, semicolons or tabs part the columns. Corners
    are counted as in PASCAL VOC's files, of which such tables are made: from 1, both ends inside the box; with
    `one_based=False` from 0.

    These layouts are read where `table` is a folder:

        ROOT/SPLIT_labels.csv (or SPLIT.csv, also in annotations/ or data/)   ROOT/images/NAME.jpg, ROOT/SPLIT/NAME.jpg
        ROOT/SPLIT/_annotations.csv, any name of the one table in the folder  ROOT/SPLIT/NAME.jpg

    Args:
        table: the file, or the folder of the data set.
        split: for example "train"; where there is only one it may be left out.
        images: the folder of the images. Default: found near the table.
        class_names: label k is class_names[k - 1]. None: all names in the tables of every split, sorted.
        one_based: see above.
        ignore_other_classes, skip_broken: see `FileDetection`.

    Raises:
        ValueError: as `FileDetection`; or the file is missing, or has not those columns.
    """

    def __init__(
        self,
        table: str | os.PathLike[str],
        split: str | None = None,
        *,
        images: str | os.PathLike[str] | None = None,
        class_names: Sequence[str] | None = None,
        one_based: bool = True,
        ignore_other_classes: bool = False,
        skip_broken: bool = False,
    ) -> None:
        root = Path(table)
        if split is None:
            names = list(csv_files(root))
            if len(names) != 1:
                text = f"has the splits {', '.join(names)}" if names else f"has no table with {', '.join(_NEEDED)}"
                raise ValueError(f"{printable(os.fspath(root))}: {text}, expected one; name the split or the file")
            split = names[0]
        super().__init__(
            read_csv(root, split, one_based, None if images is None else Path(images)),
            class_names=class_names,
            ignore_other_classes=ignore_other_classes,
            skip_broken=skip_broken,
        )


def csv_files(root: Path) -> dict[str, Path]:
    """The table of each split; a file is the only split of itself.

    Raises:
        ValueError: two files are the same split.
    """
    if root.is_file():
        return {_split_name(root.stem): root} if _is_table(root) else {}
    if not root.is_dir():
        return {}
    shared = [folder for name in (ANNOTATION_FOLDERS, ("data",)) if (folder := subfolder(root, name))]
    return files_of_splits(root, shared, _split_name, _tables)


def _tables(folder: Path) -> list[Path]:
    return [path for path in Folder(folder).with_suffix(".csv", ".tsv") if _is_table(path)]


def _is_table(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            header = decode_list(file.readline(10_000))[0]
    except (OSError, ValueError):
        return False
    return path.suffix.lower() in (".csv", ".tsv") and set(_NEEDED) <= set(_columns(header)[0])


def _columns(header: str) -> tuple[dict[str, int], str]:
    """Where the columns are, by their usual names, and what parts them."""
    separator = max(",;\t", key=header.count)
    words = [word.strip().strip('"').lower().replace(" ", "_") for word in header.strip().split(separator)]
    places: dict[str, int] = {}
    for column, names in _COLUMNS.items():
        place = next((words.index(name) for name in names if name in words), None)
        if place is not None:
            places[column] = place
    return places, separator


def _split_name(stem: str) -> str:
    name = re.sub(r"[_.-]?(labels?|annotations?|boxes|bboxes)$", "", stem, flags=re.IGNORECASE)
    return name.strip("_.-") or "all"


def read_csv(root: Path, split: str, one_based: bool = True, images: Path | None = None) -> Source:
    """The records of a split.

    Raises:
        ValueError: there is no such split, or its table has not the columns.
    """
    files = csv_files(root)
    if split not in files:
        there = ", ".join(map(printable, files)) or f"no tables with the columns {', '.join(_NEEDED)}"
        raise ValueError(f"{printable(os.fspath(root))}: no split {split!r}; there are {there}")
    path = files[split]
    rows = _rows(path)
    folders = [images] if images else image_folders(root, split, path)
    finder = ImageFolder(folders, list(dict.fromkeys(row["filename"] for _, row in rows)))
    records: dict[str, ImageRecord] = {}
    for line, row in rows:
        where = f"{printable(os.fspath(path))}:{line}"
        name = row["filename"]
        if name not in records:
            records[name] = _image(where, name, finder)
        _add_row(records[name], where, row, one_based)

    def names(_: bool) -> list[str]:
        return sorted({row["class"] for file in files.values() for _, row in _rows(file) if row["class"]})

    title = f"{printable(os.fspath(path))}"
    return Source(title, list(records.values()), names, one_based=one_based)


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The lines of a table with their numbers; a column that is missing, or a short line's, is "".

    Raises:
        ValueError: the file cannot be read, or lacks columns.
    """
    shown = printable(os.fspath(path))
    try:
        text = decode_list(path.read_bytes())[0]
    except OSError as error:
        raise ValueError(f"{shown}: cannot be read ({error.strerror}); restore the file") from error
    except ValueError as error:
        raise ValueError(f"{shown}:1: {error}") from error
    lines = text.splitlines()
    places, separator = _columns(lines[0] if lines else "")
    lacks = [column for column in _NEEDED if column not in places]
    if lacks:
        header = printable(lines[0])[:80] if lines else "nothing"
        raise ValueError(
            f"{shown}:1: no column {', '.join(lacks)}: the first line is {header!r}, expected "
            f"{','.join(_COLUMNS)}; name the columns there"
        )
    rows = []
    reader = csv.reader(lines[1:], delimiter=separator)
    try:
        for words in reader:
            if any(word.strip() for word in words):
                row = {column: words[k].strip() if k < len(words) else "" for column, k in places.items()}
                rows.append((reader.line_num + 1, {column: row.get(column, "") for column in _COLUMNS}))
    except csv.Error as error:
        raise ValueError(f"{shown}:{reader.line_num + 1}: {error}; mend the line") from error
    return rows


def _image(where: str, name: str, finder: ImageFolder) -> ImageRecord:
    stem = os.path.splitext(name.replace("\\", "/").rpartition("/")[2])[0]
    record = ImageRecord(where, name, stem, None, None, [], [], size_name="width, height")
    try:
        if not name:
            raise ValueError(f"{where}: no file name; mend the line or take it out")
        record.image = finder.find(name, where)
    except ValueError as error:
        record.faults.append(str(error))
    return record


def _add_row(record: ImageRecord, where: str, row: dict[str, str], one_based: bool) -> None:
    try:
        if row["width"] and row["height"]:
            size = (int(_number(where, row, "height")), int(_number(where, row, "width")))
            if min(size) > 0 and record.size not in (None, size):
                assert record.size is not None
                raise ValueError(
                    f"{where}: width, height is {size[1]} x {size[0]}, but {record.size_where} says "
                    f"{record.size[1]} x {record.size[0]} of the same image; mend one of the lines"
                )
            if min(size) > 0 and record.size is None:
                record.size, record.size_where = size, where
        if not any(row[column] for column in _NEEDED[1:]):
            return
        if not row["class"]:
            raise ValueError(f"{where}: no class; mend the line or take it out")
        xmin, ymin, xmax, ymax = (_number(where, row, column) for column in _NEEDED[2:])
        written = (xmin, ymin, xmax, ymax)
        if xmax < xmin or ymax < ymin:
            raise ValueError(
                f"{where}: the box ({xmin:g}, {ymin:g}, {xmax:g}, {ymax:g}) ends before it begins (is it x, y, width, "
                "height, or are its corners exchanged?); mend the line or take it out"
            )
        record.objects.append(ObjectRecord(where, row["class"], half_open(written, one_based), written))
    except ValueError as error:
        record.faults.append(str(error))


def _number(where: str, row: dict[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > 1e9:
        shown = printable(row[column])[:40]
        raise ValueError(f"{where}: {column} is {shown!r}, expected a number; mend the line or take it out")
    return value
