"""A `Story` as one HTML page that holds its pictures: `write_page`."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frcnn_fast import ops
from frcnn_fast._extras import require
from frcnn_fast._names import printable
from frcnn_fast.inference.story import Ranked, Story
from frcnn_fast.io import PathLike, atomic_path
from frcnn_fast.visualize import class_colour

_MOST_BOXES = 100  # in a drawing: with more, none can be told from its neighbours
_MOST_WINNERS = 12
_MOST_CLASSES = 4
_LEVEL_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")
# How a box came about, in every drawing that shows it.
_ANCHOR, _PROPOSAL, _DETECTION = "#ffb000", "#35a7ff", "#00d68f"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1180px; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin-top: 2.4rem }
p { max-width: 62rem } img { max-width: 100%; height: auto }
table { border-collapse: collapse; margin: .6rem 0 } td, th { padding: .2rem .8rem; text-align: right }
td:first-child, th:first-child, td.text { text-align: left } tr + tr { border-top: 1px solid #ddd }
.winners { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1.4rem }
.winners p { margin: .2rem 0 } .winners img { width: 100% } b.key { padding: 0 .4em; border-bottom: 3px solid }
"""


def write_page(story: Story, path: PathLike) -> None:
    """Write the page, whole or not at all. It needs no other file and no network.

    Args:
        story: of `tell`.
        path: the HTML file.

    Raises:
        ImportError: the extra `train` is not installed (Pillow and matplotlib draw).
        OSError: the file cannot be written.
    """
    text = _page(story)
    with atomic_path(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")


def _page(story: Story) -> str:
    result, config_levels = story.result, story.levels
    name = html.escape(printable(result.path) if result.path is not None else "an image from memory")
    height, width = result.image_size
    several = len(config_levels) > 1
    candidates, proposals = len(story.candidates.boxes), len(story.proposals.boxes)
    funnel = [
        ("anchors", len(story.anchors), "every place of every map, every size and ratio"),
        (
            "candidates",
            candidates,
            f"the best of {'each level' if several else 'them'}, moved by the network, clipped to the image, not too "
            "small",
        ),
        ("proposals", proposals, "what NMS leaves: nothing that overlaps a better box too much"),
        ("proposals that became a detection", len(set(story.sources.tolist())), "the head gave them a class"),
        ("detections", len(result), "scores from the threshold, after NMS within each class"),
    ]
    sections = [
        f"<h1>{name}</h1>",
        f"<p>{width} × {height} pixels, resized to {story.resized[1]} × {story.resized[0]} for the network, padded to "
        f"{story.padded[1]} × {story.padded[0]}. {_count(len(result), 'detection')}; {_sum(story):.1f} ms.</p>",
        _picture(_detections(story), "the detections"),
        "<h2>From anchors to detections</h2>",
        _table([(what, f"{n:,}", text) for what, n, text in funnel], ("", "boxes", ""), words=2),
        "<h2>Anchors</h2>",
        "<p>The boxes that the network starts from. A dot is a place of the map; all anchors of one place in the "
        "middle are drawn, the others are the same around their own.</p>",
        _table(
            [
                (f"level {i}", f"{s[0]} × {s[1]}", f"{h} × {w}", str(k), f"{h * w * k:,}", f"{level.num_candidates:,}")
                for i, level in enumerate(config_levels)
                for s, (h, w, k) in [(level.stride, level.objectness.shape)]
            ],
            ("", "stride", "map", "anchors a place", "anchors", "candidates"),
        ),
        _picture(_anchors(story), "the anchors of one place of each level"),
        "<h2>Objectness</h2>",
        "<p>How sure the proposal network is that an object is near: the best anchor of each place.</p>",
        _picture(_objectness(story), "objectness of each level"),
        "<h2>Proposals before and after NMS</h2>",
        f"<p>The best {_MOST_BOXES} of {candidates:,} candidates, and the best of {proposals:,} proposals. Bright "
        "boxes are the surest.</p>",
        _picture(_before_and_after(story), "the best candidates before NMS, and the best proposals after it"),
        "<h2>The regions that won</h2>",
        f'<p>How each detection came about: <b class="key" style="border-color: {_ANCHOR}">anchor</b> (dotted) → '
        f'<b class="key" style="border-color: {_PROPOSAL}">proposal</b> (dashed) → '
        f'<b class="key" style="border-color: {_DETECTION}">detection</b> (solid).</p>',
        _winners(story),
        "<h2>Time of each stage</h2>",
        f"<p>Medians of {_count(story.repeats, 'run')} after a first one that is not counted; reading the file and "
        "drawing are not in them.</p>",
        _picture(_times(story), "milliseconds of each stage"),
    ]
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{name}</title><style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _sum(story: Story) -> float:
    return sum(story.milliseconds.values())


def _table(rows: Sequence[Sequence[str]], heads: Sequence[str], words: int | None = None) -> str:
    """words: the column that has no numbers."""
    lines = [f"<tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>"]
    for row in rows:
        cells = (f"<td{' class=text' if i == words else ''}>{cell}</td>" for i, cell in enumerate(row))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


# Pictures.


def _picture(data: bytes, alt: str) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f'<p><img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="{html.escape(alt)}"></p>'


def _detections(story: Story) -> bytes:
    drawing = story.result.plot()
    file = io.BytesIO()
    drawing.save(file, "JPEG", quality=90)
    return file.getvalue()


class _Sheet:
    """A figure of panels that show the image, in pixels of it."""

    def __init__(self, story: Story, panels: int, *, panel_width: float = 5.2, beyond: float = 0.0) -> None:
        self.pixels = story.result.image.permute(1, 2, 0).numpy()
        height, width = story.result.image_size
        self.columns = 1 if panels == 1 else 2 if panels in (2, 4) else 3
        rows = math.ceil(panels / self.columns)
        panel_height = min(max(panel_width * height / width, 0.35 * panel_width), 1.6 * panel_width)
        size = (self.columns * panel_width, rows * (panel_height + 0.35))
        self.figure = require("matplotlib.figure", "train").Figure(figsize=size, dpi=110, layout="constrained")
        self.patches = require("matplotlib.patches", "train")
        self.axes = [self.figure.add_subplot(rows, self.columns, i + 1) for i in range(panels)]
        across, down = beyond * width, beyond * height
        for axes in self.axes:
            axes.set_xlim(-across, width + across)
            axes.set_ylim(height + down, -down)
            axes.set_xticks([])
            axes.set_yticks([])

    def show(self, axes: Any, dimmed: float = 0.0, grey: bool = False) -> None:
        """Put the image on a panel; `dimmed`: how far towards white."""
        pixels = self.pixels.astype(np.float32)
        if grey:
            pixels = np.repeat((pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[:, :, None], 3, axis=2)
        pixels = (pixels * (1 - dimmed) + 255 * dimmed).astype(np.uint8)
        height, width = pixels.shape[:2]
        axes.imshow(pixels, extent=(0, width, height, 0), interpolation="nearest", zorder=0)

    def box(self, axes: Any, box: Tensor, colour: Any, style: str = "-", width: float = 1.5, rim: bool = False) -> None:
        """rim: a dark line on both sides, for a box that stands alone."""
        x1, y1, x2, y2 = box.tolist()
        for line, ink, of in ((width + 1.8, (0, 0, 0, 0.4), "-"), (width, colour, style))[0 if rim else 1 :]:
            axes.add_patch(
                self.patches.Rectangle(
                    (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=ink, linestyle=of, linewidth=line
                )
            )

    def data(self) -> bytes:
        file = io.BytesIO()
        self.figure.savefig(file, format="jpeg", pil_kwargs={"quality": 90})
        return file.getvalue()


def _anchors(story: Story) -> bytes:
    sheet = _Sheet(story, len(story.levels), beyond=0.15)
    for number, (axes, level) in enumerate(zip(sheet.axes, story.levels, strict=True)):
        sheet.show(axes, dimmed=0.45)
        height, width = level.anchors.shape[:2]
        corners = level.anchors[:, :, 0].reshape(-1, 4)
        centres = ((corners[:, :2] + corners[:, 2:]) / 2).numpy()
        size = min(8.0, max(0.15, 9000 / len(centres)))
        axes.scatter(centres[:, 0], centres[:, 1], s=size, color="black", alpha=0.5, linewidths=0, zorder=1)
        for box in level.anchors[height // 2, width // 2]:
            sheet.box(axes, box, _LEVEL_COLOURS[number % len(_LEVEL_COLOURS)])
        axes.set_title(f"level {number}, stride {level.stride[0]}", fontsize=10)
    return sheet.data()


def _objectness(story: Story) -> bytes:
    sheet = _Sheet(story, len(story.levels))
    shown = None
    for number, (axes, level) in enumerate(zip(sheet.axes, story.levels, strict=True)):
        sheet.show(axes, dimmed=0.3, grey=True)
        best = level.objectness.amax(-1).numpy()
        # A place covers one stride around the centre of its anchors.
        height, width = best.shape
        first = level.anchors[0, 0, 0]
        x, y = ((first[:2] + first[2:]) / 2).tolist()
        step_y = level.stride[0] * story.result.image_size[0] / story.resized[0]
        step_x = level.stride[1] * story.result.image_size[1] / story.resized[1]
        left, top = x - step_x / 2, y - step_y / 2
        shown = axes.imshow(
            best,
            cmap="inferno",
            vmin=0,
            vmax=1,
            alpha=0.72,
            extent=(left, left + width * step_x, top + height * step_y, top),
            interpolation="nearest",
            zorder=1,
        )
        image_height, image_width = story.result.image_size
        axes.set_xlim(0, image_width)
        axes.set_ylim(image_height, 0)
        axes.set_title(f"level {number}: {height} × {width}, at most {best.max():.2f}", fontsize=10)
    sheet.figure.colorbar(shown, ax=sheet.axes, label="objectness", fraction=0.03, pad=0.02)
    return sheet.data()


def _before_and_after(story: Story) -> bytes:
    sheet = _Sheet(story, 2)
    # Not the colour map's ends: one is invisible on black, the other on white.
    colours = require("matplotlib", "train").colormaps["plasma"]
    for axes, ranked, what in zip(sheet.axes, (story.candidates, story.proposals), ("before", "after")):
        sheet.show(axes, dimmed=0.15, grey=True)
        count = min(_MOST_BOXES, len(ranked.boxes))
        for row in reversed(range(count)):
            objectness = float(ranked.objectness[row])
            sheet.box(axes, ranked.boxes[row], colours(0.15 + 0.8 * objectness), width=1.1)
        axes.set_title(f"{what} NMS: the best {count} of {len(ranked.boxes):,}{_scores(ranked, count)}", fontsize=10)
    return sheet.data()


def _scores(ranked: Ranked, count: int) -> str:
    if not count:
        return ""
    return f", objectness {float(ranked.objectness[0]):.2f} to {float(ranked.objectness[count - 1]):.2f}"


def _winners(story: Story) -> str:
    if not len(story.result):
        return "<p>No proposal became a detection.</p>"
    shown = min(_MOST_WINNERS, len(story.result))
    more = len(story.result) - shown
    cells = "".join(_winner(story, row) for row in range(shown))
    rest = f"<p>{_count(more, 'more detection')} not drawn here.</p>" if more else ""
    return f'<div class="winners">{cells}</div>{rest}'


def _winner(story: Story, row: int) -> str:
    result, source = story.result, int(story.sources[row])
    detection = result.boxes[row]
    proposal, anchor_row = story.proposals.boxes[source], int(story.proposals.anchors[source])
    anchor = story.anchors[anchor_row]
    sheet = _Sheet(story, 1, panel_width=4.2)
    (axes,) = sheet.axes
    sheet.show(axes)
    # Where boxes coincide, the gaps between dashes and dots show what is below.
    sheet.box(axes, detection, _DETECTION, "-", 2.4, rim=True)
    sheet.box(axes, proposal, _PROPOSAL, "--", 2.2, rim=True)
    sheet.box(axes, anchor, _ANCHOR, ":", 2.6, rim=True)
    # The three boxes and some of what is around them, as wide as high.
    together = torch.stack([anchor, proposal, detection])
    low, high = together[:, :2].amin(0), together[:, 2:].amax(0)
    centre, half = ((low + high) / 2).tolist(), 0.62 * float((high - low).amax())
    axes.set_xlim(centre[0] - half, centre[0] + half)
    axes.set_ylim(centre[1] + half, centre[1] - half)
    axes.set_aspect("equal")
    sheet.figure.set_size_inches(4.2, 4.2)
    moved = float(ops.box_iou(anchor[None], proposal[None])), float(ops.box_iou(proposal[None], detection[None]))
    scores, columns = story.probabilities[source].sort(descending=True)
    names = ["background", *result.class_names]
    likely = ", ".join(
        f"{html.escape(names[column])} {score:.2f}"
        for score, column in zip(scores[:_MOST_CLASSES].tolist(), columns.tolist())
        if score >= 0.005
    )
    red, green, blue = class_colour(int(result.labels[row]))
    return (
        f'<div><p><b class="key" style="border-color: rgb({red}, {green}, {blue})">'
        f"{html.escape(result.names[row])} {float(result.scores[row]):.2f}</b></p>"
        + _picture(sheet.data(), f"the boxes of detection {row + 1}")
        + f"<p>Proposal {source + 1} of {len(story.proposals.boxes):,}, objectness "
        f"{float(story.proposals.objectness[source]):.2f}, level {story.level_of(anchor_row)}.</p>"
        f"<p>IoU of anchor and proposal {moved[0]:.2f}, of proposal and detection {moved[1]:.2f}.</p>"
        f"<p>The head: {likely}.</p></div>"
    )


def _times(story: Story) -> bytes:
    names, values = list(story.milliseconds), list(story.milliseconds.values())
    figure = require("matplotlib.figure", "train").Figure(
        figsize=(9, 0.8 + 0.36 * len(names)), dpi=110, layout="constrained"
    )
    axes = figure.add_subplot()
    places = range(len(names))[::-1]
    bars = axes.barh(places, values, color="#4878a8", height=0.7)
    axes.bar_label(bars, [f"{v:.2f} ms  ({v / _sum(story):.0%})" for v in values], padding=4, fontsize=9)
    axes.set_yticks(places, names)
    axes.set_xlim(0, 1.22 * max(values))
    axes.set_xlabel(f"milliseconds; together {_sum(story):.1f}")
    axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
