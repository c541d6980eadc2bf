"""Targets of a user's own data set: whole, clear and early errors; what is plain is taken."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, random_split

from frcnn_fast.data import (
    Collate,
    DetectionView,
    boxes_to_original,
    check_dataset,
    check_datasets,
    checked_class_names,
    checked_target,
    class_names_of,
    horizontal_flip,
)
from frcnn_fast.data.targets import TargetError, check_target, checked_image
from frcnn_fast.evaluation import VocEvaluator

SIZE = (60, 100)  # height, width
BOX = [10.0, 20.0, 30.0, 40.0]


class Own:
    """A data set as users write them: one target for all images."""

    def __init__(self, target: Any, names: Any = ("cat", "dog"), length: int = 1, image: Any = None) -> None:
        self.class_names, self.given, self.length = names, target, length
        self.image = torch.full((3, *SIZE), 7, dtype=torch.uint8) if image is None else image

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.image, dict(self.given)


def target(boxes: Any = (BOX,), labels: Any = (1,), **more: Any) -> dict[str, Any]:
    return {"boxes": boxes, "labels": labels, "image_id": "a7", **more}


def checked(**entries: Any) -> dict[str, Any]:
    return checked_target(target(**entries), SIZE, 2)


WRONG = {
    # name: (entries, what the error says beside the image's id)
    "label 0": ({"labels": torch.tensor([0])}, ["labels", "[0] is 0", "1..2", "background"]),
    "label -1": ({"labels": torch.tensor([-1])}, ["labels", "is -1", "1..2", "difficult"]),
    "label K + 1": ({"labels": torch.tensor([3])}, ["labels", "is 3", "1..2", "class_names has 2"]),
    "label 1.7": ({"labels": torch.tensor([1.7])}, ["labels", "is 1.7", "whole number"]),
    "label NaN": ({"labels": torch.tensor([math.nan])}, ["labels", "is nan"]),
    "label inf": ({"labels": np.array([np.inf])}, ["labels", "is inf"]),
    "label 2^40": ({"labels": [2**40]}, ["labels", str(2**40)]),
    "labels as text": ({"labels": ["cat"]}, ["labels", "text"]),
    "labels as bools": ({"labels": torch.tensor([True])}, ["labels", "bool"]),
    "labels of one-hot rows": ({"labels": torch.tensor([[1, 0]])}, ["labels", "[1, 2]", "argmax"]),
    "labels as a column": ({"labels": torch.tensor([[1]])}, ["labels", "[1, 1]", "last dimension"]),
    "one label for two boxes": ({"boxes": [BOX, BOX]}, ["labels", "1 labels for 2 boxes"]),
    "a number for all labels": ({"labels": torch.tensor(1)}, ["labels", "shape []"]),
    "three labels for a box": ({"labels": [1, 1, 2]}, ["3 labels for 1 boxes"]),
    "labels for no boxes": ({"boxes": torch.zeros(0, 4)}, ["1 labels for 0 boxes"]),
    "no labels": ({"labels": None}, ["labels", "nothing"]),
    "x, y, width, height": ({"boxes": [[50, 40, 20, 10]]}, ["[50, 40, 20, 10]", "x1 < x2", "[50, 40, 70, 50]"]),
    "exchanged corners": ({"boxes": [[90, 50, 60, 20]]}, ["x1 < x2", "exchanged"]),
    "NaN": ({"boxes": [[10, math.nan, 30, 40]]}, ["[10, nan, 30, 40]", "finite"]),
    "infinite": ({"boxes": [[10, 20, math.inf, 40]]}, ["inf", "finite"]),
    "too large for float32": ({"boxes": [[10, 20, 1e300, 40]]}, ["finite"]),
    "no width": ({"boxes": [[10, 20, 10, 40]]}, ["no extent"]),
    "no height": ({"boxes": [[10, 20, 30, 20]]}, ["no extent"]),
    "a width that float32 loses": ({"boxes": np.array([[10, 20, 10 + 1e-9, 40]])}, ["no extent"]),
    "right of the image": ({"boxes": [[100, 20, 130, 40]]}, ["wholly outside", "100 x 60"]),
    "above the image": ({"boxes": [[10, -30, 30, 0]]}, ["wholly outside"]),
    "fractions": ({"boxes": [[0.1, 0.2, 0.5, 0.9]]}, ["fractions", "multiply x by 100 and y by 60"]),
    "a flat box": ({"boxes": torch.tensor(BOX)}, ["boxes", "shape [4]", "[[x1, y1, x2, y2]]"]),
    "five columns": ({"boxes": torch.zeros(1, 5)}, ["boxes", "[1, 5]"]),
    "a batch": ({"boxes": torch.zeros(1, 1, 4)}, ["boxes", "[1, 1, 4]"]),
    "rows of two lengths": ({"boxes": [[1, 2, 3, 4], [1, 2, 3]], "labels": [1, 1]}, ["different lengths"]),
    "text": ({"boxes": [["a", "b", "c", "d"]]}, ["boxes", "text"]),
    "complex": ({"boxes": torch.ones(1, 4, dtype=torch.complex64)}, ["boxes", "complex"]),
    "bools": ({"boxes": torch.ones(1, 4, dtype=torch.bool)}, ["boxes", "bool"]),
    "nothing": ({"boxes": None}, ["boxes", "nothing", "[0, 4]"]),
    "difficult of another length": ({"difficult": [True, False]}, ["difficult", "[2]"]),
    "difficult 2": ({"difficult": [2]}, ["difficult", "[0] is 2", "0 or 1"]),
    "difficult as text": ({"difficult": ["no"]}, ["difficult", "text"]),
}


class TestWrong:
    @pytest.mark.parametrize("name", WRONG)
    def test_the_error_names_image_key_value_and_what_to_do(self, name):
        entries, parts = WRONG[name]
        with pytest.raises(TargetError) as caught:
            checked(**entries)
        for part in ["image a7: target[", "expected", *parts]:
            assert part in str(caught.value), (part, str(caught.value))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", WRONG)
    def test_every_door_refuses_it(self, name):
        """The view of training and evaluation, the check before a training, a batch of the user's own loop."""
        dataset = Own(target(**WRONG[name][0]))
        for door in (
            lambda: DetectionView(dataset)[0],
            lambda: check_dataset(dataset),
            lambda: Collate("torch", num_classes=2)([dataset[0]]),
        ):
            with pytest.raises(ValueError, match="image a7: target"):
                door()

    def test_all_faults_at_once(self):
        found = check_target(target(boxes=[[9, 9, 1, 1], BOX, [0, 0, math.nan, 1]], labels=[0, 1, 5]), SIZE, 2)
        assert [(fault.key, fault.row) for fault in found.faults] == [
            ("labels", 0),
            ("labels", 2),
            ("boxes", 0),
            ("boxes", 2),
        ]
        with pytest.raises(TargetError, match=r"\(and 3 more in this image"):
            checked_target(target(boxes=[[9, 9, 1, 1], BOX, [0, 0, math.nan, 1]], labels=[0, 1, 5]), SIZE, 2)

    def test_missing_keys_say_what_is_there(self):
        with pytest.raises(
            TargetError, match=r"target\['boxes'\] is missing, expected .*; the target has bbox, labels"
        ):
            checked_target({"bbox": [BOX], "labels": [1]}, SIZE, 2)
        with pytest.raises(TargetError, match=r"image 5: target is list, expected a dict"):
            checked_target([BOX], SIZE, 2, name=5)

    def test_items_of_another_form(self):
        class Three(Own):
            def __getitem__(self, index):
                return self.image, {}, {}

        with pytest.raises(TargetError, match=r"item 0: got tuple of 3, expected \(image, target\)"):
            DetectionView(Three(target()))[0]

    def test_torchvisions_formats(self):
        class Boxes(torch.Tensor):
            format: Any = type("Format", (), {"name": "XYWH"})

        with pytest.raises(TargetError, match=r"has the format XYWH.*convert"):
            checked(boxes=torch.tensor([BOX]).as_subclass(Boxes))
        Boxes.format = type("Format", (), {"name": "XYXY"})
        assert type(checked(boxes=torch.tensor([BOX]).as_subclass(Boxes))["boxes"]) is torch.Tensor

    @pytest.mark.parametrize(
        ("image", "hint"),
        [
            (torch.zeros(3, 8, 8), "floats 0..1"),
            (torch.zeros(8, 8, 3, dtype=torch.uint8), "permute"),
            (torch.zeros(1, 8, 8, dtype=torch.uint8), "grey"),
            (torch.zeros(4, 8, 8, dtype=torch.uint8), "alpha"),
            (torch.zeros(3, 0, 8, dtype=torch.uint8), "with pixels"),
            ("a.jpg", "its pixels are str"),
        ],
    )
    def test_images_that_are_none(self, image, hint):
        with pytest.raises(TargetError, match=r"image a7: its pixels are .*expected a uint8 tensor") as caught:
            DetectionView(Own(target(), image=image))[0]
        assert hint in str(caught.value)


class TestPlain:
    @pytest.mark.parametrize(
        "boxes",
        [
            torch.tensor([BOX], dtype=torch.int64),
            torch.tensor([BOX], dtype=torch.float16),
            torch.tensor([BOX], dtype=torch.uint8),
            torch.tensor([BOX], requires_grad=True),
            np.array([BOX], dtype=">f4"),
            np.array([BOX], dtype=np.uint16),
            np.array([BOX])[:, ::-1][:, ::-1],
            np.array([[*BOX, *BOX]])[:, :4],
            [BOX],
            [torch.tensor(BOX)],
            ((10, 20, 30, 40),),
        ],
        ids=str,
    )
    def test_boxes_of_any_kind(self, boxes):
        assert checked(boxes=boxes)["boxes"].tolist() == [BOX]
        assert checked(boxes=boxes)["boxes"].dtype == torch.float32
        view = DetectionView(Own(target(boxes=boxes)), shorter=45)
        assert view[0][1]["boxes"].tolist() == [[7.5, 15.0, 22.5, 30.0]]

    @pytest.mark.parametrize(
        "labels",
        [[2], [2.0], (np.int64(2),), torch.tensor([2], dtype=torch.int32), torch.tensor([2.0]), np.array([2], ">i2")],
        ids=str,
    )
    def test_labels_of_any_kind(self, labels):
        assert checked(labels=labels)["labels"].tolist() == [2]
        assert checked(labels=labels)["labels"].dtype == torch.int64

    @pytest.mark.parametrize("boxes", [torch.tensor([]), [], torch.zeros(0, 4), np.zeros((0, 4)), [[]]], ids=str)
    @pytest.mark.parametrize("labels", [torch.tensor([]), [], np.zeros(0)], ids=str)
    def test_no_objects(self, boxes, labels):
        found = checked(boxes=boxes, labels=labels)
        assert [found[key].shape for key in ("boxes", "labels", "difficult")] == [(0, 4), (0,), (0,)]
        batch = Collate()([DetectionView(Own(target(boxes=boxes, labels=labels)), shorter=30, flips=True)[1]])
        assert batch.gt_boxes.shape == (1, 0, 4)

    def test_flags(self):
        assert checked()["difficult"].tolist() == [False]
        assert checked(difficult=None)["difficult"].tolist() == [False]
        for key in ("difficult", "crowd", "iscrowd"):
            for flags in ([1], [True], np.array([1.0]), torch.tensor([1], dtype=torch.uint8)):
                assert checked(**{key: flags})["difficult"].tolist() == [True]

    def test_image_ids(self):
        for given, name in ((torch.tensor(5), "5"), (np.array([6]), "6"), (7, "7"), ("x", "x")):
            assert checked_target({**target(), "image_id": given}, SIZE, 2)["image_id"] == name
        unnamed = {key: value for key, value in target().items() if key != "image_id"}
        assert Collate()([DetectionView(Own(unnamed))[0]]).image_ids == ["0"]

    def test_what_is_given_stays_as_it_was(self):
        boxes = torch.tensor([[-5.0, 20, 30, 40]])
        with pytest.warns(UserWarning, match="cut"):
            assert checked(boxes=boxes)["boxes"].tolist() == [[0, 20, 30, 40]]
        assert boxes.tolist() == [[-5.0, 20, 30, 40]]

    def test_images_of_other_kinds(self):
        from PIL import Image

        for image in (np.full((3, 4, 5), 9, np.uint8), Image.new("L", (5, 4), 9), Image.new("RGB", (5, 4), (9, 9, 9))):
            assert torch.equal(checked_image(image, "a"), torch.full((3, 4, 5), 9, dtype=torch.uint8))


class TestEdges:
    def test_a_box_that_sticks_out_is_cut_with_one_counted_warning(self):
        boxes, labels = [[-5, 20, 30, 40], BOX, [80, 50, 130, 90]], [1, 2, 1]
        with pytest.warns(UserWarning, match="image a7: 2 boxes stick out over the image's edge and were cut"):
            found = checked(boxes=boxes, labels=labels)
        assert found["boxes"].tolist() == [[0, 20, 30, 40], BOX, [80, 50, 100, 60]]
        with pytest.warns(UserWarning, match="dataset: 6 boxes stick out .* in image a7") as told:
            check_dataset(Own(target(boxes, labels), length=3))
        assert len(told) == 1
        view = DetectionView(Own(target(boxes, labels), length=3))
        with pytest.warns(UserWarning, match="2 boxes stick out") as told:
            items = [view[0], view[1]]
        assert len(told) == 1
        assert all(item[1]["boxes"].tolist() == found["boxes"].tolist() for item in items)

    def test_rounding_is_no_sticking_out(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = checked(boxes=[[-1e-3, 0, 100.002, 60]])
        assert found["boxes"].tolist() == [[0, 0, 100, 60]]

    def test_whole_images_and_single_pixels_are_boxes(self):
        boxes = [[0, 0, 100, 60], [0, 0, 1, 1], [99, 59, 100, 60], [10.2, 10.2, 10.7, 10.9]]
        assert checked(boxes=boxes, labels=[1] * 4)["boxes"].tolist() == pytest.approx(np.array(boxes, np.float32))

    def test_the_thinnest_box_survives_the_resizing(self):
        thin = [99, 10, float(np.nextafter(np.float32(99), np.float32(100))), 20]
        for shorter in (7, 23, 59, 61, 1000):
            view = DetectionView(Own(target(boxes=[thin])), shorter=shorter, flips=True)
            batch = Collate()([view[0], view[1]])
            assert (batch.gt_boxes[..., 0] < batch.gt_boxes[..., 2]).all()


class TestScaling:
    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float32, torch.float64])
    @pytest.mark.parametrize("factor", [0.75, 1.5])
    def test_whole_numbers_are_scaled_as_numbers(self, dtype, factor):
        boxes, size = torch.tensor([[10, 20, 30, 40]], dtype=dtype), (round(60 * factor), round(100 * factor))
        scaled = boxes_to_original(boxes, SIZE, size)
        assert scaled.tolist() == [[10 * factor, 20 * factor, 30 * factor, 40 * factor]]
        assert DetectionView(Own(target(boxes=boxes)), shorter=size[0])[0][1]["boxes"].tolist() == scaled.tolist()
        assert boxes_to_original(boxes.numpy(), SIZE, size).tolist() == scaled.tolist()
        assert boxes_to_original(boxes.tolist(), SIZE, size).tolist() == scaled.tolist()

    def test_uint8_boxes_are_mirrored_without_wrapping(self):
        boxes = torch.tensor([[10, 20, 30, 40]], dtype=torch.uint8)
        image = torch.zeros(3, 60, 300, dtype=torch.uint8)
        assert horizontal_flip(image, {"boxes": boxes})[1]["boxes"].tolist() == [[270, 20, 290, 40]]

    def test_sizes_of_nothing(self):
        with pytest.raises(ValueError, match="at least one pixel"):
            boxes_to_original(torch.tensor([BOX]), (0, 10), (10, 10))


class TestClassNames:
    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ("cat", "expected a list of different names"),
            (["cat", "cat"], "cat more than once"),
            (["cafe\u0301", "caf\u00e9"], "more than once"),  # the same word in two forms
            ([], "at least one"),
            (["cat", ""], "none empty"),
            (["cat", " "], "none empty"),
            ({1: "cat"}, "expected a list"),
            (None, "expected a list"),
            ([None], "strings"),
            ([1.5], "strings"),
            ([True], "strings"),
            (["__background__", "cat"], "leave it out"),
        ],
    )
    def test_refused(self, names, message):
        with pytest.raises(ValueError, match=message):
            checked_class_names(names)
        if names is not None:
            with pytest.raises(ValueError, match=message):
                DetectionView(Own(target(), names=names))
        with pytest.raises(ValueError, match=message):
            VocEvaluator(names)

    def test_taken(self):
        assert checked_class_names(("cat", "dog")) == ["cat", "dog"]
        assert checked_class_names([0, np.int64(1)]) == ["0", "1"]
        assert checked_class_names(name for name in "ab") == ["a", "b"]

    def test_subsets(self):
        dataset: Any = Own(target(), length=10)
        subset = Subset(Subset(dataset, [3, 4, 5]), [1])
        assert class_names_of(subset) == ["cat", "dog"]
        for part in random_split(dataset, [7, 3]):
            assert class_names_of(part) == ["cat", "dog"]
            check_dataset(part)
            assert len(DetectionView(part)) == len(part)  # type: ignore[arg-type]
        assert class_names_of(ConcatDataset([dataset, subset])) == ["cat", "dog"]
        other: Any = Own(target(), names=["emu"])
        with pytest.raises(ValueError, match="different classes"):
            class_names_of(ConcatDataset([dataset, other]))
        loader = DataLoader(DetectionView(subset), collate_fn=Collate())  # type: ignore[arg-type]
        assert next(iter(loader)).gt_labels.tolist() == [[1]]

    def test_none_anywhere(self):
        class Nameless:
            dataset: Any = None

        loop = Nameless()
        loop.dataset = loop
        for dataset in (Nameless(), loop, [1, 2]):
            with pytest.raises(ValueError, match=r"has no class_names, expected a list .*set it"):
                class_names_of(dataset)


class Quick(Own):
    """One that can give targets without images; item 5 is wrong."""

    loaded = 0

    def __getitem__(self, index: int) -> Any:
        self.loaded += 1
        return super().__getitem__(index)

    def target(self, index: int) -> Any:
        return target(labels=[9] if index == 5 else [1])


class TestBeforeTheFirstUpdate:
    def test_quick_targets_are_all_checked_without_loading(self):
        dataset = Quick(target(), length=6)
        with pytest.raises(ValueError, match=r"dataset: image a7: target\['labels'\]\[0\] is 9"):
            check_dataset(dataset)
        assert dataset.loaded == 0

    def test_a_subset_is_asked_for_its_own_items(self):
        dataset: Any = Quick(target(), length=6)
        check_dataset(Subset(dataset, [0, 4]))
        with pytest.raises(ValueError, match="is 9"):
            check_dataset(Subset(dataset, [0, 5]))
        with pytest.raises(ValueError, match="is 9"):
            check_dataset(ConcatDataset([Subset(dataset, [0]), dataset]))

    def test_a_class_that_changes_the_items_is_loaded(self):
        class Changed(Quick):
            def __getitem__(self, index):
                return self.image, target(labels=[2])

        check_dataset(Changed(target(), length=6))

    def test_a_large_set_is_sampled(self):
        class Counting(Own):
            asked: set[int] = set()  # noqa: RUF012

            def __getitem__(self, index):
                self.asked.add(index)
                return super().__getitem__(index)

        dataset = Counting(target(), length=10**9)
        check_dataset(dataset)
        assert len(dataset.asked) == 1000
        assert max(dataset.asked) > 9e8

    def test_both_sets(self):
        good = Own(target())
        check_datasets(good, good)
        for test, message in (
            (Own(target(labels=[3])), "test: image a7: target"),
            (Own(target(), names=["cat"]), "test: its classes are"),
            (Own(target(), length=0), "test: got an empty data set"),
            (Own(target(), names=["cat", "cat"]), r"test\.class_names: got cat more than once"),
        ):
            with pytest.raises(ValueError, match=message):
                check_datasets(good, test)

    def test_wrong_targets_do_not_begin_a_run(self, tmp_path):
        from frcnn_fast import train
        from frcnn_fast.model import preset
        from frcnn_fast.training import recipe

        wrong, good = Own(target(labels=[0]), length=4), Own(target(), length=4)
        options = recipe("small", iterations=1)
        for training, test in ((wrong, None), (good, wrong)):
            with pytest.raises(ValueError, match=r"image a7: target\['labels'\]\[0\] is 0"):
                train.train(training, out=tmp_path / "run", config=preset("small"), options=options, test=test)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("workers", [0, 1])
    def test_one_that_appears_later_ends_the_training(self, workers):
        """Not as an unreadable file, which would be left out."""
        from frcnn_fast.model import preset
        from frcnn_fast.training import recipe
        from frcnn_fast.training.batches import TrainingBatches

        options = recipe("small", iterations=2, workers=workers)
        with pytest.raises(TargetError, match=r"is 0, expected 1\.\.2"):
            list(TrainingBatches(Own(target(labels=[0]), length=4), preset("small"), options))
