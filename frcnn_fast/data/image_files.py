"""The image files of data sets whose annotations name them: COCO's JSON, tables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from frcnn_fast._names import printable
from frcnn_fast.data.layout import ANNOTATION_FOLDERS, IMAGE_FOLDERS, Folder, subfolder

# What lies in a folder of this name describes the splits of the folder around it.
SHARED_FOLDERS = (*ANNOTATION_FOLDERS, "data")
_TRIED = 20


class ImageFolder:
    """Finds the images that annotations name in the likeliest of several folders.

    Args:
        folders: where they may be; those that are there are tried.
        names: the names that are to be found. The folder with the most of the first few is taken, the first of equals.
    """

    def __init__(self, folders: Iterable[Path], names: Sequence[str]) -> None:
        there = [Folder(folder) for folder in dict.fromkeys(folders) if folder.is_dir()]
        tried = [name for name in names[:_TRIED] if isinstance(name, str)]
        self._tried = [folder.path for folder in there]
        counts = [sum(_in(folder, name) is not None for name in tried) for folder in there]
        self._folder = there[counts.index(max(counts))] if there else None

    def find(self, name: str, where: str) -> Path:
        """The file called `name`, or else one of the same last name in the folder or below.

        Raises:
            ValueError: there is none, or more than one; `where` is the place that names it.
        """
        found = _in(self._folder, name) if self._folder is not None else None
        if found is None:
            folders = ", ".join(printable(os.fspath(path)) for path in self._tried) or "no folder of images"
            raise ValueError(
                f"{where}: the image {printable(name)!r} is not there (looked in {folders}); restore it or take it out "
                "of the annotations, or say where the images are (image_root)"
            )
        return found


def image_folders(root: Path, split: str, annotations: Path) -> list[Path]:
    """Where the images of a split may be: in a folder of its name, beside the file of annotations, in one for all.
    `root` is the data set's folder, or that file."""
    beside = annotations.parent
    if root.is_file():
        root = beside.parent if beside.name.lower() in SHARED_FOLDERS else beside
    images = subfolder(root, IMAGE_FOLDERS)
    named = [folder / split for folder in (images, root) if folder is not None]
    inside = [folder for place in [*named, beside] if place.is_dir() and (folder := subfolder(place, IMAGE_FOLDERS))]
    data = [folder for place in named if place.is_dir() and (folder := subfolder(place, ("data",)))]
    return [*named, *inside, *data, beside, *([images] if images else []), root]


def _in(folder: Folder, name: str) -> Path | None:
    path = PurePosixPath(name.replace("\\", "/"))
    # A name, never a path out of the data set.
    if len(path.parts) > 1 and not path.is_absolute() and ".." not in path.parts:
        whole = folder.path / path
        if _is_file(whole):
            return whole
    return folder.find(path.name) if path.name else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, a null byte
        return False
