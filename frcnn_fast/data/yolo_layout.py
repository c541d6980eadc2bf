"""Where the images and names of a data set in YOLO's format are: data.yaml, or folders and lists of names."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frcnn_fast._extras import require
from frcnn_fast._names import checked_class_names, printable
from frcnn_fast.data.images import IMAGE_SUFFIXES
from frcnn_fast.data.layout import IMAGE_FOLDERS, Folder, subfolder, subfolders
from frcnn_fast.data.text import decode_list

_SPLITS = ("train", "val", "test")  # the keys of data.yaml
_NAME_LISTS = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt")


def yolo_splits(root: Path) -> list[str]:
    """The splits of a data set; none where there is no data set in this format.

    Raises:
        ValueError: data.yaml is broken, or there are several such files.
    """
    description = description_of(root)
    if description is not None:
        # Many a data.yaml names a split that was not exported.
        return [split for split in _SPLITS if any(path for _, path in _places(description, split))]
    return list(image_folders_of(root))


def description_of(root: Path) -> dict[str, Any] | None:
    """What data.yaml says, with its own path as "file"; None where there is no such file."""
    if root.is_file():
        return _parsed(root) if root.suffix.lower() in (".yaml", ".yml") else None
    files = [path for path in Folder(root).with_suffix(".yaml", ".yml") if _may_describe(path)]
    if len(files) > 1:
        named = [path for path in files if path.stem.lower() in ("data", "dataset")]
        files = named if len(named) == 1 else files
    if len(files) > 1:
        there = ", ".join(printable(path.name) for path in files)
        raise ValueError(f"{printable(os.fspath(root))}: has {there}; give the file that is meant as data_root")
    return _parsed(files[0]) if files else None


def _may_describe(path: Path) -> bool:
    try:
        text = path.read_bytes()
    except OSError:
        return False
    return all(re.search(rb"(?m)^[\"']?(?:%s)[\"']?\s*:" % key, text) for key in (b"train|val", b"names|nc"))


def _parsed(path: Path) -> dict[str, Any]:
    shown = printable(os.fspath(path))
    yaml = require("yaml", "train")
    try:
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{shown}: cannot be read ({error.strerror}); restore the file") from error
    except Exception as error:  # the parser lets through whatever the step that met the damage raises
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise ValueError(f"{shown}{line}: not YAML ({printable(str(what))}); mend the file") from error
    if not isinstance(document, dict):
        raise ValueError(f"{shown}: expected train, val and names by name, got {printable(reprlib.repr(document))}")
    return {**{str(key): value for key, value in document.items()}, "file": path}


def names_of(description: dict[str, Any]) -> dict[int, str]:
    shown, names = printable(os.fspath(description["file"])), description.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(key, int) and key >= 0 for key in names):
        raise ValueError(f"{shown}: names is {printable(reprlib.repr(names))}, expected a list, or names by number")
    count = description.get("nc")
    if isinstance(count, int) and count != len(names):
        raise ValueError(f"{shown}: nc is {count}, but names has {len(names)}: mend one of them")
    in_order = checked_class_names([names[number] for number in sorted(names)], f"{shown}: names")
    return dict(zip(sorted(names), in_order, strict=True))


def images_of(description: dict[str, Any], split: str) -> tuple[list[Path], list[str]]:
    """The images of a split in order, each once, and the lines that name one again."""
    file = description["file"]
    shown, places = printable(os.fspath(file)), _places(description, split)
    if not places:
        there = ", ".join(name for name in _SPLITS if description.get(name)) or "none"
        got = printable(reprlib.repr(description.get(split)))
        raise ValueError(f"{shown}: {split} is {got}, expected a path; it has {there}")
    found: dict[Path, None] = {}
    repeated = []
    for place, path in places:
        if path is None:
            raise ValueError(
                f"{shown}: {split} is {printable(place)!r}, which is not there (looked from "
                f"{printable(os.fspath(file.parent))}); restore the folder or mend the path"
            )
        for image in _list_of(path) if path.is_file() else _below(path):
            if image in found:
                repeated.append(os.fspath(image))
            found[image] = None
    if not found:
        raise ValueError(f"{shown}: {split} is {printable(places[0][0])!r}, which has no images")
    return list(found), repeated


def _places(description: dict[str, Any], split: str) -> list[tuple[str, Path | None]]:
    """The places of a split as data.yaml has them, and what they mean, where that is there."""
    places, base = description.get(split), description.get("path")
    places = [places] if isinstance(places, str) else places
    if not isinstance(places, list) or not all(isinstance(place, str) and place for place in places):
        return []
    base = base if isinstance(base, str) and base else "."
    return [(place, _there(description["file"], base, place)) for place in places]


def _there(file: Path, base: str, place: str) -> Path | None:
    """What a path in data.yaml means: from `path`, from the file's folder, or, as some exports write it, from there
    although it begins with "../"."""
    try:
        for start in (file.parent / base, file.parent):
            for tail in dict.fromkeys([place, re.sub(r"^(\.\./)+", "", place)]):
                if (start / tail).exists():
                    return start / tail
    except (OSError, ValueError):  # a name too long, a null byte
        pass
    return None


def _below(folder: Path) -> list[Path]:
    """The images in a folder and those below it."""
    return Folder(folder).with_suffix(*IMAGE_SUFFIXES) + [
        image for inside in subfolders(folder) for image in _below(inside)
    ]


def _list_of(path: Path) -> list[Path]:
    """The images that a text file names, from its own folder."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    return [path.parent / line.removeprefix("./") for line in lines if line]


def image_folders_of(root: Path) -> dict[str, Path]:
    """The folder of images of each split, where no data.yaml says it."""
    if not root.is_dir():
        return {}
    images, labels = subfolder(root, IMAGE_FOLDERS), subfolder(root, ("labels",))
    if images and labels:
        inside = {folder.name: folder for folder in subfolders(images) if _has_labels(labels / folder.name)}
        return inside or ({"all": images} if _has_labels(labels) else {})
    found: dict[str, Path] = {}
    for folder in subfolders(root):
        images, labels = subfolder(folder, IMAGE_FOLDERS), subfolder(folder, ("labels",))
        if images and labels and _has_labels(labels):
            found[folder.name] = images
        elif _beside_labels(folder):
            found[folder.name] = folder
    return found or ({"all": root} if _beside_labels(root) else {})


def _beside_labels(folder: Path) -> bool:
    return bool(Folder(folder).with_suffix(*IMAGE_SUFFIXES)) and _has_labels(folder)


def _has_labels(folder: Path) -> bool:
    """Whether the first text files of a folder that have a line look like labels."""
    for path in _label_files(folder):
        with open(path, "rb") as file:
            line = file.readline(10_000).split()
        if line:
            return len(line) >= 5 and all(re.fullmatch(rb"[-+.\deE]+", word) for word in line)
    return False


def _label_files(folder: Path) -> Iterator[Path]:
    for path in Folder(folder).with_suffix(".txt"):
        if path.name.lower() not in _NAME_LISTS and path.is_file():
            yield path


def listed_names(root: Path) -> dict[int, str] | None:
    """The names of the classes, where a text file has them."""
    for folder in [root, *subfolders(root)]:
        for name in _NAME_LISTS:
            path = Folder(folder).find(name)
            if path is not None and path.parent == folder:
                lines = [line.strip() for line in read_text(path).splitlines()]
                while lines and not lines[-1]:
                    lines.pop()
                return dict(enumerate(checked_class_names(lines, printable(os.fspath(path)))))
    return None


def read_text(path: Path) -> str:
    shown = printable(os.fspath(path))
    try:
        return decode_list(path.read_bytes())[0]
    except OSError as error:
        raise ValueError(f"{shown}: cannot be read ({error.strerror}); restore the file") from error
    except ValueError as error:
        raise ValueError(f"{shown}:1: {error}") from error
