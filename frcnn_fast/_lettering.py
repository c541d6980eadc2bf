"""Letters, lines and legends on drawings: what `frcnn_fast.visualize` writes beside the boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frcnn_fast._extras import require

Colour = tuple[int, int, int]

_BAR = (32, 34, 38)


def font_of(size: int) -> Any:
    """DejaVu Sans, which comes with matplotlib: Pillow's own font has nothing beyond ASCII."""
    font = Path(require("matplotlib", "train").get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return require("PIL.ImageFont", "train").truetype(str(font), size)


def draw_dashes(draw: Any, box: tuple[int, int, int, int], colour: Colour, width: int) -> None:
    x1, y1, x2, y2 = box
    dash = 4 * width
    for start in range(x1, x2, 2 * dash):
        end = min(start + dash, x2)
        draw.rectangle((start, y1, end, min(y1 + width - 1, y2)), fill=colour)
        draw.rectangle((start, max(y2 - width + 1, y1), end, y2), fill=colour)
    for start in range(y1, y2, 2 * dash):
        end = min(start + dash, y2)
        draw.rectangle((x1, start, min(x1 + width - 1, x2), end), fill=colour)
        draw.rectangle((max(x2 - width + 1, x1), start, x2, end), fill=colour)


def draw_plates(draw: Any, font: Any, plates: Sequence[tuple], size: tuple[int, int], sparing: bool = False) -> None:
    """Write each text on a plate of its colour at its box: the first free place of a few, else the freest.

    Plates lie inside the image (`size`: width, height); a text that is wider loses the end of its first words. Later
    boxes are better ones: they choose first, and nothing covers their plates. `sparing` leaves a plate out of which
    others would hide much.
    """
    ascent = font.getbbox("Ag0")
    height = ascent[3] - ascent[1] + 6
    chosen: list[tuple[str, Colour, tuple[int, int, int, int]]] = []
    for text, colour, box in reversed(plates):
        shown = shortened(text, font, size[0] - 8)
        width = min(math.ceil(font.getlength(shown)) + 8, size[0])
        places = []
        for left, top in _corners(box, width, height):
            left, top = max(0, min(left, size[0] - width)), max(0, min(top, size[1] - height))
            places.append((left, top, left + width, top + height))
        place = min(places, key=lambda p: _hidden(p, chosen))
        if sparing and _hidden(place, chosen) > 0.15 * width * height:
            continue
        chosen.append((shown, colour, place))
    for text, colour, place in reversed(chosen):
        draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=colour, outline=(0, 0, 0))
        luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
        ink = (0, 0, 0) if luma > 120 else (255, 255, 255)
        draw.text((place[0] + 4, place[1] + 3 - ascent[1]), text, fill=ink, font=font)


def _hidden(place: tuple[int, int, int, int], chosen: Sequence[tuple]) -> int:
    """How many of its pixels lie under chosen plates."""
    return sum(_common_area(place, other) for _, _, other in chosen)


def _corners(box: tuple[int, int, int, int], width: int, height: int) -> list[tuple[int, int]]:
    """Where a plate may lie, left and top, the most usual place first."""
    x1, y1, x2, y2 = box
    above_and_below = [(x1, y1 - height), (x1, y2), (x2 - width, y1 - height), (x2 - width, y2)]
    inside_and_beside = [(x1, y1), (x2, y1), (x1 - width, y1), (x1, y2 - height), (x2 - width, y1)]
    further = [(x2 - width, y2 - height), (x2, y2 - height), (x1 - width, y2 - height)]
    further += [(x1, y1 - 2 * height), (x1, y2 + height), (x1, y1 + height), (x2, y1 + height)]
    return above_and_below + inside_and_beside + further


def shortened(text: str, font: Any, width: int) -> str:
    """`text`, or what fits into `width` pixels of it: the last word (a score) stays longest."""
    first, space, last = text.rpartition(" ")
    while font.getlength(text) > width and len(text) > 1:
        if first:
            first = first[:-1]
            text = f"{first}…{space}{last}" if first else last
        else:
            last = last[:-1]
            text = f"{last}…" if last else "…"
    return text


def _common_area(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def captioned(drawing: Any, caption: str, font: Any) -> Any:
    """The drawing under a dark bar with one line of text."""
    image_module, image_draw = require("PIL.Image", "train"), require("PIL.ImageDraw", "train")
    box = font.getbbox("Ag0")
    bar = box[3] - box[1] + 14
    whole = image_module.new("RGB", (drawing.width, drawing.height + bar), _BAR)
    whole.paste(drawing, (0, bar))
    text = shortened(caption, font, drawing.width - 20)
    image_draw.Draw(whole).text((10, 7 - box[1]), text, fill=(255, 255, 255), font=font)
    return whole


def with_legend(drawing: Any, legend: Sequence[tuple[Colour, str]], font: Any) -> Any:
    """The drawing above a bar of coloured squares with their meanings, on as many lines as they need."""
    image_module, image_draw = require("PIL.Image", "train"), require("PIL.ImageDraw", "train")
    box = font.getbbox("Ag0")
    height = box[3] - box[1] + 10
    square, left, row, places = height - 8, 10, 0, []
    for colour, text in legend:
        width = square + 8 + math.ceil(font.getlength(text)) + 24
        if left > 10 and left + width > drawing.width:
            left, row = 10, row + 1
        places.append((left, row, colour, text))
        left += width
    whole = image_module.new("RGB", (drawing.width, drawing.height + (row + 1) * height + 4), _BAR)
    whole.paste(drawing, (0, 0))
    draw = image_draw.Draw(whole)
    for left, row, colour, text in places:
        top = drawing.height + row * height + 4
        draw.rectangle((left, top + 2, left + square, top + 2 + square), fill=colour)
        draw.text((left + square + 8, top + 3 - box[1]), text, fill=(255, 255, 255), font=font)
    return whole
