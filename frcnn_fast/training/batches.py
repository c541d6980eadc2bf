"""A seeded stream of training batches that an unreadable image does not end."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from frcnn_fast._ranks import ALONE, Ranks
from frcnn_fast.data import Batch, Collate, DetectionDataset, DetectionView
from frcnn_fast.data.targets import TargetError
from frcnn_fast.data.transforms import Sample
from frcnn_fast.model.config import DetectorConfig
from frcnn_fast.training.graph import STRIDE
from frcnn_fast.training.interrupt import ignore_signals
from frcnn_fast.training.options import TrainOptions
from frcnn_fast.training.order import Scales, ShapeGroups, wide_images
from frcnn_fast.training.randomness import drawn_anew

_ATTEMPTS = 10


class Item(NamedTuple):
    """One item of the stream of training images."""

    place: int  # in the stream: 0, 1, ...
    image: int  # in the data set


class ShuffledForever(Sampler[Item]):
    """Indices 0..length-1 in random order, then in another one, and so on: places `start` to `start` + `total`.

    The order depends on the seed alone, not on where the stream is entered. Of every `batch_size` places each rank gets
    its share, the first ones of them the first rank.
    """

    def __init__(
        self,
        length: int,
        total: int,
        seed: int,
        start: int = 0,
        arranged: Callable[[Tensor, int], Tensor] | None = None,
        *,
        batch_size: int = 1,
        ranks: Ranks = ALONE,
    ) -> None:
        self.length, self.seed = length, seed
        self.places = range(start, start + total)
        self._arranged, self._batch, self._ranks = arranged, batch_size, ranks

    def __len__(self) -> int:
        return len(self.places) // self._ranks.count

    def __iter__(self) -> Iterator[Item]:
        generator = torch.Generator().manual_seed(self.seed)
        share = self._batch // self._ranks.count
        begin = 0
        while begin < self.places.stop:
            order = torch.randperm(self.length, generator=generator)
            if self._arranged is not None:
                order = self._arranged(order, begin)
            for place in range(max(begin, self.places.start), min(begin + self.length, self.places.stop)):
                if place % self._batch // share == self._ranks.rank:
                    yield Item(place, int(order[place - begin]))
            begin += self.length


class _Read(NamedTuple):
    """An image, and what went wrong before it could be read."""

    sample: Sample | None  # None after too many failures
    errors: list[str]


class _Readable:
    """A view of which every item can be read: another image takes an unreadable one's place.

    Random changes of an image are drawn by its place in the stream, so that neither the number of workers nor where
    the stream was entered matters. Errors are values here: a worker process could raise them only with its traceback
    in the message.
    """

    def __init__(self, view: DetectionView, seed: int, scales: Scales) -> None:
        self.view, self.seed, self.scales = view, seed, scales

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, item: Item) -> _Read:
        with drawn_anew(self.seed, item.place):
            return self._read(item.image, self.scales.at(item.place))

    def _read(self, index: int, shorter: int | None) -> _Read:
        errors: list[str] = []
        replacements = random.Random(index)  # the same in every process
        while len(errors) < _ATTEMPTS:
            try:
                return _Read(self.view.at(index, shorter), errors)
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
    """Batches of resized (and mirrored) images of a data set; the order depends on the seed alone.

    An image that cannot be read (ValueError or OSError) is left out with a warning, and a random other one takes its
    place. `unreadable` holds the messages of all so far, each once.

    Args:
        total: how many batches; default: all of the training.
        start: how many come before them, which are not read.
        ranks: the processes that share each batch; this one gets its part.
        proposals: of all images, by image id, in pixels of the image; the batches then carry them.

    Raises:
        ValueError: the batch size is no multiple of the number of ranks; the data set is empty; while iterating, ten
            images in a row could not be read, or a target breaks the rules of `frcnn_fast.data.checked_target`.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        config: DetectorConfig,
        options: TrainOptions,
        pin_memory: bool = False,
        *,
        total: int | None = None,
        start: int = 0,
        unreadable: dict[str, None] | None = None,
        ranks: Ranks = ALONE,
        proposals: Mapping[str, Tensor] | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("dataset: got an empty data set, expected at least one image")
        sizes = config.shorter, config.longer
        view = DetectionView(dataset, *sizes, flips=options.flips, warn=False, rule=config.resize, proposals=proposals)
        self.total = sum(stage.iterations for stage in options.stages()) - start if total is None else total
        self.unreadable: dict[str, None] = {} if unreadable is None else unreadable
        size = options.batch_size
        if size % ranks.count:
            raise ValueError(f"batch_size: got {size}, expected a multiple of {ranks.count}, the number of processes")
        scales = Scales(options.multi_scale, config.shorter, options.seed, size)
        arranged = ShapeGroups(wide_images(dataset, options.flips), size) if options.group_shapes else None
        places = self.total * size, options.seed, start * size
        self._loader: DataLoader[tuple[Batch | None, list[str]]] = DataLoader(
            _Readable(view, options.seed, scales),  # type: ignore[arg-type]  # any map-style object will do
            batch_size=size // ranks.count,
            sampler=ShuffledForever(len(view), *places, arranged, batch_size=size, ranks=ranks),
            collate_fn=_CollateReadable(Collate(config.preprocess, STRIDE if options.cuda_graph else 32)),
            num_workers=options.workers,
            worker_init_fn=ignore_signals,
            pin_memory=pin_memory,
            # One of its own: starting to read must not move the generator that the training draws from.
            generator=torch.Generator().manual_seed(options.seed),
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
