"""What a detector gets wrong, image by image: hits, false detections by kind, missed objects."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frcnn_fast._names import checked_class_names
from frcnn_fast.data.targets import image_id
from frcnn_fast.evaluation.inputs import Found, Objects, found_of, objects_of, pairwise_iou

HIT, IGNORED = "hit", "ignored"
FALSE = ("confused", "duplicate", "misplaced", "background")
MISSED = "missed"
_NEAR = 0.1  # an overlap from here up to the threshold is a box that misses its place


@dataclasses.dataclass
class Verdict:
    """One image's detections of at least some score, judged.

    Attributes:
        index: the image's place in the data set.
        image_id: its name.
        found: the detections, best score first.
        objects: what is there.
        kinds: of each detection: "hit"; "ignored", on a difficult object; or what kind of false it is: "confused", on
            an object of another class that nobody found; "duplicate", on an object that a better one found;
            "misplaced", near an object of its class; "background".
        matched: of each detection the object it is about, or -1.
        missed: bool [G], objects that no detection hits; no difficult ones.
    """

    index: int
    image_id: str
    found: Found
    objects: Objects
    kinds: list[str]
    matched: np.ndarray
    missed: np.ndarray

    @property
    def counts(self) -> Counter[str]:
        """How many of each kind; missed objects that a "confused" detection is about count as both."""
        return Counter({**Counter(self.kinds), MISSED: int(self.missed.sum())})

    @property
    def mistakes(self) -> int:
        counts = self.counts
        return counts[MISSED] + sum(counts[kind] for kind in FALSE)


class Mistakes:
    """Collects detections image by image, as the evaluators do, and judges them at any score threshold.

    Hits are those of `VocEvaluator`: a detection is right if the object of its class that it overlaps most, by more
    than the threshold, was taken by no better one. What is left is then matched without regard to the class, the
    largest overlap first.

    Args:
        class_names: label k is class_names[k - 1].
        iou_threshold: in [0, 1), the overlap that a right detection must exceed.
    """

    def __init__(self, class_names: Sequence[str], *, iou_threshold: float = 0.5) -> None:
        if not 0 <= iou_threshold < 1:
            raise ValueError(f"iou_threshold must be in [0, 1), got {iou_threshold}")
        self.class_names, self.iou_threshold = checked_class_names(class_names), iou_threshold
        self._images: list[tuple[str, Found, Objects]] = []

    def __len__(self) -> int:
        return len(self._images)

    def add(self, detections: Mapping[str, Any], target: Mapping[str, Any]) -> None:
        """Add one image; see `VocEvaluator.add`."""
        found = found_of(detections, len(self.class_names))
        order = np.argsort(-found.scores, kind="stable")
        objects = objects_of(target, len(self.class_names))
        name = image_id(target, len(self._images))
        self._images.append((name, Found(*(values[order] for values in found)), objects))

    def verdicts(self, threshold: float) -> list[Verdict]:
        """All images in the order of adding, with the detections of at least this score."""
        return [self._judged(index, threshold) for index in range(len(self._images))]

    def _judged(self, index: int, threshold: float) -> Verdict:
        name, all_found, objects = self._images[index]
        kept = int(np.searchsorted(-all_found.scores, -threshold, side="right"))
        found = Found(*(values[:kept] for values in all_found))
        iou = pairwise_iou(found.boxes, objects.boxes)
        same = found.labels[:, None] == objects.labels[None, :]
        matched = np.full(kept, -1, dtype=np.int64)
        taken = np.zeros(len(objects.labels), dtype=bool)
        kinds = ["background"] * kept
        for d in range(kept):
            mine = np.where(same[d], iou[d], 0.0)
            nearest = int(mine.argmax()) if len(mine) else -1
            overlap = mine[nearest] if nearest >= 0 else 0.0
            if overlap > self.iou_threshold:
                matched[d] = nearest
                if objects.difficult[nearest]:
                    kinds[d] = IGNORED
                else:
                    kinds[d] = "duplicate" if taken[nearest] else HIT
                    taken[nearest] = True
            elif overlap >= _NEAR:
                kinds[d], matched[d] = "misplaced", nearest
        free = ~taken & ~objects.difficult
        _match_other_classes(np.where(same, 0.0, iou), self.iou_threshold, kinds, matched, free.copy())
        return Verdict(index, name, found, objects, kinds, matched, free)


def _match_other_classes(
    iou: np.ndarray, iou_threshold: float, kinds: list[str], matched: np.ndarray, free: np.ndarray
) -> None:
    """False detections on objects of other classes that nobody has, the largest overlap first."""
    loose = np.array([kind not in (HIT, IGNORED, "duplicate") for kind in kinds], dtype=bool)
    overlap = iou * loose[:, None] * free[None, :]
    while overlap.size and overlap.max() > iou_threshold:
        d, g = (int(place) for place in np.unravel_index(int(overlap.argmax()), overlap.shape))
        kinds[d], matched[d] = "confused", g
        overlap[d], overlap[:, g] = 0.0, 0.0


def confusion_matrix(verdicts: Sequence[Verdict], num_classes: int) -> np.ndarray:
    """int64 [K + 1, K + 1]: row, the true class; column, the class found; the last of both is the background.

    The row of the background counts what was found where nothing is (false detections that are not "confused"), its
    column the missed objects that were not found as another class. Ignored detections are in no cell.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for verdict in verdicts:
        as_another = np.zeros(len(verdict.objects.labels), dtype=bool)
        for kind, label, g in zip(verdict.kinds, verdict.found.labels, verdict.matched, strict=True):
            if kind == IGNORED:
                continue
            about = kind in (HIT, "confused")
            matrix[verdict.objects.labels[g] - 1 if about else num_classes, label - 1] += 1
            if kind == "confused":
                as_another[g] = True
        for label in verdict.objects.labels[verdict.missed & ~as_another]:
            matrix[label - 1, num_classes] += 1
    return matrix


def worst_first(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The images with mistakes: most of them first, of equals the one with the surer false detections."""

    def surest(verdict: Verdict) -> float:
        scores = [s for kind, s in zip(verdict.kinds, verdict.found.scores, strict=True) if kind in FALSE]
        return max(scores, default=-math.inf)

    wrong = [verdict for verdict in verdicts if verdict.mistakes]
    return sorted(wrong, key=lambda verdict: (-verdict.mistakes, -surest(verdict), verdict.index))
