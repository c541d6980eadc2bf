"""The embedded data set: real handwritten digits on real photographs, made on the fly."""

from __future__ import annotations

import functools

import numpy as np
import torch

from frcnn_fast._extras import require
from frcnn_fast.data.transforms import Sample

TRAIN_SCANS = 1400
TRAIN_LENGTH = 1_000_000
TEST_LENGTH = 200
MIN_HEIGHT, MAX_HEIGHT = 24, 96
MAX_DIGITS = 8

_CELLS = 8  # a scan is 8 × 8 cells
_MARGIN = 1  # empty cells around it, for strokes that touch its edge
_MAX_OVERLAP = 0.1  # of the smaller box
_ATTEMPTS = 30


class DigitsDetection:
    """scikit-learn's 1,797 scanned digits, pasted at many sizes on its two sample photographs.

    Each image has 1 to 8 digits whose scans are 24 to 96 pixels high (evenly in the logarithm), in a random
    colour with a random contrast to what is behind them, on a random crop of a photograph at a random scale.
    A digit's box is the tight box of its visible ink (at least half opaque), whole pixels, half-open. Boxes
    overlap by at most a tenth of the smaller one. No object is difficult.

    1,400 scans make the training images, the other 397 the test images; which ones is fixed (shuffled
    once, so a writer may be in both). Item i depends on (split, seed, i) only: training never repeats a
    image, and any process makes the same one.

    Args:
        split: "train" or "test".
        seed: non-negative; another seed gives other images of the same scans.
        length: number of items; default 1,000,000 (train), 200 (test).
        size: (height, width) of the images, each at least 128.

    Raises:
        ValueError: an argument is out of its range.
        ImportError: scikit-learn or pillow is missing.
    """

    def __init__(
        self, split: str, seed: int = 0, length: int | None = None, size: tuple[int, int] = (192, 256)
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if length is not None and length < 0:
            raise ValueError(f"length must not be negative, got {length}")
        if len(size) != 2 or min(size) < 128:
            raise ValueError(f"size must be (height, width), each at least 128 pixels, got {tuple(size)}")
        default = TRAIN_LENGTH if split == "train" else TEST_LENGTH
        self.split, self.seed = split, seed
        self.length = default if length is None else length
        self.size = (int(size[0]), int(size[1]))
        self.class_names = [str(digit) for digit in range(10)]
        scans, labels = _scans()
        part = slice(None, TRAIN_SCANS) if split == "train" else slice(TRAIN_SCANS, None)
        self._scans, self._labels = scans[part], labels[part]
        self._photographs = _photographs(self.size)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not -self.length <= index < self.length:
            raise IndexError(f"index {index} is outside a data set of {self.length} items")
        index %= self.length
        rng = np.random.default_rng((self.seed, self.split == "test", index))
        canvas = self._background(rng)

        count = int(rng.integers(1, MAX_DIGITS + 1))
        heights = np.exp(rng.uniform(np.log(MIN_HEIGHT), np.log(MAX_HEIGHT), count)).round().astype(int)
        boxes: list[tuple[int, int, int, int]] = []
        labels: list[int] = []
        for height in sorted(heights.tolist(), reverse=True):  # large ones first: they find room
            pick = int(rng.integers(len(self._scans)))
            ink = _render(self._scans[pick], height)
            box = self._free_place(rng, ink.shape, boxes)
            if box is None:
                continue
            boxes.append(box)
            labels.append(int(self._labels[pick]) + 1)
            _paint(rng, canvas[box[1] : box[3], box[0] : box[2]], ink)

        target = {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "difficult": torch.zeros(len(labels), dtype=torch.bool),
            "image_id": f"digits-{self.split}-{self.seed}-{index}",
        }
        return torch.from_numpy((canvas + 0.5).astype(np.uint8)).permute(2, 0, 1), target

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        """A float32 crop [H, W, 3] of a photograph, perhaps mirrored, brightness and contrast changed."""
        photograph = self._photographs[int(rng.integers(len(self._photographs)))]
        height, width = self.size
        top = int(rng.integers(photograph.shape[0] - height + 1))
        left = int(rng.integers(photograph.shape[1] - width + 1))
        crop = photograph[top : top + height, left : left + width]
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        gain, middle = rng.uniform(0.5, 1.0), rng.uniform(70.0, 185.0)
        curve = np.clip((np.arange(256, dtype=np.float32) - 127.5) * gain + middle, 0, 255).astype(np.float32)
        return curve[crop]

    def _free_place(
        self, rng: np.random.Generator, shape: tuple[int, ...], taken: list[tuple[int, int, int, int]]
    ) -> tuple[int, int, int, int] | None:
        """A random box for a digit of (height, width) that hardly covers others; None if none was found."""
        height, width = shape[0], shape[1]
        for y, x in rng.random((_ATTEMPTS, 2)).tolist():
            top, left = int(y * (self.size[0] - height + 1)), int(x * (self.size[1] - width + 1))
            box = (left, top, left + width, top + height)
            if all(_overlap(box, other) <= _MAX_OVERLAP for other in taken):
                return box
        return None


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection over the smaller of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


@functools.cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    """All scans in a fixed order, float32 [1797, 10, 10] in 0..1, with an empty margin, and their digits."""
    digits = require("sklearn.datasets", "train").load_digits()
    # This old generator's stream is frozen: every version of NumPy makes the same two parts.
    order = np.random.RandomState(0).permutation(len(digits.target))
    cells = (digits.images[order] / 16.0).astype(np.float32)
    return np.pad(cells, ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN))), digits.target[order]


@functools.cache
def _photographs(size: tuple[int, int]) -> list[np.ndarray]:
    """Both photographs at four scales, from just covering `size` up to their own; uint8 [h, w, 3]."""
    require("PIL", "train")
    levels = []
    for photograph in require("sklearn.datasets", "train").load_sample_images().images:
        height, width = photograph.shape[:2]
        smallest = max(size[0] / height, size[1] / width)
        for scale in np.geomspace(smallest, max(1.0, 1.5 * smallest), 4):
            shape = max(size[0], round(height * scale)), max(size[1], round(width * scale))
            pixels = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)[None]
            level = torch.nn.functional.interpolate(pixels, shape, mode="bilinear", antialias=True)
            levels.append(level[0].permute(1, 2, 0).contiguous().numpy())
    return levels


@functools.cache
def _spread(height: int) -> np.ndarray:
    """The matrix [h, 10] that stretches 10 cells, 8 of which are `height` pixels, by cubic convolution."""
    cells = _CELLS + 2 * _MARGIN
    length = round(height * cells / _CELLS)
    where = (np.arange(length) + 0.5) * cells / length - 0.5
    distance = np.abs(where[:, None] - np.arange(cells)[None, :])
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return weights.astype(np.float32)


def _render(scan: np.ndarray, height: int) -> np.ndarray:
    """The ink of a scan whose 8 cells are `height` pixels: opacity 0..1, cut to its tight box.

    A cell of a scan says how much of it the pen covered. Interpolated and put through a steep curve around
    one half, the stroke has edges again.
    """
    spread = _spread(height)
    coverage = spread @ scan @ spread.T
    ink = np.clip((coverage - 0.2) * (1 / 0.45), 0, 1)
    ink *= ink * (3 - 2 * ink)
    visible = ink >= 0.5
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def _paint(rng: np.random.Generator, region: np.ndarray, ink: np.ndarray) -> None:
    """Blend a digit into its region [h, w, 3], with a tint, lighter or darker than most of what is there."""
    dark, light = np.quantile((region @ _LUMA)[::2, ::2], (0.1, 0.9))
    step = rng.uniform(60.0, 140.0)
    darker, lighter = dark - step, light + step
    fits = darker >= 0, lighter <= 255
    go_lighter = rng.random() < 0.5 if fits[0] == fits[1] else fits[1]
    if not any(fits):
        go_lighter = 255 - light > dark
    tint = rng.uniform(-60.0, 60.0, 3).astype(np.float32)
    tint -= tint @ _LUMA
    colour = np.clip((lighter if go_lighter else darker) + tint, 0, 255).astype(np.float32)
    opacity = np.float32(rng.uniform(0.75, 1.0))
    region += (ink * opacity)[..., None] * (colour - region)
