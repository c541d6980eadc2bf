"""The folder of an evaluation: figures, plots, and the images with most mistakes, with a page that shows them."""

from __future__ import annotations

import html
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from frcnn_fast._lettering import Colour
from frcnn_fast._names import printable
from frcnn_fast.evaluation.curves import Curve, pooled
from frcnn_fast.evaluation.mistakes import (
    FALSE,
    HIT,
    IGNORED,
    MISSED,
    Mistakes,
    Verdict,
    confusion_matrix,
    worst_first,
)
from frcnn_fast.evaluation.plots import plot_confusion, plot_f1, plot_precision_recall
from frcnn_fast.io import PathLike, atomic_path, write_json
from frcnn_fast.visualize import Mark, draw_marks, save_image

# The same in every drawing, and told apart by those who see no red or no green.
COLOURS: dict[str, Colour] = {
    HIT: (0, 190, 130),
    "false": (255, 90, 30),
    MISSED: (70, 170, 255),
    IGNORED: (190, 190, 190),
}
_MEANINGS = {  # what is drawn first first
    IGNORED: "difficult, not counted",
    HIT: "hit",
    "false": "false detection",
    MISSED: "missed object",
}
_KINDS = {
    "background": "nothing is there",
    "misplaced": "the box misses its object's place",
    "duplicate": "a better detection has the object",
    "confused": "an object of another class",
}
_FILES = ("evaluation.json", "precision_recall.png", "f1.png", "confusion.png", "index.html")
_WORST = "worst"


def draw_verdict(image: Any, verdict: Verdict, class_names: Sequence[str]) -> Any:
    """An image with its hits, false detections and missed objects marked, in colours that are always the same.

    Args:
        image: as in `draw_boxes`.
        verdict: of `Mistakes.verdicts`.
        class_names: label k is class_names[k - 1].

    Returns:
        A PIL image.
    """
    marks, names, objects = [], list(class_names), verdict.objects
    for d in reversed(range(len(verdict.kinds))):  # the surest on top
        kind, name = verdict.kinds[d], names[verdict.found.labels[d] - 1]
        hint = {"duplicate": " twice", "misplaced": " misplaced"}.get(kind, "")
        if kind == "confused":
            hint = f" is {names[objects.labels[verdict.matched[d]] - 1]}"
        # Hits need no words: they would hide the mistakes.
        text = "" if kind == HIT else f"{name} {verdict.found.scores[d]:.2f}{hint}"
        shown = "false" if kind in FALSE else kind
        marks.append((shown, Mark(tuple(verdict.found.boxes[d]), COLOURS[shown], text, thin=kind == IGNORED)))
    for g, box in enumerate(objects.boxes):
        name = names[objects.labels[g] - 1]
        if verdict.missed[g]:
            marks.append((MISSED, Mark(tuple(box), COLOURS[MISSED], f"{name} missed", dashed=True)))
        elif objects.difficult[g]:
            marks.append((IGNORED, Mark(tuple(box), COLOURS[IGNORED], f"{name} difficult", thin=True, dashed=True)))
    marks.sort(key=lambda item: list(_MEANINGS).index(item[0]))
    seen = {kind for kind, _ in marks}
    counts = verdict.counts
    false = sum(counts[kind] for kind in FALSE)
    caption = f"{printable(verdict.image_id)}: {counts[HIT]} hits, {false} false, {counts[MISSED]} missed"
    legend = [(COLOURS[kind], text) for kind, text in _MEANINGS.items() if kind in seen]
    return draw_marks(image, [mark for _, mark in marks], caption=caption, legend=legend, sparing=True)


class ReportFolder:
    """Where a report goes: evaluation.json, plots, worst/ and index.html, which is written last.

    Args:
        path: the folder.
        overwrite: replace the report that is there; without it, one is refused.
    """

    def __init__(self, path: PathLike, overwrite: bool = False) -> None:
        self.path = Path(path)
        earlier = [self.path / name for name in _FILES if os.path.lexists(self.path / name)]
        if earlier and not overwrite:
            raise ValueError(
                f"--out: {printable(os.fspath(earlier[0]))} is an earlier report; choose another folder, or replace it "
                "with --overwrite"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        # The page first: an unfinished report has none.
        for file in [*earlier[::-1], *self.path.glob(f"{_WORST}/[0-9][0-9][0-9]-*.jpg")]:
            file.unlink(missing_ok=True)

    def write(
        self,
        title: str,
        results: Mapping[str, Any],
        curves: Mapping[str, Curve],
        mistakes: Mistakes,
        read: Callable[[int], Any],
        worst: int = 24,
    ) -> float:
        """Write everything.

        Args:
            title: what was evaluated on what.
            results: `VocResult`, `CocoResult` by name; they have `to_dict` and `table`.
            curves: of `VocEvaluator.curves`.
            mistakes: of the same detections and the same `iou_threshold`.
            read: the image of an index; a ValueError or OSError leaves its drawing out with a warning.
            worst: how many images to draw at most.

        Returns:
            The score threshold with the best F1 over all classes, at which mistakes are counted; NaN without
            detections or objects, where every detection is.
        """
        names = mistakes.class_names
        threshold, _ = pooled(list(curves.values())).best()
        verdicts = mistakes.verdicts(-math.inf if math.isnan(threshold) else threshold)
        matrix = confusion_matrix(verdicts, len(names))
        kinds: Counter[str] = sum((verdict.counts for verdict in verdicts), Counter())
        thresholds = {name: _at(curve, curve.best()[0]) for name, curve in curves.items()}
        of_kinds = {kind: kinds[kind] for kind in (HIT, *FALSE, MISSED, IGNORED)}
        summary = {
            "best_threshold": threshold,
            "at_best_threshold": {name: _at(curve, threshold) for name, curve in curves.items()},
            "best_threshold_by_class": thresholds,
            "kinds": of_kinds,
            "confusion": {"classes": [*names, "background"], "matrix": matrix},
        }
        write_json(self.path / "evaluation.json", {**{k: v.to_dict() for k, v in results.items()}, "mistakes": summary})
        areas = results["voc"].ap_area
        plot_precision_recall(curves, areas, self.path / "precision_recall.png")
        plot_f1(curves, self.path / "f1.png")
        note = f"overlap above {mistakes.iou_threshold:g}, score from {threshold:.3f}"
        plot_confusion(matrix, names, self.path / "confusion.png", note)
        drawn = self._draw(worst_first(verdicts)[:worst], names, read)
        page = _page(title, results, curves, threshold, of_kinds, drawn, len(verdicts))
        with atomic_path(self.path / "index.html") as beside:
            beside.write_text(page, encoding="utf-8", errors="backslashreplace")
        return threshold

    def _draw(
        self, verdicts: Sequence[Verdict], names: Sequence[str], read: Callable[[int], Any]
    ) -> list[tuple[str, Verdict]]:
        drawn = []
        for rank, verdict in enumerate(verdicts, start=1):
            stem = re.sub(r"[^\w.-]+", "_", verdict.image_id, flags=re.ASCII)[-60:]
            file = f"{_WORST}/{rank:03d}-{stem}.jpg"
            try:
                save_image(self.path / file, draw_verdict(read(verdict.index), verdict, names))
                drawn.append((file, verdict))
            except (ValueError, OSError, RuntimeError, MemoryError) as error:
                warnings.warn(f"image {printable(verdict.image_id)} was not drawn ({error})", stacklevel=3)
        return drawn


def _at(curve: Curve, threshold: float) -> dict[str, Any]:
    hits, false, missed = curve.counts_at(math.inf if math.isnan(threshold) else threshold)
    return {
        "threshold": threshold,
        "hits": hits,
        "false": false,
        "missed": missed,
        "precision": hits / (hits + false) if hits + false else math.nan,
        "recall": hits / (hits + missed) if hits + missed else math.nan,
        "f1": 2 * hits / (2 * hits + false + missed) if hits + false + missed else math.nan,
    }


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1180px; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; margin: .6rem 0 } td, th { padding: .2rem .8rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr + tr { border-top: 1px solid #ddd }
.plots img { width: 49%; vertical-align: top } img { max-width: 100% }
.worst { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 1rem }
pre { background: #f5f5f3; padding: .8rem; overflow-x: auto } i.key { display: inline-block; width: .8em; height: .8em }
"""


def _page(
    title: str,
    results: Mapping[str, Any],
    curves: Mapping[str, Curve],
    threshold: float,
    kinds: Mapping[str, int],
    drawn: Sequence[tuple[str, Verdict]],
    images: int,
) -> str:
    def cell(value: float) -> str:
        return "–" if math.isnan(value) else f"{value:.3f}"

    rows = []
    for name, curve in [*curves.items(), ("all", pooled(list(curves.values())))]:
        at, best = _at(curve, threshold), curve.best()
        figures = [str(curve.num_objects), str(at["hits"]), str(at["false"]), str(at["missed"])]
        figures += [cell(at["precision"]), cell(at["recall"]), cell(at["f1"]), cell(best[1]), cell(best[0])]
        rows.append(_row([html.escape(name), *figures]))
    heads = ["class", "objects", "hits", "false", "missed", "precision", "recall", "F1", "best F1", "its threshold"]
    tables = "".join(f"<pre>{html.escape(result.table())}</pre>" for result in results.values())
    of_kinds = [_row([kind, str(kinds[kind]), text]) for kind, text in _KINDS.items()]
    keys = " &nbsp; ".join(
        f'<i class="key" style="background: rgb{COLOURS[kind]}"></i> {text}' for kind, text in _MEANINGS.items()
    )
    pictures = "".join(
        f'<a href="{file}"><img loading="lazy" src="{file}" alt="{html.escape(verdict.image_id)}"></a>'
        for file, verdict in drawn
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
{tables}
<h2>At the threshold with the best F1: {cell(threshold)}</h2>
<table>{_row(heads, "th")}{"".join(rows)}</table>
<p>Of the false detections:</p>
<table>{"".join(of_kinds)}</table>
<div class="plots"><img src="precision_recall.png" alt="precision and recall"> <img src="f1.png" alt="F1"></div>
<h2>What is taken for what</h2>
<img src="confusion.png" alt="confusion matrix">
<h2>Images with most mistakes, {len(drawn)} of {images}</h2>
<p>{keys}</p>
<div class="worst">{pictures or "No image has a mistake."}</div>
</body></html>
"""


def _row(cells: Sequence[str], tag: str = "td") -> str:
    return f"<tr>{''.join(f'<{tag}>{text}</{tag}>' for text in cells)}</tr>"
