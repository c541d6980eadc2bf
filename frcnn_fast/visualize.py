"""Drawings to look at: detections beside the truth, contact sheets, loss curves."""

from __future__ import annotations

import colorsys
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from frcnn_fast._extras import require
from frcnn_fast._lettering import Colour, captioned, draw_dashes, draw_plates, font_of, with_legend
from frcnn_fast.io import PathLike, atomic_path, read_jsonl

_SMALL_SIDE = 300  # images with a shorter side under this are enlarged ...
_SHORTER_SIDE = 400  # ... to this at least, until lines and letters are fine beside their objects
_LONGER_SIDE = 4000  # but to no more than this: a narrow strip is not worth the memory
_PAPER = (245, 245, 243)

# A loss has the same colour in every plot, whichever others are there; the first stage is blue, the second red.
LOSS_COLOURS = {
    "loss": "black",
    "loss_objectness": "tab:blue",
    "loss_rpn_box_reg": "tab:cyan",
    "loss_classifier": "tab:red",
    "loss_box_reg": "tab:orange",
}
_OTHER_COLOURS = ("tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:gray")


def class_colour(label: int) -> Colour:
    """The RGB colour of a class label; labels next to each other are far apart in hue."""
    turn, place = divmod(label - 1, 10)
    hue = (0.58 + 0.3 * place + 0.05 * turn) % 1.0
    # Ten hues fill the circle well; every further ten are paler or darker than those before.
    saturation, value = [(0.85, 1.0), (0.45, 1.0), (0.9, 0.72)][turn % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(
    image: Any,
    boxes: Any,
    labels: Any = None,
    scores: Any = None,
    *,
    class_names: Sequence[str] | None = None,
    difficult: Any = None,
    caption: str = "",
) -> Any:
    """Draw boxes with their class and score.

    An image whose shorter side is under 300 pixels is enlarged by a whole factor first, to at least 400 and at most
    4000 pixels. The best boxes are drawn last, on top. Labels lie inside the image, and where they cover no other
    label if there is such a place; otherwise the better box's lies on top.

    Args:
        image: uint8 tensor or array [3, H, W], RGB, or a PIL image.
        boxes: [D, 4], x1, y1, x2, y2 in pixels of `image`, half-open. Boxes with a NaN or without area are
            left out.
        labels: [D], 1..K; None draws all in one colour without a name.
        scores: [D]; None writes none.
        class_names: label k is class_names[k - 1]; None writes the number.
        difficult: bool [D]: such boxes are drawn thin and marked.
        caption: a line of text above the image; "" for none.

    Returns:
        A PIL image.
    """
    order = np.argsort(_numbers(scores), kind="stable") if scores is not None else range(len(boxes))
    marks = []
    for i in map(int, order):
        label = int(labels[i]) if labels is not None else 1
        hard = difficult is not None and bool(difficult[i])
        words = []
        if labels is not None:
            words.append(class_names[label - 1] if class_names is not None else str(label))
        if scores is not None:
            words.append(f"{float(scores[i]):.2f}")
        if hard:
            words.append("difficult")
        marks.append(Mark(tuple(_numbers(boxes[i]).tolist()), class_colour(label), " ".join(words), thin=hard))
    return draw_marks(image, marks, caption=caption)


class Mark(NamedTuple):
    """A box to draw, with what is written on the plate at it ("": no plate)."""

    box: tuple[float, ...]  # x1, y1, x2, y2 in pixels of the image, half-open
    colour: Colour
    text: str = ""
    thin: bool = False
    dashed: bool = False


def draw_marks(
    image: Any,
    marks: Sequence[Mark],
    *,
    caption: str = "",
    legend: Sequence[tuple[Colour, str]] = (),
    sparing: bool = False,
) -> Any:
    """`draw_boxes` with a colour and a text for each box; the last ones lie on top.

    Args:
        image, caption: as in `draw_boxes`.
        marks: boxes with a NaN or without area are left out.
        legend: colours and what they mean, written below the image.
        sparing: leave out texts that would hide much of others; those of the last marks stay.

    Returns:
        A PIL image.
    """
    image_module = require("PIL.Image", "train")
    image_draw = require("PIL.ImageDraw", "train")
    drawing = _as_drawing(image)
    factor = 1
    if min(drawing.size) < _SMALL_SIDE:
        factor = max(1, min(math.ceil(_SHORTER_SIDE / min(drawing.size)), _LONGER_SIDE // max(drawing.size)))
        drawing = drawing.resize((drawing.width * factor, drawing.height * factor), image_module.Resampling.BICUBIC)
    shorter = min(drawing.size)
    line = max(2, round(shorter / 220))
    font = font_of(max(14, round(shorter / 34)))
    draw = image_draw.Draw(drawing)

    plates: list[tuple[str, Colour, tuple[int, int, int, int]]] = []
    for mark in marks:
        corners = np.asarray(mark.box, dtype=np.float64) * factor
        if not np.isfinite(corners).all():
            continue
        x1, y1, x2, y2 = np.rint(corners).astype(int).tolist()
        if x1 >= x2 or y1 >= y2:
            continue
        thickness = 1 if mark.thin else line
        # A dark rim keeps the line visible on a ground of its own colour.
        draw.rectangle((x1 - 1, y1 - 1, x2, y2), outline=(0, 0, 0), width=thickness + 2)
        if mark.dashed:
            draw_dashes(draw, (x1, y1, x2 - 1, y2 - 1), mark.colour, thickness)
        else:
            draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=mark.colour, width=thickness)
        if mark.text:
            plates.append((mark.text, mark.colour, (x1, y1, x2, y2)))
    draw_plates(draw, font, plates, drawing.size, sparing)
    if caption:
        drawing = captioned(drawing, caption, font)
    return with_legend(drawing, legend, font) if legend else drawing


def side_by_side(
    image: Any,
    detections: Mapping[str, Any],
    target: Mapping[str, Any],
    class_names: Sequence[str] | None = None,
    *,
    score_threshold: float = 0.5,
) -> Any:
    """One image twice: with its detections (left) and with its true boxes (right).

    Args:
        image: as in `draw_boxes`.
        detections: `boxes` [D, 4], `scores` [D], `labels` [D], in pixels of `image`.
        target: `boxes` [G, 4], `labels` [G], perhaps `difficult` [G] and `image_id`.
        class_names: label k is class_names[k - 1].
        score_threshold: detections with a lower score are not drawn.

    Returns:
        A PIL image.
    """
    scores = np.asarray(_numbers(detections["scores"]), dtype=np.float64)
    shown = np.flatnonzero(scores >= score_threshold)
    found = draw_boxes(
        image,
        np.asarray(_numbers(detections["boxes"])).reshape(-1, 4)[shown],
        np.asarray(_numbers(detections["labels"]))[shown],
        scores[shown],
        class_names=class_names,
        caption=f"found: {len(shown)} with score {score_threshold:g} or more",
    )
    true_boxes = np.asarray(_numbers(target["boxes"])).reshape(-1, 4)
    name = f"  ({target['image_id']})" if target.get("image_id") else ""
    truth = draw_boxes(
        image,
        true_boxes,
        _numbers(target["labels"]),
        class_names=class_names,
        difficult=target.get("difficult"),
        caption=f"truth: {len(true_boxes)}{name}",
    )
    return contact_sheet([found, truth], columns=2, gap=6)


def contact_sheet(images: Sequence[Any], columns: int | None = None, gap: int = 12) -> Any:
    """Several images (as in `draw_boxes`) on one sheet, row by row, columns of equal width, each image
    centred in its cell.

    Args:
        images: at least one.
        columns: None makes the sheet about as wide as high.
        gap: pixels around and between the images.

    Returns:
        A PIL image.
    """
    if not images:
        raise ValueError("images is empty: a sheet needs at least one")
    image_module = require("PIL.Image", "train")
    ready = [_as_drawing(image) for image in images]
    width = max(drawing.width for drawing in ready)
    if columns is None:
        height = sum(drawing.height for drawing in ready) / len(ready)
        columns = round(math.sqrt(len(ready) * height / width))
    columns = max(1, min(columns, len(ready)))
    rows = [ready[i : i + columns] for i in range(0, len(ready), columns)]
    heights = [max(drawing.height for drawing in row) for row in rows]
    size = (columns * (width + gap) + gap, sum(heights) + (len(rows) + 1) * gap)
    sheet = image_module.new("RGB", size, _PAPER)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, drawing in enumerate(row):
            left = gap + column * (width + gap) + (width - drawing.width) // 2
            sheet.paste(drawing, (left, top + (height - drawing.height) // 2))
        top += height + gap
    return sheet


def save_image(path: PathLike, image: Any) -> None:
    """Write a PIL image whole or not at all; the ending of `path` (.png, .jpg) chooses the format."""
    with atomic_path(path) as beside:
        image.save(beside, **({"quality": 92} if beside.suffix.lower() in (".jpg", ".jpeg") else {}))


def plot_losses(metrics: PathLike, path: PathLike) -> None:
    """Plot the losses of a training run.

    Args:
        metrics: JSON lines; every record with an `iteration` gives a point to each of its numbers whose name
            begins with "loss". The faint line is what was recorded, the strong one a running mean.
        path: the image to write, for example loss.png.

    Raises:
        ValueError: `metrics` is missing or broken or has no losses; names it.
        ImportError: matplotlib is missing.
    """
    figure_module = require("matplotlib.figure", "train")
    points: dict[str, list[tuple[float, float]]] = {}
    for record in read_jsonl(metrics):
        for name, value in record.items():
            if "iteration" in record and name.startswith("loss") and isinstance(value, (int, float)):
                points.setdefault(name, []).append((record["iteration"], value))
    if not points:
        raise ValueError(f"{metrics}: no record has an iteration and a loss, so there is nothing to plot")

    figure = figure_module.Figure(figsize=(9, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    top = 0.0
    # The sum first and in black, then the largest part: the legend reads like the curves lie.
    means = {name: np.mean([value for _, value in curve]) for name, curve in points.items()}
    others = itertools.cycle(_OTHER_COLOURS)
    for name in sorted(points, key=lambda name: (name != "loss", -means[name])):
        steps, values = np.array(points[name], dtype=np.float64).T
        colour = LOSS_COLOURS.get(name) or next(others)
        smooth = _running_mean(values, max(1, len(values) // 40))
        axes.plot(steps, values, color=colour, alpha=0.18, linewidth=0.8)
        axes.plot(steps, smooth, color=colour, linewidth=1.8, label=_curve_name(name))
        top = max(top, float(np.quantile(values, 0.98)), float(smooth[len(smooth) // 50 :].max()))
    axes.set_ylim(0, top * 1.08 if top > 0 else 1)
    axes.set_xlim(0, max(1, *(curve[-1][0] for curve in points.values())))
    axes.set_xlabel("iteration  (faint: as recorded; strong: running mean)")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with atomic_path(path) as beside:
        figure.savefig(beside)


def _curve_name(name: str) -> str:
    return "sum" if name == "loss" else name.removeprefix("loss").strip("_/. ").replace("_", " ")


def _running_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """Mean of each value and up to `reach` neighbours on both sides."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _numbers(values: Any) -> Any:
    return values.detach().cpu().float().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _as_drawing(image: Any) -> Any:
    """A PIL image that may be drawn on, of a PIL image or of uint8 [3, H, W]."""
    image_module = require("PIL.Image", "train")
    if isinstance(image, image_module.Image):
        return image.convert("RGB") if image.mode != "RGB" else image.copy()
    pixels = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"image must be uint8 [3, H, W] or a PIL image, got {pixels.dtype} {pixels.shape}")
    return image_module.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
