"""Selection of the best scores: descending, -0.0 equal to 0.0, ties to the lower index, NaN never."""

from __future__ import annotations

import numpy as np


def ranked(scores: np.ndarray) -> np.ndarray:
    """Indices of the non-NaN scores [N] in rank order."""
    # Negation is exact, and a stable sort keeps ties in index order.
    candidates = np.flatnonzero(~np.isnan(scores))
    return candidates[np.argsort(-scores[candidates], kind="stable")]


def top_n(scores: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The n best of each row of scores [B, N]: values [B, n], indices int64 [B, n], counts int64 [B]."""
    batch = len(scores)
    values = np.zeros((batch, n), scores.dtype)
    indices = np.full((batch, n), -1, np.int64)
    counts = np.zeros(batch, np.int64)
    for image, row in enumerate(scores):
        best = ranked(row)[:n]
        counts[image] = len(best)
        indices[image, : len(best)] = best
        values[image, : len(best)] = row[best]
    return values, indices, counts
