"""Draws the pictures of the documents: `python -m docs.pictures`, into docs/images.

What a picture shows is computed by the ops. `detections`, on top of the README, wants the run that `make train` leaves:
`python -m docs.pictures detections --checkpoint runs/digits`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from bench.plots import GRID, INK, MUTED, OUR_COLOR, STYLE, save_small
from frcnn_fast import Detector, ops
from frcnn_fast.data import DigitsDetection
from frcnn_fast.visualize import contact_sheet

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
BLUE, GREEN, PURPLE, YELLOW = "#1d4ed8", "#0f766e", "#7e22ce", "#ca8a04"
SEVERAL = (OUR_COLOR, BLUE, GREEN, PURPLE, YELLOW, "#be185d", "#0891b2", "#4d7c0f")


def detections(path: Path, checkpoint: Path) -> None:
    """The first images of the embedded test split, and what the detector of a run finds in them."""
    split = DigitsDetection("test")
    found = Detector(checkpoint)([split[i][0] for i in range(3)], score_threshold=0.5)
    contact_sheet([result.plot() for result in found], columns=3, gap=8).save(path, quality=88)


# Parts of pictures.


def frame(axes: Axes, title: str = "") -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9.5, loc="left")


def pixels(axes: Axes, width: float, height: float, margin: float = 0, title: str = "") -> None:
    """Axes of an image: y goes down, a pixel is as wide as high."""
    axes.set_xlim(-margin, width + margin)
    axes.set_ylim(height + margin, -margin)
    axes.set_aspect("equal")
    frame(axes, title)


def draw_box(axes: Axes, box: Any, colour: str, text: str = "", **style: Any) -> None:
    x1, y1, x2, y2 = (float(v) for v in box)
    style = {"fill": False, "linewidth": 1.6, "edgecolor": colour, **style}
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **style))
    if text:
        plate = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}
        axes.text(x1 + 2, y1 + 2, text, color=colour, fontsize=8, va="top", ha="left", bbox=plate, zorder=5)


def show(axes: Axes, image: Tensor, faded: float = 0.0) -> None:
    """uint8 [3, H, W]; faded: how much of it is white."""
    shown = image.permute(1, 2, 0).numpy() / 255 * (1 - faded) + faded
    axes.imshow(shown, extent=(0, image.shape[2], image.shape[1], 0), interpolation="bilinear")


def scene() -> tuple[Tensor, Tensor]:
    """An image of the embedded data set, uint8 [3, H, W], and the boxes of its digits, float32 [G, 4]."""
    image, target = DigitsDetection("test")[31]
    return image, target["boxes"].float()


# The grid of the pictures with an image: stride 8, 3 sizes and 3 ratios.
STRIDE, SIZES, RATIOS = 8, (24.0, 40.0, 72.0), (0.5, 1.0, 2.0)


def grid_of(image: Tensor) -> ops.AnchorGrids:
    height, width = image.shape[1:]
    return ops.AnchorGrids(
        [(ops.generate_anchors(SIZES, RATIOS), (height // STRIDE, width // STRIDE), (STRIDE, STRIDE))]
    )


def table_of(image: Tensor) -> Tensor:
    """The same anchors as a table [A, 4]."""
    height, width = image.shape[1:]
    return ops.grid_anchors(ops.generate_anchors(SIZES, RATIOS), (height // STRIDE, width // STRIDE), STRIDE)


def as_if_trained(anchors: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [A] and deltas [A, 4] as a trained network's might be: high near objects, pointing at them, with noise."""
    noise = torch.Generator().manual_seed(2)
    iou, nearest = ops.box_iou(anchors, gt_boxes).max(1)
    logits = 12 * iou - 6 + 0.8 * torch.randn(len(anchors), generator=noise)
    deltas = ops.encode(gt_boxes[nearest], anchors).clamp(-1.5, 1.5)
    deltas = torch.where(iou[:, None] > 0.15, 0.95 * deltas, 0 * deltas)
    return logits, deltas + 0.06 * torch.randn(deltas.shape, generator=noise)


# Pictures, by name.


def anchors(figure: Figure) -> None:
    """The cells of an image, the anchors of one of them, and where the three conventions put them."""
    image, _ = scene()
    height, width = image.shape[1:]
    left, right = figure.subplots(1, 2, width_ratios=(1.75, 1))
    show(left, image, 0.55)
    pixels(
        left, width, height, 3, f"{height // STRIDE} × {width // STRIDE} cells of stride {STRIDE}; the 9 anchors of one"
    )
    ys, xs = np.mgrid[0 : height // STRIDE, 0 : width // STRIDE] * STRIDE
    left.scatter(xs, ys, s=2, color=INK, alpha=0.5)
    left.add_patch(Rectangle((0, 0), width, height, fill=False, edgecolor=MUTED, linewidth=1))
    cell = ops.generate_anchors(SIZES, RATIOS) + torch.tensor([17, 12, 17, 12]) * STRIDE
    for number, box in enumerate(cell):
        draw_box(left, box, SEVERAL[number % len(SIZES)])
    for number, size in enumerate(SIZES):
        left.plot([], [], color=SEVERAL[number], label=f"size {size:g}")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, frameon=False, fontsize=8)
    left.scatter([17 * STRIDE], [12 * STRIDE], s=26, color=INK, zorder=4)
    pixels(right, 48, 48, 10, "size 32, ratio 0.5, of the cell (1, 1), stride 16")
    for x in range(0, 49, 16):
        right.plot([x, x], [0, 48], color=GRID, zorder=0)
        right.plot([0, 48], [x, x], color=GRID, zorder=0)
    for number, (convention, offset) in enumerate((("torchvision", 0.0), ("detectron2", 0.5), ("legacy", 0.0))):
        boxes = ops.generate_anchors((32,), (0.5,), convention=convention)
        (box,) = ops.grid_anchors(boxes, (2, 2), 16, offset=offset)[-1:]
        said = ", ".join(f"{v:.4g}" for v in box.tolist())
        draw_box(right, box, SEVERAL[number], linestyle=("-", "--", ":")[number], linewidth=2)
        right.plot([], [], color=SEVERAL[number], linestyle=("-", "--", ":")[number], label=f"{convention}: {said}")
        right.scatter(*((box[:2] + box[2:]) / 2).tolist(), color=SEVERAL[number], s=18, zorder=4)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False, fontsize=8)


def decode(figure: Figure) -> None:
    """Deltas move and scale an anchor; the image's edge cuts the box; what is too small is invalid."""
    anchors = torch.tensor([[40.0, 50, 120, 110], [150, 20, 210, 100], [20, 120, 60, 150], [185, 130, 225, 150]])
    deltas = torch.tensor(
        [[[0.35, -0.3, 0.3, 0.4], [0.6, 0.25, 0.15, -0.1], [-0.7, 0.1, 0.2, 0.3], [1.2, 0.2, 0.1, 0.0]]]
    )
    size, least = [[160.0, 240.0]], 16.0
    far = ops.decode_clip(deltas, anchors + 1000, [[1e6, 1e6]]).boxes[0] - 1000
    clipped, valid = ops.decode_clip(deltas, anchors, size, min_size=least)
    for axes, step in zip(figure.subplots(1, 3), ("anchors and deltas", "decoded", f"clipped; sides ≥ {least:g}")):
        pixels(axes, 240, 160, 44, step)
        axes.set_ylim(166, -6)
        axes.add_patch(Rectangle((0, 0), 240, 160, facecolor="#f6f6f4", edgecolor=MUTED))
        for i, colour in enumerate(SEVERAL[: len(anchors)]):
            if step.startswith("anchors"):
                draw_box(axes, anchors[i], colour, linestyle="--")
                start, end = ((box[:2] + box[2:]) / 2 for box in (anchors[i], far[i]))
                axes.annotate(
                    "", end.tolist(), start.tolist(), arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.4}
                )
            elif step == "decoded":
                draw_box(axes, anchors[i], colour, linestyle="--", linewidth=0.8, alpha=0.6)
                draw_box(axes, far[i], colour)
            else:
                draw_box(axes, far[i], colour, linewidth=0.8, alpha=0.5)
                x1, y1, x2, y2 = clipped[0, i].tolist()
                fine = bool(valid[0, i])
                axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, facecolor=colour if fine else "none", alpha=0.3))
                draw_box(axes, clipped[0, i], colour)
                if not fine:
                    axes.text(x2 - 4, y1 - 6, f"{x2 - x1:.0f} wide: invalid", color=colour, fontsize=8, ha="right")


def nms(figure: Figure) -> None:
    """Boxes, their IoU in rank order, and who suppresses whom."""
    threshold = 0.5
    boxes = torch.tensor(
        [
            [10, 30, 90, 120], [18, 38, 98, 124], [4, 20, 80, 108], [30, 44, 116, 134], [130, 20, 200, 90],
            [138, 32, 206, 100], [120, 8, 192, 78], [44, 60, 134, 148], [160, 100, 226, 156], [166, 108, 232, 160],
        ],
        dtype=torch.float32,
    )  # fmt: skip
    scores = torch.tensor([0.96, 0.93, 0.85, 0.81, 0.9, 0.72, 0.66, 0.6, 0.88, 0.55])
    order = scores.argsort(descending=True)
    boxes, scores = boxes[order], scores[order]
    iou = ops.box_iou(boxes, boxes)
    kept = ops.nms(boxes, scores, threshold).tolist()
    by = [next((k for k in kept if k < i and iou[k, i] > threshold), i) for i in range(len(boxes))]
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    pixels(left, 240, 165, 4, "numbers are ranks; dashed: suppressed, in the colour of the box that did it")
    for i in reversed(range(len(boxes))):
        colour = SEVERAL[kept.index(by[i])]
        style = {"linewidth": 2.4} if i in kept else {"linestyle": "--", "linewidth": 1.1}
        draw_box(left, boxes[i], colour, f"{i}: {scores[i]:.2f}", **style)
    frame(right, f"IoU with earlier boxes; in colour: above {threshold:g}, with a kept one")
    right.set_aspect("equal")
    right.set_xlim(-0.6, len(boxes) + 1.8)
    right.set_ylim(len(boxes) - 0.4, -1.2)
    for i in range(len(boxes)):
        right.text(i, -0.8, str(i), ha="center", va="center", fontsize=8, color=MUTED)
        for k in range(i):
            hit = bool(iou[i, k] > threshold)
            kills = hit and k in kept
            colour = SEVERAL[kept.index(k)] if kills else "#d6d3d1" if hit else "#f6f6f4"
            right.add_patch(Rectangle((k - 0.47, i - 0.47), 0.94, 0.94, facecolor=colour, alpha=0.9))
            ink = "white" if kills else INK if hit else MUTED
            right.text(k, i, f"{iou[i, k]:.2f}".lstrip("0"), ha="center", va="center", fontsize=7, color=ink)
        said, colour, weight = ("kept", INK, "bold") if i in kept else (f"by {by[i]}", MUTED, "normal")
        right.text(i, i, str(i), ha="center", va="center", fontsize=8, color=MUTED)
        right.text(i + 0.7, i, said, va="center", fontsize=8, color=colour, fontweight=weight)


def roi_pooling(figure: Figure) -> None:
    """The bins of a region of 7 x 5 cells: RoIPool's whole cells and maxima, RoIAlign's sample points and means."""
    noise = torch.Generator().manual_seed(5)
    features = torch.randint(0, 100, (1, 1, 8, 11), generator=noise).float()
    x1, y1, width, height, bins = 2, 1, 7, 5, 3
    rois = torch.tensor([[0.0, x1, y1, x1 + width - 1, y1 + height - 1]])  # RoIPool counts both ends
    pooled = ops.roi_pool(features, rois, (bins, bins), 1.0)[0, 0]
    aligned_rois = torch.tensor([[0.0, x1, y1, x1 + width, y1 + height]])  # RoIAlign's are half-open
    aligned = ops.roi_align(features, aligned_rois, (bins, bins), 1.0, 2, True)[0, 0]
    first, second, third, fourth = figure.subplots(1, 4, width_ratios=(1.6, 0.62, 1.6, 0.62))
    for axes, title in ((first, "RoIPool: whole cells"), (third, "RoIAlign: 2 × 2 points a bin")):
        axes.imshow(features[0, 0].numpy(), cmap="Greys", alpha=0.35, extent=(0, 11, 8, 0), vmin=0, vmax=150)
        pixels(axes, 11, 8, 0.15, title)
        for y in range(8):
            for x in range(11):
                value = f"{features[0, 0, y, x]:.0f}"
                faint = MUTED if axes is first else "#a8a29e"
                axes.text(x + 0.5, y + 0.5, value, ha="center", va="center", fontsize=7.5, color=faint)
    cuts = lambda length: [(p * length // bins, -(-(p + 1) * length // bins)) for p in range(bins)]  # noqa: E731
    for row, (top, bottom) in enumerate(cuts(height)):
        for column, (start, end) in enumerate(cuts(width)):
            colour, inset = SEVERAL[(row * bins + column) % 8], 0.06 + 0.07 * ((row + column) % 2)
            corners = (x1 + start + inset, y1 + top + inset, x1 + end - inset, y1 + bottom - inset)
            draw_box(first, corners, colour, linewidth=1.8)
            part = features[0, 0, y1 + top : y1 + bottom, x1 + start : x1 + end]
            best = int(part.argmax())
            y, x = y1 + top + best // part.shape[1], x1 + start + best % part.shape[1]
            assert features[0, 0, y, x] == pooled[row, column]
            first.text(
                x + 0.5,
                y + 0.5,
                f"{pooled[row, column]:.0f}",
                ha="center",
                va="center",
                fontsize=8.5,
                fontweight="bold",
            )
            w, h = width / bins, height / bins
            draw_box(third, (x1 + column * w, y1 + row * h, x1 + (column + 1) * w, y1 + (row + 1) * h), colour)
            at = [(x1 + (column + i) * w, y1 + (row + j) * h) for i in (0.25, 0.75) for j in (0.25, 0.75)]
            third.scatter(*zip(*at), s=14, color=colour, zorder=4)
    for axes, values, title in ((second, pooled, "maximum"), (fourth, aligned, "mean")):
        pixels(axes, bins, bins, 0.05, title)
        for row in range(bins):
            for column in range(bins):
                colour = SEVERAL[(row * bins + column) % 8]
                axes.add_patch(Rectangle((column + 0.04, row + 0.04), 0.92, 0.92, facecolor=colour, alpha=0.18))
                said = f"{values[row, column]:.0f}" if axes is second else f"{values[row, column]:.1f}"
                axes.text(column + 0.5, row + 0.5, said, ha="center", va="center", fontsize=8.5)


def anchor_targets(figure: Figure) -> None:
    """What an image's anchors are labelled, and the 256 that are drawn."""
    image, gt_boxes = scene()
    height, width = image.shape[1:]
    every, counts = table_of(image), torch.tensor([len(gt_boxes)])
    labels, matched = ops.assign_anchors(every, gt_boxes[None], counts, image_sizes=[[height, width]])
    sample = ops.sample_anchors(labels, torch.tensor([7, 0]))
    drawn = sample.indices[0][sample.labels[0] >= 0]
    centres = (every[:, :2] + every[:, 2:]) / 2
    objects, ground = (int(n) for n in sample.counts[0])
    numbers = [int((labels[0] == value).sum()) for value in (1, 0, -1)]
    titles = (
        f"{len(every):,} anchors: {numbers[0]} objects, {numbers[1]:,} background, {numbers[2]:,} ignored",
        f"{len(drawn)} of them drawn: all {objects} objects, {ground} of the background",
    )
    for axes, title, some in zip(figure.subplots(1, 2), titles, (None, drawn)):
        show(axes, image, 0.5)
        pixels(axes, width, height, 8, title)
        for g, box in enumerate(gt_boxes):
            draw_box(axes, box, SEVERAL[g % 8], linewidth=2.4)
        if some is None:
            for i in (labels[0] == 1).nonzero().flatten().tolist():
                draw_box(axes, every[i], SEVERAL[int(matched[0, i]) % 8], linewidth=0.7, alpha=0.9)
        else:
            is_object = labels[0][some] == 1
            shift = torch.randn(len(every), 2, generator=torch.Generator().manual_seed(0))
            for which, colour, name in ((~is_object, MUTED, "background"), (is_object, OUR_COLOR, "object")):
                x, y = (centres + shift)[some[which]].T
                axes.scatter(x, y, s=13, color=colour, edgecolors="white", linewidths=0.4, label=name, zorder=4)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, frameon=False, fontsize=8)


def proposals(figure: Figure) -> None:
    """The proposal step, stage by stage."""
    image, gt_boxes = scene()
    height, width = image.shape[1:]
    size = [[float(height), float(width)]]
    every = table_of(image)
    logits, deltas = as_if_trained(every, gt_boxes)
    before, after, least = 200, 12, 8.0
    best = ops.top_n(logits[None], before).indices[0]
    boxes, valid = ops.decode_clip(deltas[None], every, size, min_size=least)
    fit = best[valid[0, best]]
    kept = fit[ops.nms(boxes[0, fit], logits[fit], 0.7)]
    step = ops.rpn_proposals(
        logits[None], deltas[None], grid_of(image), size, pre_nms_top_n=before, post_nms_top_n=after, min_size=least
    )
    assert step.indices[0].tolist() == kept[:after].tolist()
    stages = (
        (f"1  scores of {len(every):,} anchors (best of a cell)", None, None),
        (f"2  the best {before} anchors", every[best], 0.25),
        (f"3  decoded and clipped: {len(fit)} boxes", boxes[0, fit], 0.25),
        (f"4  after NMS at 0.7: {len(kept)}", boxes[0, kept], 0.6),
        (f"5  the best {after}", step.boxes[0], 1.0),
        ("    the objects", gt_boxes, 1.0),
    )
    for axes, (title, shown, alpha) in zip(figure.subplots(2, 3).flat, stages):
        show(axes, image, 0.45)
        pixels(axes, width, height, 3, title)
        if shown is None:
            cells = logits.reshape(height // STRIDE, width // STRIDE, -1).amax(-1)
            extent = (0, width, height, 0)
            axes.imshow(cells.numpy(), cmap="inferno", alpha=0.75, extent=extent, interpolation="nearest")
            continue
        colour = GREEN if shown is gt_boxes else OUR_COLOR
        for box in shown:
            draw_box(axes, box, colour, alpha=alpha, linewidth=2.0 if alpha == 1.0 else 1.0)


def top_n(figure: Figure) -> None:
    """Selection by digits of the key: whole bins are taken, one is cut."""
    scores = torch.randn(20646, generator=torch.Generator().manual_seed(0)) * 2 - 3
    n = 6000
    taken = ops.top_n(scores[None], n)
    least = float(taken.values[0, -1])
    bits = scores.numpy().view(np.uint32)
    keys = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))  # sorts as the scores do
    bound = int(keys[int(taken.indices[0, -1])])
    left, right = figure.subplots(1, 2)
    for axes, title, shift, among in (
        (left, "first digit, 11 bits: bins from the best down", 21, np.ones(len(keys), bool)),
        (right, "the bin that is cut, by its next 11 bits", 10, keys >> 21 == bound >> 21),
    ):
        digits = (keys[among] >> shift).astype(np.int64)
        names, counts = np.unique(digits, return_counts=True)
        if shift == 10:  # 2,048 bins of a few scores each: 64 together are a bar
            names, where = np.unique(digits >> 5, return_inverse=True)
            counts, cut = np.bincount(where), bound >> 15
        else:
            cut = bound >> 21
        names, counts = names[::-1], counts[::-1]
        colours = [OUR_COLOR if name > cut else YELLOW if name == cut else "#d6d3d1" for name in names]
        axes.bar(range(len(names)), counts, color=colours, width=1.0, edgecolor="white", linewidth=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xticks([])
        axes.set_ylabel("scores")
        axes.set_title(title, fontsize=9.5, loc="left")
        whole = int(counts[names > cut].sum())
        axes.set_xlabel(f"{whole:,} taken whole, {int(counts[names == cut].sum()):,} in the bin that is cut")
    for colour, name in ((OUR_COLOR, "taken"), (YELLOW, "looked into"), ("#d6d3d1", "left")):
        right.bar([0], [0], color=colour, label=name)
    right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    about = f"The best {n:,} of {len(scores):,} scores; the last of them is {least:.3f}"
    figure.suptitle(about, fontsize=9.5, x=0.01, ha="left")


def last_step(figure: Figure) -> None:
    """The last step: probabilities, the threshold, NMS within a class."""
    noise = torch.Generator().manual_seed(3)
    image, gt_boxes = scene()
    height, width = image.shape[1:]
    rows, classes = 3 * len(gt_boxes), 5
    rois = gt_boxes.repeat_interleave(3, 0)
    sides = (rois[:, 2:] - rois[:, :2]).repeat(1, 2)
    rois += 0.07 * sides * torch.randn(rows, 4, generator=noise)
    logits = torch.randn(rows, classes + 1, generator=noise)
    logits[torch.arange(rows), 1 + torch.arange(len(gt_boxes)).repeat_interleave(3) % classes] += 4
    threshold = 0.3
    found = ops.detections(
        logits[None], torch.zeros(1, rows, 4 * (classes + 1)), rois[None], torch.tensor([rows]),
        [[float(height), float(width)]], score_threshold=threshold, iou_threshold=0.3,
    )  # fmt: skip
    count = int(found.counts[0])
    chosen = set(zip(found.indices[0, :count].tolist(), found.labels[0, :count].tolist()))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    chances = logits.softmax(1)
    left.imshow(chances.numpy(), cmap="Blues", vmin=0, vmax=1.2, aspect="auto")
    for i in range(rows):
        for k in range(1, classes + 1):
            if chances[i, k] > threshold:
                colour = OUR_COLOR if (i, k) in chosen else MUTED
                left.add_patch(Rectangle((k - 0.46, i - 0.44), 0.92, 0.88, fill=False, edgecolor=colour, linewidth=1.6))
    frame(left, f"{rows} proposals, {classes} classes: {int((chances[:, 1:] > threshold).sum())} above {threshold:g}")
    left.set_xticks(range(classes + 1), ["background", *map(str, range(1, classes + 1))], fontsize=7.5)
    left.tick_params(length=0)
    show(right, image, 0.4)
    pixels(right, width, height, 3, f"within a class, NMS leaves {count} (orange on the left)")
    for i in range(rows):
        draw_box(right, rois[i], MUTED, linewidth=0.7)
    for i in range(count):
        said = f"{int(found.labels[0, i])}: {float(found.scores[0, i]):.2f}"
        draw_box(right, found.boxes[0, i], OUR_COLOR, said, linewidth=2)


def roi_sampling(figure: Figure) -> None:
    """The IoU of proposals with their object, the ranges, and what is drawn."""
    image, gt_boxes = scene()
    every = table_of(image)
    logits, deltas = as_if_trained(every, gt_boxes)
    step = ops.rpn_proposals(
        logits[None], deltas[None], grid_of(image), [[192.0, 256.0]], pre_nms_top_n=2000, post_nms_top_n=600,
        iou_threshold=0.7,
    )  # fmt: skip
    labels = torch.ones(1, len(gt_boxes), dtype=torch.int64)
    drawn = ops.sample_rois(
        step.boxes, step.counts, gt_boxes[None], labels, torch.tensor([len(gt_boxes)]), torch.tensor([0, 0]),
        batch_size=128, append_gt=True,
    )  # fmt: skip
    count = int(step.counts[0])
    best = ops.box_iou(step.boxes[0, :count], gt_boxes).amax(1)
    sampled = ops.box_iou(drawn.rois[0], gt_boxes).amax(1)[drawn.labels[0] >= 0]
    objects, ground = (int(n) for n in drawn.counts[0])
    axes = figure.subplots()
    bins = np.linspace(0, 1, 41).tolist()
    axes.hist(best.numpy(), bins, color="#d6d3d1", label=f"{count} proposals")
    kinds = (sampled[sampled >= 0.5], sampled[sampled < 0.5])
    names = (f"drawn as objects: {objects} (a quarter of 128 at most)", f"drawn as background: {ground}")
    for values, colour, name in zip(kinds, (OUR_COLOR, BLUE), names):
        axes.hist(values.numpy(), bins, color=colour, label=name)
    axes.axvline(0.5, color=INK, linewidth=1, linestyle=":")
    axes.set_yscale("symlog", linthresh=10)
    axes.set_yticks([0, 5, 10, 100], ["0", "5", "10", "100"])
    axes.set_xlabel("IoU with the nearest object; 1: the objects themselves, which take part")
    axes.set_ylabel("boxes")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5, loc="upper right")


def cluster(figure: Figure) -> None:
    """The cluster step: eight blocks, a chunk at a time, and where they wait for each other."""
    header = (ROOT / "kernels/nms/cluster_memory.cuh").read_text().split("#else", 1)[1]
    blocks, chunk = (int(re.search(rf"\b{name} = (\d+)", header)[1]) for name in ("kCluster", "kClusterChunk"))  # type: ignore[index]
    steps = (
        ("select", "the best n, spread\nover the blocks", 1.7, True, BLUE),
        ("gather", f"the next {chunk}\nat most, to all", 1.5, False, GREEN),
        ("rank", "place, and box,\nof every 8th", 1.3, False, GREEN),
        ("meet", "against the\nkept boxes", 1.3, False, OUR_COLOR),
        ("publish", "to its rank\nin every block", 1.2, True, GREEN),
        ("cross", "who suppresses whom:\ntiles of 32 × 32", 1.75, True, OUR_COLOR),
        ("settle", "what greedy\nNMS keeps", 1.2, False, PURPLE),
        ("append", "to each block's\nkept list", 1.25, False, GREEN),
        ("write", "rows of\nthe output", 1.0, False, BLUE),
    )
    axes = figure.subplots()
    frame(axes)
    x, starts = 0.0, {}
    for name, about, width, waits, colour in steps:
        starts[name] = x
        for block in range(blocks):
            axes.add_patch(Rectangle((x + 0.04, block + 0.14), width - 0.08, 0.72, facecolor=colour, alpha=0.8))
        axes.text(x + width / 2, -0.95, name, ha="center", fontsize=9.5, fontweight="bold", color=colour)
        axes.text(x + width / 2, blocks + 0.3, about, ha="center", va="top", fontsize=7, color=INK)
        x += width
        if waits:
            axes.plot([x, x], [-0.2, blocks + 0.1], color=INK, linewidth=2)
        if name in ("select", "append"):
            x += 0.35
    begin, end = starts["gather"], starts["write"] - 0.35
    axes.annotate(
        "", (begin, blocks + 2.15), (end, blocks + 2.15),
        arrowprops={"arrowstyle": "->", "color": MUTED, "lw": 1.4, "connectionstyle": "bar,angle=0,fraction=-0.035"},
    )  # fmt: skip
    axes.text((begin + end) / 2, blocks + 2.75, "again, until enough boxes are kept or the candidates are spent",
              ha="center", fontsize=8.5, color=MUTED)  # fmt: skip
    for block in range(blocks):
        axes.text(-0.12, block + 0.5, f"block {block}", ha="right", va="center", fontsize=8, color=MUTED)
    axes.plot([], [], color=INK, linewidth=2.2, label="barrier of the whole cluster")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, -0.1), frameon=False, fontsize=8.5)
    axes.set_xlim(-1.1, x + 0.1)
    axes.set_ylim(blocks + 3.2, -1.4)


# name: what draws it, and its size in inches.
PICTURES: dict[str, tuple[Callable[[Figure], None], tuple[float, float]]] = {
    "anchors": (anchors, (9.5, 4.0)),
    "decode": (decode, (10, 2.0)),
    "top_n": (top_n, (9.5, 3.2)),
    "nms": (nms, (10, 4.3)),
    "anchor_targets": (anchor_targets, (10, 4.2)),
    "roi_pooling": (roi_pooling, (10.5, 3.0)),
    "proposals": (proposals, (10, 5.6)),
    "roi_sampling": (roi_sampling, (8, 3.4)),
    "last_step": (last_step, (9.5, 4.2)),
    "cluster": (cluster, (10.5, 4.4)),
}


def draw(names: Iterable[str], folder: Path) -> None:
    """As PNG files."""
    for name in names:
        make, size = PICTURES[name]
        layout = (
            "constrained" if make in (top_n, roi_sampling, roi_pooling, cluster) else "compressed"
        )  # the others have images
        with plt.rc_context(STYLE):
            figure = plt.figure(figsize=size, layout=layout)
            make(figure)
            save_small(figure, folder / f"{name}.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Draws what is named, or all that needs no checkpoint."""
    every = [*PICTURES, "detections"]
    parser = argparse.ArgumentParser(prog="python -m docs.pictures", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(every)}")
    parser.add_argument("--checkpoint", type=Path, help="a run, for `detections`")
    parser.add_argument("-o", "--out", type=Path, default=IMAGES)
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in every]
    if unknown:
        parser.error(f"names: got {unknown[0]!r}, expected some of {', '.join(every)}")
    if "detections" in args.names:
        if args.checkpoint is None:
            parser.error("detections: wants --checkpoint")
        detections(args.out / "detections.jpg", args.checkpoint)
    draw([name for name in args.names or PICTURES if name in PICTURES], args.out)
    print(args.out, file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
