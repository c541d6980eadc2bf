"""Images: right places, right sizes, no crash on the odd cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from frcnn_fast._lettering import font_of, shortened
from frcnn_fast.io import append_jsonl
from frcnn_fast.model.losses import ROI_LOSSES, RPN_LOSSES
from frcnn_fast.visualize import (
    LOSS_COLOURS,
    class_colour,
    contact_sheet,
    draw_boxes,
    plot_losses,
    save_image,
    side_by_side,
)

GREY = torch.full((3, 200, 300), 128, dtype=torch.uint8)


def differs_from_grey(drawing) -> np.ndarray:
    return (np.asarray(drawing) != 128).any(-1)


def test_lines_lie_on_the_edge_of_the_enlarged_box():
    drawing = draw_boxes(GREY, torch.tensor([[50.0, 60.0, 100.0, 120.0]]), [3])
    assert drawing.size == (600, 400)  # twice, so that the shorter side has 400
    colour = class_colour(3)
    pixels = np.asarray(drawing)
    for x, y in ((100, 180), (199, 180), (150, 120), (150, 239)):
        assert tuple(pixels[y, x]) == colour, (x, y)
    for x, y in ((96, 200), (203, 200), (150, 180), (150, 244)):
        assert not differs_from_grey(drawing)[y, x], (x, y)


def test_large_images_keep_their_size():
    assert draw_boxes(torch.zeros(3, 600, 500, dtype=torch.uint8), []).size == (500, 600)


def test_the_input_is_not_drawn_on():
    original = Image.new("RGB", (500, 500), (128, 128, 128))
    draw_boxes(original, [[10, 10, 90, 90]], [1])
    assert not differs_from_grey(original).any()


def test_nothing_to_draw():
    empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    assert not differs_from_grey(draw_boxes(GREY, empty["boxes"], empty["labels"], empty["scores"])).any()
    side_by_side(GREY, empty, empty)


@pytest.mark.parametrize("box", [[math.nan, 0, 10, 10], [10, 10, 5, 20], [7, 7, 7, 7], [0, 0, math.inf, 9]])
def test_what_is_no_box_is_left_out(box):
    assert not differs_from_grey(draw_boxes(GREY, [box], [1], [0.5])).any()


def test_boxes_and_labels_at_and_beyond_the_edge():
    boxes = [[0, 0, 300, 200], [-50, -50, 20, 20], [280, 190, 400, 400], [500, 500, 600, 600]]
    draw_boxes(GREY, boxes, [1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4], class_names=["a long name" * 3] * 4)


def test_equal_boxes_have_labels_apart():
    one = draw_boxes(GREY, [[100, 60, 200, 120]], [1], [0.9])
    two = draw_boxes(GREY, [[100, 60, 200, 120]] * 2, [1, 2], [0.9, 0.8])
    assert (np.asarray(two) == class_colour(2)).all(-1).sum() > 300  # its plate shows
    assert (np.asarray(two) == class_colour(1)).all(-1).sum() >= 0.9 * (np.asarray(one) == class_colour(1)).all(
        -1
    ).sum()


def test_low_scores_are_not_shown_beside_the_truth():
    target = {"boxes": [[10, 10, 60, 60]], "labels": [1], "difficult": [True], "image_id": "a"}
    weak = {"boxes": [[100, 100, 160, 160]], "labels": [1], "scores": [0.3]}
    none = {"boxes": np.zeros((0, 4)), "labels": [], "scores": []}
    assert side_by_side(GREY, weak, target) == side_by_side(GREY, none, target)
    assert side_by_side(GREY, weak, target, score_threshold=0.2) != side_by_side(GREY, none, target)


def test_contact_sheet_places_every_image():
    images = [Image.new("RGB", (40, height), (height, 0, 0)) for height in (10, 30, 20)]
    sheet = np.asarray(contact_sheet(images, columns=2, gap=5))
    assert sheet.shape == (5 + 30 + 5 + 20 + 5, 5 + 40 + 5 + 40 + 5, 3)
    assert tuple(sheet[20, 20]) == (10, 0, 0)
    assert tuple(sheet[20, 60]) == (30, 0, 0)
    assert tuple(sheet[50, 20]) == (20, 0, 0)
    assert contact_sheet(images).size[0] > 0
    with pytest.raises(ValueError, match="images is empty"):
        contact_sheet([])


def test_colours_of_neighbours_are_far_apart():
    colours = np.array([class_colour(label) for label in range(1, 31)], dtype=np.float64)
    assert len({tuple(colour) for colour in colours}) == 30
    assert np.linalg.norm(np.diff(colours, axis=0), axis=1).min() > 100


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_images_are_saved(tmp_path, name):
    save_image(tmp_path / "deep" / name, draw_boxes(GREY, []))
    assert Image.open(tmp_path / "deep" / name).size == (600, 400)


def test_bad_images_are_named():
    with pytest.raises(ValueError, match=r"image must be uint8 \[3, H, W\] .* got float32 \(3, 2, 2\)"):
        draw_boxes(torch.zeros(3, 2, 2), [])


class TestLosses:
    def test_plots_what_is_there(self, tmp_path):
        metrics = tmp_path / "metrics.jsonl"
        for iteration in range(50):
            append_jsonl(metrics, {"iteration": iteration, "loss": 2 / (1 + iteration), "loss_box": 0.1, "lr": 1.0})
        append_jsonl(metrics, {"iteration": 50, "loss": math.nan})
        append_jsonl(metrics, {"voc07_map": 0.5})
        plot_losses(metrics, tmp_path / "loss.png")
        with Image.open(tmp_path / "loss.png") as drawing:
            assert drawing.size == (1080, 600)
            assert len(np.unique(np.asarray(drawing.convert("RGB")).reshape(-1, 3), axis=0)) > 10

    def test_a_loss_keeps_its_colour(self, tmp_path, monkeypatch):
        assert set(LOSS_COLOURS) == {"loss", *RPN_LOSSES, *ROI_LOSSES}
        assert len(set(LOSS_COLOURS.values())) == len(LOSS_COLOURS)
        drawn = []
        monkeypatch.setattr(Axes, "plot", lambda self, *args, color, **rest: drawn.append((rest.get("label"), color)))
        monkeypatch.setattr(Axes, "legend", lambda self, **rest: None)
        for values in ({"loss_classifier": 1.0, "loss_objectness": 2.0}, {"loss_classifier": 3.0, "loss_mask": 9.0}):
            append_jsonl(tmp_path / "metrics.jsonl", {"iteration": 0, **values})
            plot_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
            (tmp_path / "metrics.jsonl").unlink()
        named = [(label, colour) for label, colour in drawn if label]
        assert named == [
            ("objectness", "tab:blue"), ("classifier", "tab:red"), ("mask", "tab:green"), ("classifier", "tab:red"),
        ]  # fmt: skip

    def test_one_point_is_enough(self, tmp_path):
        append_jsonl(tmp_path / "metrics.jsonl", {"iteration": 0, "loss": 0.0})
        plot_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
        assert (tmp_path / "loss.png").stat().st_size > 1000

    def test_nothing_to_plot(self, tmp_path):
        append_jsonl(tmp_path / "metrics.jsonl", {"voc07_map": 0.5})
        with pytest.raises(ValueError, match=r"metrics\.jsonl: no record has an iteration and a loss"):
            plot_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.png")


class TestLetters:
    FONT = font_of(14)

    @pytest.mark.parametrize("letter", "óßñЖλ")
    def test_letters_beyond_ascii_have_shapes(self, letter):
        assert bytes(self.FONT.getmask(letter)) != bytes(self.FONT.getmask("\uffff"))  # the box for what a font lacks

    @pytest.mark.parametrize("text", ["a very long class name 0.87", "Donaudampfschiffahrt 0.87", "a 0.87"])
    def test_texts_are_shortened_to_their_place(self, text):
        for width in (40, 90, 150, 400):
            shown = shortened(text, self.FONT, width)
            assert self.FONT.getlength(shown) <= width
            assert shown.endswith("0.87")
            assert (shown == text) == (self.FONT.getlength(text) <= width)
        assert self.FONT.getlength(shortened("a-word-without-end", self.FONT, 50)) <= 50

    def test_plates_lie_inside_however_long(self):
        """The end of the plate, its score, is drawn."""
        image = torch.full((3, 300, 320), 128, dtype=torch.uint8)
        drawing = draw_boxes(image, [[100, 100, 200, 200]], [1], [0.87], class_names=["a long name " * 20])
        plate = (np.asarray(drawing) == class_colour(1)).all(-1)[60:99]
        columns = np.flatnonzero(plate.any(0))
        assert columns.min() >= 1
        assert 300 < columns.max() <= 318

    def test_the_best_box_keeps_its_plate(self):
        """However many there are at one place."""
        image = torch.full((3, 300, 400), 128, dtype=torch.uint8)
        boxes, scores = [[100, 100, 180, 160]] * 40, [0.9 - 0.01 * i for i in range(40)]
        labels = [1] + [2] * 39
        alone = draw_boxes(image, boxes[:1], [1], [0.9])
        crowd = draw_boxes(image, boxes, labels, scores)
        plate = (slice(84, 99), slice(100, 138))
        assert np.array_equal(np.asarray(alone)[plate], np.asarray(crowd)[plate])
