"""Inputs for the cases. Everything is a function of its seed, and halves are rounded once, here."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

DTYPES = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}


def generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def tensor(values: object, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.asarray(values, np.float64))).to(dtype)


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def random_boxes(
    g: np.random.Generator, shape: tuple[int, ...], extent: float = 400.0, side: float = 120.0
) -> np.ndarray:
    """Boxes [*shape, 4] anywhere in a square image, some beyond its edge."""
    corner = g.uniform(-0.1 * extent, extent, (*shape, 2))
    return np.concatenate([corner, corner + g.uniform(1.0, side, (*shape, 2))], axis=-1)


def clustered_boxes(
    g: np.random.Generator, shape: tuple[int, ...], clusters: int = 12, spread: float = 6.0
) -> np.ndarray:
    """Boxes that crowd about a few objects, as proposals do: long chains of suppression."""
    centres = random_boxes(g, (clusters,))
    return centres[g.integers(0, clusters, shape)] + g.normal(0.0, spread, (*shape, 4))


def integer_boxes(g: np.random.Generator, shape: tuple[int, ...], extent: int = 24, side: int = 10) -> np.ndarray:
    """Boxes on a coarse integer grid: many duplicates, and IoUs that are exactly 1/2, 1/3, 3/10, 7/10."""
    corner = g.integers(0, extent, (*shape, 2))
    return np.concatenate([corner, corner + g.integers(1, side + 1, (*shape, 2))], axis=-1).astype(np.float64)


def with_odd_boxes(g: np.random.Generator, boxes: np.ndarray, share: float = 0.2) -> np.ndarray:
    """Some boxes made degenerate: NaN, infinite, of no area, inverted, huge, identical."""
    boxes = boxes.copy()
    flat = boxes.reshape(-1, 4)
    for row in np.flatnonzero(g.random(len(flat)) < share):
        kind = g.integers(0, 8)
        if kind == 0:
            flat[row, g.integers(0, 4)] = np.nan
        elif kind == 1:
            flat[row, g.integers(0, 4)] = g.choice([np.inf, -np.inf])
        elif kind == 2:
            flat[row, 2:] = flat[row, :2]
        elif kind == 3:
            flat[row] = flat[row, [2, 3, 0, 1]]
        elif kind == 4:
            flat[row, [0, 2]] = flat[row, [2, 0]]
        elif kind == 5:
            flat[row] = [-3e4, -3e4, 3e4, 3e4]
        elif kind == 6:
            flat[row, 2] = flat[row, 0]
        else:
            flat[row] = flat[0]
    return boxes


def tied_scores(g: np.random.Generator, shape: tuple[int, ...], levels: int = 7) -> np.ndarray:
    """Few distinct values, both zeros among them."""
    values = np.concatenate([g.normal(size=max(levels - 2, 0)), [0.0, -0.0]])
    return g.choice(values, shape)


def odd_scores(g: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Ordinary scores with NaN, both infinities, both zeros and subnormals strewn in."""
    scores = g.normal(size=shape)
    odd = g.choice([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 3.0], shape)
    return np.where(g.random(shape) < 0.4, odd, scores)


def strided(t: Tensor) -> Tensor:
    """The same values with a hole after every element of the last dimension."""
    wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), 77)
    wide[..., ::2] = t
    return wide[..., ::2]


def transposed(t: Tensor) -> Tensor:
    """The same values with the last two dimensions swapped in memory."""
    return t.transpose(-1, -2).contiguous().transpose(-1, -2)
