"""Plots of an evaluation: precision and recall, F1 against the threshold, the confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frcnn_fast._extras import require
from frcnn_fast.evaluation.curves import Curve, pooled
from frcnn_fast.io import PathLike, atomic_path
from frcnn_fast.visualize import class_colour

_MOST_LINES = 12  # with more classes a legend explains nothing
_MOST_CELLS = 30


def plot_precision_recall(curves: Mapping[str, Curve], average_precisions: Mapping[str, float], path: PathLike) -> None:
    """Precision against recall, a line a class with its average precision in the legend, and a black one for the mean
    of the best precision at each recall or a higher one, which average precision is the area under."""
    figure, axes = _figure()
    shown = {name: curve for name, curve in curves.items() if curve.num_objects}
    known = [value for value in average_precisions.values() if not math.isnan(value)]
    for name, colour, label in _lines(curves, shown):
        recall, precision = shown[name].recall, shown[name].precision
        text = f"{label}  {average_precisions[name]:.3f}" if label else None
        start = precision[0] if len(precision) else 0.0
        line = np.append(0.0, recall), np.append(start, precision)
        axes.plot(*line, color=colour, label=text, linewidth=_width(label))
    if len(shown) > 1:
        at = np.linspace(0, 1, 201)
        mean_line = np.mean([_envelope(curve, at) for curve in shown.values()], axis=0)
        axes.plot(at, mean_line, color="black", linewidth=2.4, label=f"mean of the classes  {np.mean(known):.3f}")
    axes.set_xlabel("recall: share of the objects that are found")
    axes.set_ylabel("precision: share of the detections that are right")
    mean = f"{len(shown)} classes, mean average precision {np.mean(known):.3f}" if known else "no objects"
    _finish(figure, axes, path, f"Precision and recall  ({mean})", "lower left")


def plot_f1(curves: Mapping[str, Curve], path: PathLike) -> None:
    """F1 against the score threshold, a line a class and a black one for all; the best threshold is marked."""
    figure, axes = _figure()
    shown = {name: curve for name, curve in curves.items() if curve.num_objects}
    for name, colour, label in _lines(curves, shown):
        threshold, best = shown[name].best()
        text = f"{label}  {best:.3f} at {threshold:.2f}" if label and not math.isnan(best) else label
        axes.step(*_steps(shown[name]), where="post", color=colour, label=text, linewidth=_width(label))
    whole = pooled(list(shown.values()))
    threshold, best = whole.best()
    title = "F1 against the score threshold"
    if not math.isnan(best):
        axes.step(
            *_steps(whole), where="post", color="black", label=f"all  {best:.3f} at {threshold:.2f}", linewidth=2.4
        )
        axes.plot([threshold], [best], "o", color="black", markersize=7)
        axes.axvline(threshold, color="black", linewidth=0.8, linestyle=":")
        title += f"  (best for all classes together: {threshold:.3f})"
    axes.set_xlabel("score threshold")
    axes.set_ylabel("F1 = 2 hits / (detections + objects)")
    _finish(figure, axes, path, title, "lower center")


def plot_confusion(matrix: np.ndarray, class_names: Sequence[str], path: PathLike, note: str = "") -> None:
    """The matrix of `confusion_matrix`: colours are shares of the row, numbers are counts."""
    names = [*class_names, "background"]
    size = len(names)
    side = min(14.0, max(5.5, 3.2 + 0.36 * size))
    figure = require("matplotlib.figure", "train").Figure(figsize=(side + 1.1, side), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    sums = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, sums, out=np.zeros(matrix.shape), where=sums > 0)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    letters = max(4.0, min(10.0, 190 / size))
    axes.set_xticks(range(size), names, rotation=45, ha="right", fontsize=letters, rotation_mode="anchor")
    axes.set_yticks(range(size), names, fontsize=letters)
    # The background is no class: a line keeps it apart.
    axes.axhline(size - 1.5, color="0.3", linewidth=1)
    axes.axvline(size - 1.5, color="0.3", linewidth=1)
    for row, column in np.argwhere(matrix) if size <= _MOST_CELLS else ():
        ink = "white" if shares[row, column] > 0.55 else "black"
        text = str(matrix[row, column])
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=letters)
    axes.set_xlabel("found as  (background: missed)")
    axes.set_ylabel("true class  (background: nothing there)")
    axes.set_title("Confusion" + (f"  ({note})" if note else ""), fontsize=11)
    figure.colorbar(image, ax=axes, label="share of the row", fraction=0.046, pad=0.03)
    with atomic_path(path) as beside:
        figure.savefig(beside, bbox_inches="tight")


def _figure() -> tuple[Any, Any]:
    figure = require("matplotlib.figure", "train").Figure(figsize=(8, 5.5), dpi=120, layout="constrained")
    return figure, figure.add_subplot()


def _lines(curves: Mapping[str, Curve], shown: Mapping[str, Curve]) -> list[tuple[str, Any, str | None]]:
    """Name, colour and text in the legend of each class: the colour of its boxes; grey, without one, where there are
    many."""
    if len(shown) > _MOST_LINES:
        return [(name, "0.75", None) for name in shown]
    labels = {name: label for label, name in enumerate(curves, start=1)}
    # Darker than in drawings: the paper is white.
    return [(name, [0.82 * part / 255 for part in class_colour(labels[name])], name) for name in shown]


def _width(label: str | None) -> float:
    return 1.5 if label else 0.8


def _envelope(curve: Curve, at: np.ndarray) -> np.ndarray:
    """The best precision at each recall or a higher one; 0 beyond the last."""
    best = np.append(np.maximum.accumulate(curve.precision[::-1])[::-1], 0.0)
    return best[np.searchsorted(curve.recall, at)]


def _steps(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """F1 of every threshold from 0 to 1, as the corners of a step line: at each score and on up to the next one."""
    kept = np.append(curve.scores[1:] != curve.scores[:-1], True) if len(curve.scores) else np.zeros(0, dtype=bool)
    scores, f1 = curve.scores[kept][::-1], curve.f1[kept][::-1]
    if not len(scores):
        return np.array([0.0, 1.0]), np.zeros(2)
    # A threshold just above a score drops that detection: the F1 of the next higher score holds from there on.
    return np.concatenate([[0.0], scores, [1.0]]), np.concatenate([f1, [0.0, 0.0]])


def _finish(figure: Any, axes: Any, path: PathLike, title: str, place: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=11)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc=place, fontsize=9, framealpha=0.9)
    with atomic_path(path) as beside:
        figure.savefig(beside)
