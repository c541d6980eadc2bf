"""What ranked detections say at every score threshold: precision, recall, F1."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Curve:
    """The detections of one class (or of all), best score first, those on difficult objects left out.

    Attributes:
        scores: float64 [D], falling.
        right: bool [D].
        num_objects: objects to be found, difficult ones not counted.
    """

    scores: np.ndarray
    right: np.ndarray
    num_objects: int

    @property
    def precision(self) -> np.ndarray:
        """[D], with the detections up to each one."""
        return np.cumsum(self.right) / np.arange(1, len(self.right) + 1)

    @property
    def recall(self) -> np.ndarray:
        """[D]; NaN without objects."""
        return np.cumsum(self.right) / (self.num_objects or math.nan)

    @property
    def f1(self) -> np.ndarray:
        """[D]: 2 · hits / (detections + objects)."""
        return 2 * np.cumsum(self.right) / (np.arange(1, len(self.right) + 1) + self.num_objects)

    def counts_at(self, threshold: float) -> tuple[int, int, int]:
        """(hits, false detections, missed objects) of the detections with at least this score."""
        kept = int(np.searchsorted(-self.scores, -threshold, side="right"))
        hits = int(self.right[:kept].sum())
        return hits, kept - hits, self.num_objects - hits

    def best(self) -> tuple[float, float]:
        """The threshold with the best F1, the highest of equals, and that F1; (NaN, NaN) where there is none.

        It is the score of the last detection that is kept; detections of one score are kept or dropped together.
        """
        if not len(self.scores) or not self.num_objects:
            return math.nan, math.nan
        last_of_score = np.append(self.scores[1:] != self.scores[:-1], True)
        f1 = np.where(last_of_score, self.f1, -1.0)
        place = int(f1.argmax())
        return float(self.scores[place]), float(f1[place])


def pooled(curves: Sequence[Curve]) -> Curve:
    """All classes as one: every detection counts the same, whatever its class."""
    scores = np.concatenate([curve.scores for curve in curves]) if curves else np.zeros(0)
    right = np.concatenate([curve.right for curve in curves]) if curves else np.zeros(0, dtype=bool)
    order = np.argsort(-scores, kind="stable")
    return Curve(scores[order], right[order], sum(curve.num_objects for curve in curves))
