"""Box arithmetic in the boxes' own float precision; NumPy rounds every operation by itself.

Boxes are [..., 4] = (x1, y1, x2, y2). `legacy` boxes hold inclusive pixel indices: a side is (hi - lo) + 1.
"""

from __future__ import annotations

import numpy as np


def finite(boxes: np.ndarray) -> np.ndarray:
    """[...] bool: all four coordinates are finite."""
    return np.isfinite(boxes).all(axis=-1)


def larger(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a > b ? a : b, so that NaN in `a` is dropped and NaN in `b` is kept (np.maximum keeps both)."""
    return np.where(a > b, a, b)


def smaller(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a < b ? a : b."""
    return np.where(a < b, a, b)


def side(low: np.ndarray, high: np.ndarray, legacy: bool) -> np.ndarray:
    """Length of an interval; negative for an inverted one."""
    length = high - low
    return length + length.dtype.type(1) if legacy else length


def area(boxes: np.ndarray, legacy: bool = False) -> np.ndarray:
    """Width times height; two negative sides give a positive area."""
    width = side(boxes[..., 0], boxes[..., 2], legacy)
    return width * side(boxes[..., 1], boxes[..., 3], legacy)


def intersection(a: np.ndarray, b: np.ndarray, legacy: bool = False) -> np.ndarray:
    """Area of overlap; `a` and `b` broadcast against each other over the leading dimensions."""
    zero = a.dtype.type(0)
    width = side(larger(a[..., 0], b[..., 0]), smaller(a[..., 2], b[..., 2]), legacy)
    height = side(larger(a[..., 1], b[..., 1]), smaller(a[..., 3], b[..., 3]), legacy)
    return larger(zero, width) * larger(zero, height)


def iou(a: np.ndarray, b: np.ndarray, legacy: bool = False) -> np.ndarray:
    """inter / ((area_a + area_b) - inter); NaN for 0/0 and where either box has a non-finite coordinate."""
    with np.errstate(all="ignore"):
        overlap = intersection(a, b, legacy)
        union = (area(a, legacy) + area(b, legacy)) - overlap
        both = finite(a) & finite(b)
        return np.where(both, overlap / union, a.dtype.type(np.nan))
