"""Which data a run uses: the one description that commands, configuration files and checkpoints share."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frcnn_fast._names import checked_class_names, printable
from frcnn_fast._options import check_choices, option
from frcnn_fast._settings import check_settings
from frcnn_fast.data.digits import DigitsDetection
from frcnn_fast.data.layout import split_names
from frcnn_fast.data.transforms import DetectionDataset
from frcnn_fast.data.voc import VocDetection

AUTO, NONE = "auto", "none"
_TRAIN, _TEST = ("trainval", "train", "all"), ("test", "val", "valid", "validation")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A training set and the set to evaluate on. What is "auto" is found by looking at the data (`resolved`)."""

    dataset: str = option(
        AUTO,
        "digits: embedded, handwritten digits on photographs; voc: a PASCAL VOC tree; auto: what lies in data_root, or "
        "else the digits",
        (AUTO, "digits", "voc"),
    )
    data_root: str | None = option(None, "folder of the data: Annotations, ImageSets/Main, JPEGImages")
    train_split: str = option(AUTO, "split to train on; auto: trainval, else train, else the whole set")
    test_split: str = option(
        AUTO, "split to evaluate on; auto: test, or val if it is no part of the training; none: no evaluation"
    )
    class_names: tuple[str, ...] | None = option(None, "label k is the k-th name (default: all names in the data)")
    skip_broken: bool = option(False, "leave out, and count, images that are broken or badly annotated")
    ignore_other_classes: bool = option(False, "leave out objects of other classes than the detector's")
    zero_based: bool = option(False, "the annotations count pixels from 0, not from 1")

    def __post_init__(self) -> None:
        if isinstance(self.class_names, list):
            object.__setattr__(self, "class_names", tuple(self.class_names))
        check_settings(self, {})
        check_choices(self)
        if self.class_names is not None:
            checked_class_names(self.class_names)
        if self.dataset == "digits" and self.data_root:
            raise ValueError(f"data_root: got {self.data_root!r}, expected nothing: the digits need no data")
        if self.dataset not in (AUTO, "digits") and not self.data_root:
            raise ValueError(f"data_root: got nothing, expected the folder of the data (dataset {self.dataset!r})")

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
        """The same data with nothing left to "auto": looked up, and the folder's path absolute. A training split that
        is not there stays "auto"; a test split becomes "none".

        Raises:
            ValueError: `data_root` holds no data set.
        """
        if not self.data_root:
            return dataclasses.replace(
                self, dataset="digits", train_split=_first(self.train_split), test_split=_first(self.test_split, "test")
            )
        train, test = self.train_split, self.test_split
        if AUTO in (train, test):
            there = split_names(Path(self.data_root))
            if train == AUTO:
                train = next((name for name in _TRAIN if name in there), AUTO)
            if test == AUTO:
                # "val" is a part of "trainval" and of the whole.
                wanted = _TEST if train == "train" else _TEST[:1]
                test = next((name for name in wanted if name in there), NONE)
        return dataclasses.replace(
            self, dataset="voc", data_root=os.path.abspath(self.data_root), train_split=train, test_split=test
        )

    def open_train(self) -> DetectionDataset:
        """The training set.

        Raises:
            ValueError: it is not there, or is broken; names the file.
        """
        found = self.resolved()
        if found.train_split == AUTO:
            raise ValueError(f"train_split: {found._splits()}, expected one of {', '.join(_TRAIN)}; name another")
        return found._open(found.train_split, self.class_names)

    def open_test(self, class_names: Sequence[str] | None = None) -> DetectionDataset | None:
        """The set to evaluate on, with the classes given, or else the config's; None where there is none.

        Raises:
            ValueError: it is broken, or named and not there; names the file.
        """
        found = self.resolved()
        return None if found.test_split == NONE else found._open(found.test_split, class_names or self.class_names)

    def without_test(self) -> str:
        """Why `open_test` gives none."""
        return f"{self._splits()}, none of them test or val; test_split names another"

    def _splits(self) -> str:
        root = printable(os.fspath(self.data_root or ""))
        return f"{root} has the splits {', '.join(map(printable, split_names(Path(root))))}"

    def _open(self, split: str, class_names: Sequence[str] | None) -> DetectionDataset:
        if self.data_root is None:
            return DigitsDetection(split)
        return VocDetection(
            self.data_root,
            split,
            class_names=class_names,
            one_based=not self.zero_based,
            ignore_other_classes=self.ignore_other_classes,
            skip_broken=self.skip_broken,
        )


def _first(split: str, default: str = "train") -> str:
    return default if split == AUTO else split
