"""Which data a run uses: the one description that commands, configuration files and checkpoints share."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frcnn_fast._names import checked_class_names, printable
from frcnn_fast._options import check_choices, option
from frcnn_fast._settings import check_settings
from frcnn_fast.data.augment import AugmentedDetection, imported_transforms
from frcnn_fast.data.cache import CachedDetection
from frcnn_fast.data.digits import DigitsDetection
from frcnn_fast.data.formats import FORMATS, Reading, find_format, open_files, splits_of
from frcnn_fast.data.transforms import DetectionDataset

AUTO, NONE = "auto", "none"
DIGITS = "digits"
_TRAIN, _TEST = ("trainval", "train", "all"), ("test", "val", "valid", "validation")
_MOST_NAMES = 12


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A training set and the set to evaluate on. What is "auto" is found by looking at the data (`resolved`)."""

    dataset: str = option(
        AUTO,
        "the data's format; digits: embedded, handwritten digits on photographs; auto: found by looking at data_root; "
        "without one the digits",
        (AUTO, DIGITS, *FORMATS),
    )
    data_root: str | None = option(None, "folder of the data, or its annotation file, data.yaml or table")
    image_root: str | None = option(None, "folder of the images of coco or csv (default: found near the annotations)")
    train_split: str = option(AUTO, "split to train on; auto: trainval, else train, else the only one")
    test_split: str = option(
        AUTO, "split to evaluate on; auto: test, or val if it is no part of the training; none: no evaluation"
    )
    class_names: tuple[str, ...] | None = option(None, "label k is the k-th name (default: all names in the data)")
    skip_broken: bool = option(False, "leave out, and count, images that are broken or badly annotated")
    ignore_other_classes: bool = option(False, "leave out objects of other classes than the detector's")
    transforms: str | None = option(
        None,
        "module:function that gives random changes of the training images: torchvision's, albumentations', your own",
    )
    cache: str = option(NONE, "where decoded images are kept for the next time", (NONE, "memory", "disk"))
    cache_mb: int = option(4096, "the most megabytes that the cache of the training or of the test set takes")
    cache_dir: str | None = option(None, "folder of the cache on disk (default: ~/.cache/frcnn_fast)")
    zero_based: bool = option(False, "the annotations count pixels from 0, not from 1")

    def __post_init__(self) -> None:
        if isinstance(self.class_names, list):
            object.__setattr__(self, "class_names", tuple(self.class_names))
        check_settings(self, {"cache_mb": (1, 2**31)})
        check_choices(self)
        if self.class_names is not None:
            checked_class_names(self.class_names)
        if self.dataset == DIGITS and self.data_root:
            raise ValueError(f"data_root: got {self.data_root!r}, expected nothing: the digits need no data")
        if self.dataset not in (AUTO, DIGITS) and not self.data_root:
            raise ValueError(f"data_root: got nothing, expected the folder of the data (dataset {self.dataset!r})")
        if self.cache != NONE and not self.data_root:
            raise ValueError(f"cache: got {self.cache!r}, expected 'none': the digits are not read from files")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataConfig:
        """The config that `to_dict` gave. ValueError names settings that this version does not know."""
        if not isinstance(values, Mapping):
            raise ValueError(f"data: got {values!r}, expected settings by name")
        strange = sorted(map(str, set(values) - {field.name for field in dataclasses.fields(cls)}))
        if strange:
            raise ValueError(f"data: got unknown settings {', '.join(strange)}; a newer version may have written them")
        return cls(**values)

    def resolved(self) -> DataConfig:
        """The same data with nothing left to "auto": looked up, and paths absolute. A training split that is not there
        stays "auto"; a test split becomes "none".

        Raises:
            ValueError: `data_root` holds no data set.
        """
        if not self.data_root:
            return dataclasses.replace(
                self,
                dataset=DIGITS,
                train_split=_or(self.train_split, "train"),
                test_split=_or(self.test_split, "test"),
            )
        folders = ("data_root", "image_root", "cache_dir")
        given = {field: path for field in folders if (path := getattr(self, field))}
        paths = {field: os.path.abspath(os.path.expanduser(path)) for field, path in given.items()}
        root = Path(paths["data_root"])
        name = find_format(root) if self.dataset == AUTO else self.dataset
        train, test = self.train_split, self.test_split
        if AUTO in (train, test):
            there = splits_of(root, name)
            if train == AUTO:
                only = there[0] if len(there) == 1 and not _first_of(_TEST, there) else AUTO
                train = _first_of(_TRAIN, there) or only
            if test == AUTO:
                whole = _first_of(("trainval", "all"), [train])  # which "val" is a part of
                test = _first_of(_TEST[:1] if whole else _TEST, there) or NONE
        return dataclasses.replace(self, dataset=name, train_split=train, test_split=test, **paths)

    def open_train(self) -> DetectionDataset:
        """The training set.

        Raises:
            ValueError: it is not there, or is broken; names the file.
        """
        found = self.resolved()
        if found.train_split == AUTO:
            raise ValueError(
                f"train_split: {found._splits()}, expected one of {', '.join(_TRAIN)}; name the one to train on"
            )
        training = found._open(found.train_split, self.class_names)
        return AugmentedDetection(training, imported_transforms(self.transforms)) if self.transforms else training

    def open_test(self, class_names: Sequence[str] | None = None) -> DetectionDataset | None:
        """The set to evaluate on, with the classes given, or else the config's; None where there is none.

        Raises:
            ValueError: it is broken, or named and not there; names the file.
        """
        found = self.resolved()
        return None if found.test_split == NONE else found._open(found.test_split, class_names or self.class_names)

    def reading(self, class_names: Sequence[str] | None = None) -> Reading:
        """What the readers are told."""
        images = None if self.image_root is None else Path(self.image_root)
        return Reading(not self.zero_based, images, class_names or self.class_names)

    def without_test(self) -> str:
        """Why `open_test` gives none."""
        return f"{self._splits()}, none of them test or val; test_split names another"

    def described(self, training: Any = None, test: Any = None) -> str:
        """One line that says what was found and how it was read, of a config that is `resolved`."""
        found = "the embedded digits" if self.data_root is None else printable(os.fspath(self.data_root))
        title = "" if self.data_root is None else f" is {FORMATS[self.dataset].title}"
        parts = [
            f"{what} {printable(split)} ({len(part)} images)"
            for what, split, part in (("train", self.train_split, training), ("test", self.test_split, test))
            if part is not None
        ]
        names: list[str] = next((part.class_names for part in (training, test) if part is not None), [])
        more = f", … {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        classes = f"{len(names)} classes: {', '.join(map(printable, names[:_MOST_NAMES]))}{more}"
        return f"{found}{title}: {', '.join([*parts, classes])}"

    def _splits(self) -> str:
        root, found = printable(os.fspath(self.data_root or "")), self.resolved()
        there = splits_of(Path(found.data_root or ""), found.dataset)
        return f"{root} ({FORMATS[found.dataset].title}) has the splits {', '.join(map(printable, there))}"

    def _open(self, split: str, class_names: Sequence[str] | None) -> DetectionDataset:
        if self.data_root is None:
            return DigitsDetection(split)
        dataset = open_files(
            Path(self.data_root),
            self.dataset,
            split,
            self.reading(class_names),
            class_names=class_names,
            ignore_other_classes=self.ignore_other_classes,
            skip_broken=self.skip_broken,
        )
        if self.cache == NONE:
            return dataset
        folder = Path(self.cache_dir or "~/.cache/frcnn_fast").expanduser() if self.cache == "disk" else None
        return CachedDetection(dataset, self.cache_mb, folder)


def _or(split: str, default: str) -> str:
    return default if split == AUTO else split


def _first_of(wanted: Sequence[str], there: Sequence[str]) -> str | None:
    """The first of the wanted names that is there, perhaps with a year behind it ("train2017")."""
    for name in wanted:
        found = [split for split in there if re.fullmatch(name + r"([_-]?\d{4})?", split, flags=re.IGNORECASE)]
        if len(found) == 1:
            return found[0]
    return None
