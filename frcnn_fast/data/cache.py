"""Decoded images kept for the next time: in memory that all workers share, or in a file."""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frcnn_fast.data.files import FileDetection
from frcnn_fast.data.records import Size
from frcnn_fast.data.targets import Target
from frcnn_fast.data.transforms import Sample


class CachedDetection:
    """A data set of files whose decoded images are kept, as many as fit: the others are decoded each time.

    Which images those are is decided beforehand, by their headers: the first ones. Nothing is ever thrown out, since
    in a training, which sees every image once in each round, throwing out helps nobody. An image has its fixed place,
    so workers need no lock: two that decode the same image write the same bytes.

    Without a folder the images are in memory that is taken as it is filled and that forked workers share; workers that
    are spawned have no cache. With a folder they are in one file there, which later runs find again: it is named after
    the images' paths, sizes and times, so a changed data set gets another one. Every image there has a checksum: one
    that a crash left incomplete is decoded anew. Delete the folder when it is in the way.

    Args:
        dataset: a `FileDetection`.
        megabytes: the most that the images take, at least 1.
        folder: where the file is; None keeps the images in memory.

    Raises:
        ValueError: the data set does not lie in files, or `megabytes` is too small.
        OSError: the file cannot be made.
    """

    def __init__(
        self, dataset: FileDetection, megabytes: int = 4096, folder: str | os.PathLike[str] | None = None
    ) -> None:
        if not isinstance(dataset, FileDetection):
            raise ValueError(f"dataset: got {type(dataset).__name__}, expected one that lies in files")
        if megabytes < 1:
            raise ValueError(f"megabytes: got {megabytes}, expected at least 1")
        self.dataset, self.class_names, self.class_numbers = dataset, dataset.class_names, dataset.class_numbers
        sizes = [dataset.image_size(k) or (0, 0) for k in range(len(dataset))]
        ends = list(itertools.accumulate((3 * height * width for height, width in sizes), initial=0))
        # The images' places, behind a checksum for each.
        self._places = [4 * len(sizes) + start for start in ends[:-1]]
        self.kept = sum(4 * len(sizes) + end <= megabytes << 20 for end in ends[1:])  # this many, the first ones
        self._length = max(1, 4 * len(sizes) + ends[self.kept])
        self._file = None if folder is None else Path(folder) / f"{_digest(dataset)}-{megabytes}.images"
        self._bytes: mmap.mmap | None = None
        self._open()

    def _open(self) -> None:
        if self._file is None:
            self._bytes = mmap.mmap(-1, self._length)
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with open(self._file, "a+b") as file:
            if os.fstat(file.fileno()).st_size != self._length:
                os.truncate(file.fileno(), 0)
                # A disk that is full is an error now; a write into a hole would end the process without a word.
                reserve = getattr(os, "posix_fallocate", None)
                reserve(file.fileno(), 0, self._length) if reserve else os.truncate(file.fileno(), self._length)
            self._bytes = mmap.mmap(file.fileno(), self._length)

    def __getstate__(self) -> dict[str, Any]:
        if self._file is None:
            warnings.warn(
                "cache: workers that are not forked have no share in a cache in memory; keep it on disk", stacklevel=2
            )
        return {**self.__dict__, "_bytes": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._file is not None:
            self._open()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        target = self.dataset.target(index)
        copies = {key: value.clone() if isinstance(value, Tensor) else value for key, value in target.items()}
        return self.read(index), copies

    def read(self, index: int) -> Tensor:
        """The image of item `index`, in memory of its own."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a data set of {len(self)} items")
        index %= len(self)
        if self._bytes is None or index >= self.kept:
            return self.dataset.read(index)
        height, width = self.dataset.image_size(index) or (0, 0)
        place = slice(self._places[index], self._places[index] + 3 * height * width)
        # The checksum is written last and is never 0 where an image is.
        checksum = int.from_bytes(self._bytes[4 * index : 4 * index + 4], "little")
        if checksum:
            pixels = self._bytes[place]
            if self._file is None or _checksum(pixels) == checksum:
                return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(height, width, 3).permute(2, 0, 1)
        image = self.dataset.read(index)
        if image.shape == (3, height, width):
            pixels = image.permute(1, 2, 0).numpy().tobytes()
            self._bytes[place] = pixels
            self._bytes[4 * index : 4 * index + 4] = _checksum(pixels).to_bytes(4, "little")
        return image

    def target(self, index: int) -> Target:
        """The target of item `index`, without its image."""
        return self.dataset.target(index)

    def image_size(self, index: int) -> Size | None:
        """(height, width) of image `index`, without decoding it."""
        return self.dataset.image_size(index)

    def image_path(self, index: int) -> Path:
        """The file of image `index`."""
        return self.dataset.image_path(index)


def _checksum(pixels: bytes) -> int:
    return zlib.crc32(pixels) or 1


def _digest(dataset: FileDetection) -> str:
    """What the cache of a data set is called: other files, or files that were changed, get another name."""
    digest = hashlib.blake2b(digest_size=16)
    for k in range(len(dataset)):
        path = dataset.image_path(k)
        try:
            told = path.stat()
            state = (told.st_size, told.st_mtime_ns)
        except OSError:  # its item will say so
            state = (0, 0)
        digest.update(repr((os.path.abspath(path), state, dataset.image_size(k), dataset.is_turned(k))).encode())
    return digest.hexdigest()
