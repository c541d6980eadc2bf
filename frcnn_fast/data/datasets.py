"""What the library asks of any data set: class names, targets without their images, a check before the training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Subset

from frcnn_fast._names import checked_class_names
from frcnn_fast.data.targets import (
    Target,
    checked_sample,
    checked_target,
    cut_warning,
)

_MOST_ITEMS, _MOST_SECONDS = 1000, 10.0


def class_names_of(dataset: Any, name: str = "dataset") -> list[str]:
    """The class names of a data set, also where it lies under `torch.utils.data.Subset` (so `random_split`),
    `ConcatDataset` or any other wrapper that keeps it as `dataset`.

    Raises:
        ValueError: there are none, they break the rules of `checked_class_names`, or the parts of a
            concatenation differ.
    """
    inner, seen = dataset, list[Any]()
    while getattr(inner, "class_names", None) is None and not any(inner is other for other in seen):
        seen.append(inner)
        parts = getattr(inner, "datasets", None)
        if isinstance(inner, ConcatDataset) and parts:
            names = [class_names_of(part, name) for part in parts]
            if any(other != names[0] for other in names):
                raise ValueError(f"{name}: its parts have different classes, {names}, expected the same for all")
            return names[0]
        inner = getattr(inner, "dataset", inner)
    if getattr(inner, "class_names", None) is None:
        raise ValueError(
            f"{name}: {type(dataset).__name__} has no class_names, expected a list of names without the background "
            "(label k is class_names[k - 1]); set it: dataset.class_names = [...]"
        )
    return checked_class_names(inner.class_names, f"{name}.class_names")


def quick_target(dataset: Any, index: int) -> tuple[Target, tuple[int, int] | None] | None:
    """The target of item `index` and its image's size (where known) without opening the image; None where the data
    set has no quick way."""
    # Only torch's own classes: one of another class may change what it passes on.
    if type(dataset) is Subset:
        return quick_target(dataset.dataset, int(dataset.indices[index]))
    if type(dataset) is ConcatDataset:
        part = next(k for k, end in enumerate(dataset.cumulative_sizes) if index < end)
        return quick_target(dataset.datasets[part], index - (dataset.cumulative_sizes[part - 1] if part else 0))
    target, item = _definer(type(dataset), "target"), _definer(type(dataset), "__getitem__")
    # A class that changes the items of the one it derives from does not change its targets.
    if target is None or item is None or not issubclass(target, item):
        return None
    size = getattr(dataset, "image_size", None)
    return dataset.target(index), size(index) if callable(size) else None


def check_dataset(dataset: Any, name: str = "dataset", *, images: bool = False) -> None:
    """Refuse a data set whose targets break the rules of `checked_target`, before hours are spent on it.

    With a method `target(index)` (and perhaps `image_size(index)`, height and width) beside `__getitem__` all
    targets are looked at. Of other data sets up to 1,000 items, evenly spread, are loaded, for ten seconds at most; an
    item that cannot be loaded is left to the training. Boxes that stick out are counted in one warning.

    Args:
        dataset: any map-style data set.
        name: what an error calls it.
        images: an image that cannot be read is an error; of a `VocDetection` all are read.

    Raises:
        ValueError: names the image, the key and its value.
    """
    names, count = class_names_of(dataset, name), len(dataset)
    cut: list[str] = []
    by_target = count > 0 and quick_target(dataset, 0) is not None
    end = time.monotonic() + _MOST_SECONDS
    for index in range(count) if by_target else _spread(count, _MOST_ITEMS):
        try:
            found = quick_target(dataset, index)
            sample = None if found else dataset[index]
        except (OSError, ValueError, RuntimeError):
            if by_target or images:
                raise
            continue
        try:
            if found:
                checked_target(*found, len(names), name=index, cut=cut)
            else:
                checked_sample(sample, len(names), name=index, cut=cut)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if not by_target and time.monotonic() > end:
            break
    cut_warning(cut, f"{name}: ")
    if images:
        for text in broken_images(dataset):
            raise ValueError(f"{name}: {text}")


def check_datasets(training: Any, test: Any = None) -> None:
    """`check_dataset` of both, and that they have the same classes."""
    check_dataset(training)
    if test is None:
        return
    ours, theirs = class_names_of(training), class_names_of(test, "test")
    if ours != theirs:
        raise ValueError(f"test: its classes are {theirs}, expected those of the training set, {ours}")
    if len(test) == 0:
        raise ValueError("test: got an empty data set, expected at least one image (or None for no evaluation)")
    check_dataset(test, "test", images=True)


def broken_images(dataset: Any, indices: Sequence[int] | None = None) -> list[str]:
    """What is wrong with the image files of a data set that has a `read(index)`, as `VocDetection` does."""
    if type(dataset) is Subset:
        chosen = range(len(dataset)) if indices is None else indices
        return broken_images(dataset.dataset, [int(dataset.indices[index]) for index in chosen])
    if not callable(getattr(dataset, "read", None)):
        return []
    return [error for error in errors_of(dataset.read, range(len(dataset)) if indices is None else indices) if error]


def errors_of(read: Callable[[int], Any], indices: Iterable[int]) -> list[str]:
    """The ValueErrors of read(index), "" where there is none, on a few threads: decoding an image lets others run."""

    def error_of(index: int) -> str:
        try:
            read(index)
        except ValueError as error:
            return str(error) or "ValueError"
        return ""

    with ThreadPoolExecutor(max(1, min(8, torch.get_num_threads()))) as pool:
        return list(pool.map(error_of, indices))


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0..count-1, evenly spread, the first ones of every part before the others."""
    chosen = [k * count // min(count, most) for k in range(min(count, most))]
    return chosen[::7] + [index for place, index in enumerate(chosen) if place % 7]


def _definer(kind: type, method: str) -> type | None:
    """The class that gives `kind` its method."""
    return next((base for base in kind.__mro__ if method in vars(base)), None)
