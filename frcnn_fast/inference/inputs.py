"""The files that a command line names: images and videos, folders of them, patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence

from frcnn_fast._names import printable
from frcnn_fast.data.images import IMAGE_SUFFIXES
from frcnn_fast.inference.video import VIDEO_SUFFIXES

_SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)


def input_files(names: Sequence[str]) -> list[str]:
    """The files named, as they are spelt, those in the folders named, and those that patterns match, each once.

    Of a folder, the images and videos in it, not those in folders inside it. A pattern ("photos/*.jpg",
    "photos/**/*.png", where ** is any depth of folders) is what no file or folder is called and has *, ? or [...] in
    it; one that ends in a wildcard matches images and videos only. Of folders and patterns the files come sorted by
    name, and without those whose names begin with a dot.

    Raises:
        ValueError: a folder or a pattern without images; names it. Files are not looked for here.
    """
    files: list[str] = []
    for name in names:
        if os.path.isdir(name):
            found = [entry.name for entry in os.scandir(name) if entry.is_file()]
            inside = [os.path.join(name, file) for file in _seen(found)]
            if not inside:
                raise ValueError(f"{printable(name)}: no images or videos in this folder ({', '.join(_SUFFIXES)})")
            files += inside
        elif glob.has_magic(name) and not os.path.lexists(name):
            found = [file for file in glob.iglob(name, recursive=True) if os.path.isfile(file)]
            ending = os.path.splitext(name)[1]
            inside = sorted(found) if ending and not glob.has_magic(ending) else _seen(found)
            if not inside:
                raise ValueError(f"{printable(name)}: no images or videos match this pattern ({', '.join(_SUFFIXES)})")
            files += inside
        else:
            files.append(name)
    return list(dict.fromkeys(files))


def _seen(files: Iterable[str]) -> list[str]:
    # Names that begin with a dot are what systems leave behind ("._a.jpg"), no images.
    return sorted(
        file for file in files if file.lower().endswith(_SUFFIXES) and not os.path.basename(file).startswith(".")
    )


def is_video(file: str) -> bool:
    return file.lower().endswith(VIDEO_SUFFIXES)
