"""A seeded stream of training batches that an unreadable image does not end."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Sampler

from frcnn_fast.data import Batch, Collate, DetectionDataset, DetectionView
from frcnn_fast.data.targets import TargetError
from frcnn_fast.data.transforms import Sample
from frcnn_fast.model.config import DetectorConfig
from frcnn_fast.training.interrupt import ignore_signals
from frcnn_fast.training.options import TrainOptions

_ATTEMPTS = 10


class ShuffledForever(Sampler[int]):
    """Indices 0..length-1 in random order, then in another one, and so on; `total` of them."""

    def __init__(self, length: int, total: int, seed: int) -> None:
        self.length, self.total, self.seed = length, total, seed

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        left = self.total
        while left > 0:
            order = torch.randperm(self.length, generator=generator)[:left]
            yield from order.tolist()
            left -= len(order)


class _Read(NamedTuple):
    """An image, and what went wrong before it could be read."""

    sample: Sample | None  # None after too many failures
    errors: list[str]


class _Readable:
    """A view of which every item can be read: another image takes an unreadable one's place.

    Errors are values here: a worker process could raise them only with its traceback in the message.
    """

    def __init__(self, view: DetectionView) -> None:
        self.view = view

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, index: int) -> _Read:
        errors: list[str] = []
        replacements = random.Random(index)  # the same in every process
        while len(errors) < _ATTEMPTS:
            try:
                return _Read(self.view[index], errors)
            except TargetError:  # a mistake in the data set, which is to be mended
                raise
            except (ValueError, OSError) as error:
                errors.append(str(error))
                index = replacements.randrange(len(self.view))
        return _Read(None, errors)


class _CollateReadable:
    """One batch of what could be read, and all errors; no batch where an item could not be replaced."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[_Read]) -> tuple[Batch | None, list[str]]:
        samples = [item.sample for item in items if item.sample is not None]
        errors = [error for item in items for error in item.errors]
        return self.collate(samples) if len(samples) == len(items) else None, errors


class TrainingBatches:
    """`total` batches of resized (and mirrored) images of a data set; the order depends on the seed alone.

    An image that cannot be read (ValueError or OSError) is left out with a warning, and a random other one takes its
    place. `unreadable` holds the messages of all so far, each once.

    Raises:
        ValueError: the data set is empty; while iterating, ten images in a row could not be read, or a target breaks
            the rules of `frcnn_fast.data.checked_target`.
    """

    def __init__(
        self, dataset: DetectionDataset, config: DetectorConfig, options: TrainOptions, pin_memory: bool = False
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("dataset: got an empty data set, expected at least one image")
        view = DetectionView(
            dataset, config.shorter, config.longer, flips=options.flips, warn=False, rule=config.resize
        )
        self.total = sum(stage.iterations for stage in options.stages())
        self.unreadable: dict[str, None] = {}
        self._loader: DataLoader[tuple[Batch | None, list[str]]] = DataLoader(
            _Readable(view),  # type: ignore[arg-type]  # any map-style object will do
            batch_size=options.batch_size,
            sampler=ShuffledForever(len(view), self.total * options.batch_size, options.seed),
            collate_fn=_CollateReadable(Collate(config.preprocess)),
            num_workers=options.workers,
            worker_init_fn=ignore_signals,
            pin_memory=pin_memory,
        )

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Batch]:
        for batch, errors in self._loader:
            for error in errors:
                self._note(error)
            if batch is None:
                raise ValueError(f"dataset: {_ATTEMPTS} images in a row could not be read, the last: {errors[-1]}")
            yield batch

    def _note(self, error: str) -> None:
        if error in self.unreadable:
            return
        self.unreadable[error] = None
        count = len(self.unreadable)
        if count & (count - 1) == 0:  # 1, 2, 4, ...: a data set with many gets few lines
            warnings.warn(
                f"left out {count} unreadable image{'s' * (count > 1)} so far, the last: {error}", stacklevel=3
            )
