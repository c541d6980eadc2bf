"""Where the annotations and images of a split lie."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from frcnn_fast._names import printable
from frcnn_fast.data.images import IMAGE_SUFFIXES
from frcnn_fast.data.text import decode_list

# Folders by their names in lower case.
ANNOTATION_FOLDERS = ("annotations", "annotation", "xmls", "xml")
IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img")
_WHOLE = ("all", "train", "trainval")  # what a set without lists may be asked for


@dataclasses.dataclass
class Split:
    """The annotation files of a split in their order, the folder of their images, and all annotation files of the data
    set, whose objects give the classes."""

    annotations: list[Path]
    images: Folder
    everywhere: list[Path]
    repeated: list[str]  # names that the list has more than once


class Folder:
    """A folder's files, found by exact names or, where there is none, by names that differ in case, in Unicode's
    composition or in the subfolder only."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def _exact(self) -> dict[str, Path]:
        # The resource forks that macOS leaves beside files ("._a.jpg") are none of them.
        if not self.path.is_dir():
            return {}
        return {entry.name: self.path / entry.name for entry in os.scandir(self.path) if not entry.name.startswith(".")}

    @functools.cached_property
    def _alike(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for place, folders, names in os.walk(self.path):
            folders[:] = [folder for folder in folders if not folder.startswith(".")]
            for name in names:
                if not name.startswith("."):
                    found.setdefault(_key(name), []).append(Path(place) / name)
        return found

    def find(self, name: str) -> Path | None:
        if name in self._exact:
            return self._exact[name]
        alike = self._alike.get(_key(name), [])
        return alike[0] if len(alike) == 1 else None

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """The files in the folder itself, sorted."""
        return sorted(path for path in self._exact.values() if path.suffix.lower() in suffixes)


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def find_split(root: Path, split: str) -> Split:
    """Find the files of a split (see `VocDetection` for the layouts).

    Raises:
        ValueError: says what is missing, and what is there.
    """
    if not root.is_dir():
        raise ValueError(f"{_shown(root)}: no PASCAL VOC data: there is no such folder")
    annotations = subfolder(root, ANNOTATION_FOLDERS)
    if annotations is not None:
        return _side_by_side(root, annotations, split)
    inside = _named(root, split)
    if inside is not None:
        nested = subfolder(inside, ANNOTATION_FOLDERS)
        found = Folder(nested or inside).with_suffix(".xml")
        if found:
            images = (subfolder(inside, IMAGE_FOLDERS) if nested else None) or inside
            pattern = [path for folder in subfolders(root) for path in _xml_below(folder)]
            return Split(found, Folder(images), pattern, [])
    if Folder(root).with_suffix(".xml"):
        return _without_lists(root, root, root, split)
    raise ValueError(f"{_shown(root)}: no PASCAL VOC data for the split {split!r}{_hint(root, split)}")


def voc_splits(root: Path) -> list[str]:
    """The splits of a data set, "all" where it has no lists; none where there is no data set in this format."""
    if not root.is_dir():
        return []
    annotations = subfolder(root, ANNOTATION_FOLDERS)
    if annotations is None:
        names = [folder.name for folder in subfolders(root) if _xml_below(folder)]
        return names or (["all"] if Folder(root).with_suffix(".xml") else [])
    inside = Folder(subfolder(annotations, ANNOTATION_FOLDERS) or annotations)
    parts = [folder.name for folder in subfolders(annotations) if _xml_below(folder)]
    if not parts and not inside.with_suffix(".xml") and not subfolder(root, ("imagesets",)):
        return []
    names = [*_lists(root, inside), *parts]
    # VOC's lists of single classes ("cat_train") are parts of the others.
    whole = [name for name in names if name.rpartition("_")[2] not in names or "_" not in name]
    return sorted(set(whole)) or ["all"]


def _hint(root: Path, split: str) -> str:
    """What is there, and what was looked for."""
    splits = [folder.name for folder in subfolders(root) if _xml_below(folder)]
    deeper = [folder for folder in subfolders(root) if subfolder(folder, ANNOTATION_FOLDERS)]
    others = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))[:12]
    hint = "; "
    if splits:
        hint += f"XML files are in {', '.join(map(printable, splits))}; "
    if deeper:
        hint += f"did you mean {_shown(deeper[0])}? "
    if not splits and (any(root.glob("*.json")) or any(root.glob("*/*.json"))):
        hint += "it has JSON files: is it COCO's format (CocoDetection)? "
    return (
        f"{hint}expected the folders Annotations, ImageSets/Main and JPEGImages, or annotations/ beside images/, or"
        f" XML files beside the images in {printable(split)}/; the folder has "
        f"{', '.join(map(printable, others)) or 'nothing'}"
    )


def _side_by_side(root: Path, annotations: Path, split: str) -> Split:
    """Annotations and images in two folders; the split is a list or a folder of both."""
    images = subfolder(root, IMAGE_FOLDERS) or (
        root if Folder(root).with_suffix(*IMAGE_SUFFIXES) else root / "JPEGImages"
    )
    deeper = subfolder(annotations, ANNOTATION_FOLDERS)
    lists = _lists(root, Folder(deeper or annotations))
    inside = _named(annotations, split)
    if deeper is not None and not Folder(annotations).with_suffix(".xml"):
        annotations = deeper
    elif inside is not None and split not in lists:
        found = Folder(inside).with_suffix(".xml")
        if found:
            everywhere = [path for folder in subfolders(annotations) for path in _xml_below(folder)]
            return Split(found, Folder(_named(images, split) or images), everywhere, [])
    if split in lists:
        everywhere = Folder(annotations).with_suffix(".xml")
        paths, repeated = _listed(lists[split], Folder(annotations))
        return Split(paths, Folder(images), everywhere, repeated)
    folders = [folder.name for folder in subfolders(annotations) if _xml_below(folder)]
    if not lists and not folders and not (root / "ImageSets").is_dir():
        return _without_lists(root, annotations, images, split)
    wanted = root / "ImageSets" / "Main" / f"{split}.txt"
    there = ", ".join(map(printable, sorted({*lists, *folders}))) or "no lists at all"
    raise ValueError(f"{_shown(wanted)}: no such file; {_shown(wanted.parent)} has {there}")


def _without_lists(root: Path, annotations: Path, images: Path, split: str) -> Split:
    """A set that nobody has split: it can be trained on as a whole."""
    found = Folder(annotations).with_suffix(".xml")
    if not found:
        raise ValueError(f"{_shown(annotations)}: no XML files in this folder{_hint(root, split)}")
    if split not in _WHOLE:
        raise ValueError(
            f"{_shown(root)}: no split {split!r}: the {len(found)} annotations in {_shown(annotations)} have no lists; "
            f"the whole set is the split 'all', 'train' or 'trainval'. For another, put the names of its images into "
            f"{_shown(root / 'ImageSets' / 'Main' / (split + '.txt'))}, one a line"
        )
    return Split(found, Folder(images), found, [])


def _lists(root: Path, annotations: Folder) -> dict[str, Path]:
    """The split lists by name. Outside ImageSets a text file is one if it names annotations."""
    sets = subfolder(root, ("imagesets",))
    places = [subfolder(sets, ("main",)), sets] if sets else []
    found: dict[str, Path] = {}
    for place in [*places, root, annotations.path]:
        for path in Folder(place).with_suffix(".txt") if place is not None else ():
            if place in places or _names_annotations(path, annotations):
                found.setdefault(path.stem, path)
    return found


def _names_annotations(path: Path, annotations: Folder) -> bool:
    try:
        return bool(_listed(path, annotations, strict=False)[0])
    except ValueError:
        return False


def _listed(path: Path, annotations: Folder, strict: bool = True) -> tuple[list[Path], list[str]]:
    """The annotations that a list names, in its order, each once, and the names that it has again."""
    shown = _shown(path)
    try:
        data = path.read_bytes()
        texts = decode_list(data)
    except OSError as error:
        raise ValueError(f"{shown}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{shown}: {error}") from error
    # The first of several readings that names only files that are there.
    readings = [[(_find(line, annotations), line) for line in _lines(text)] for text in texts]
    rows = next((rows for rows in readings if rows and all(found for found, _ in rows)), readings[0])
    if not rows:
        raise ValueError(f"{shown}: the list is empty; put one image's name on each line")
    chosen: dict[Path, None] = {}
    repeated = []
    for found, line in rows:
        if found is None and not strict:
            return [], []
        # A name without an annotation is an error of that annotation, which names its file.
        annotation = found or annotations.path / f"{_stem(line.split()[0])}.xml"
        if annotation in chosen:
            repeated.append(line)
        chosen[annotation] = None
    return list(chosen), repeated


def _lines(text: str) -> list[str]:
    lines = (line.strip().strip("\x00\ufeff").strip() for line in re.split(r"\r\n|\r|\n", text))
    return [line for line in lines if line]


def _find(line: str, annotations: Folder) -> Path | None:
    """The annotation that a line names: as a whole, without its last column (VOC's class lists have 1, 0 or -1 there),
    or by its first word; as a bare name, a file name or a path."""
    words = line.split()
    for name in dict.fromkeys([line, line.rpartition(" ")[0].rstrip(), line.rpartition("\t")[0].rstrip(), words[0]]):
        for stem in dict.fromkeys([name, _stem(name)]) if name else ():
            found = annotations.find(f"{stem}.xml")
            if found is not None:
                return found
    return None


def _stem(name: str) -> str:
    """A file's name without its folder (of either system) and the ending of an image or annotation."""
    base = name.strip("\"'").replace("\\", "/").rpartition("/")[2]
    stem, ending = os.path.splitext(base)
    return stem if ending.lower() in (*IMAGE_SUFFIXES, ".xml") else base


def find_image(images: Folder, stem: str, filename: str, near: str) -> Path:
    """The image of an annotation called `stem` that says `filename`: the file of the same name, or else the one that it
    says; of several that differ in their endings, the one that it says.

    Raises:
        ValueError: there is none; `near` is the annotation's file.
    """
    said = filename.strip().replace("\\", "/").rpartition("/")[2]  # a name, never a path out of the data set
    exact = images.find(said) if said and _stem(said) == stem else None
    if exact is not None and exact.suffix.lower() in IMAGE_SUFFIXES:
        return exact
    for base in dict.fromkeys([stem, _stem(said)]):
        for suffix in IMAGE_SUFFIXES if base else ():
            found = images.find(base + suffix) or images.find(base + suffix.upper())
            if found is not None:
                return found
    named = images.find(said) if said else None
    if named is not None and named.is_file():
        return named
    endings = ", ".join(IMAGE_SUFFIXES[1:])
    raise ValueError(
        f"{_shown(images.path / stem)}.jpg: no such image file (nor {endings}{', ' + printable(said) if said else ''}),"
        f" but {printable(near)} describes it; restore it or take its name out of the list"
    )


def subfolder(folder: Path, names: Sequence[str]) -> Path | None:
    """The subfolder with one of the names, in any case."""
    there = {path.name.lower(): path for path in subfolders(folder)}
    return next((there[name] for name in names if name in there), None)


def files_of_splits(
    root: Path, shared: Sequence[Path], split_of: Callable[[str], str], files_in: Callable[[Path], list[Path]]
) -> dict[str, Path]:
    """The file of each split, in formats that have one file a split: those in the folders `shared` and in `root` are
    named by their stems (`split_of`), those in other folders of `root` by the folder.

    Raises:
        ValueError: two files are the same split.
    """
    found: dict[str, Path] = {}

    def add(split: str, path: Path) -> None:
        if split in found:
            files = f"{_shown(found[split])} and {_shown(path)}"
            raise ValueError(f"{files} are both the split {split!r}; give the file that is meant as data_root")
        found[split] = path

    for place in [*shared, root]:
        for path in files_in(place):
            add(split_of(path.stem), path)
    for folder in subfolders(root):
        files = [] if folder in shared else files_in(folder)
        for path in files:
            add(folder.name if len(files) == 1 else f"{folder.name}/{path.stem}", path)
    return found


def _named(folder: Path, name: str) -> Path | None:
    """The subfolder `name`, also "." for the folder itself."""
    try:
        path = folder / name
        return path if name and path.is_dir() else None
    except ValueError:  # a null byte
        return None


def subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _xml_below(folder: Path) -> list[Path]:
    """The annotations of a folder, or of the one of annotations in it."""
    return Folder(folder).with_suffix(".xml") or (
        Folder(nested).with_suffix(".xml") if (nested := subfolder(folder, ANNOTATION_FOLDERS)) else []
    )


def _shown(path: Path) -> str:
    return printable(os.fspath(path))
