"""Average precision, against published figures, hand-worked cases and a plain retelling of the rules."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn_fast.data.voc_xml import read_annotation
from frcnn_fast.evaluation import CocoEvaluator, VocEvaluator, voc_ap
from tests.real_data import real_data

NOTHING = {"boxes": [], "scores": [], "labels": []}


def found(*rows):
    """Detections of rows (label, score, box)."""
    return {
        "labels": [label for label, _, _ in rows],
        "scores": [score for _, score, _ in rows],
        "boxes": [box for _, _, box in rows],
    }


def truth(*rows):
    """A target of rows (label, box) or (label, box, difficult)."""
    return {
        "labels": [row[0] for row in rows],
        "boxes": [row[1] for row in rows],
        "difficult": [len(row) > 2 and row[2] for row in rows],
    }


def evaluate_folder(annotations, detections, names, iou_threshold=0.5):
    """Annotation files against text files of lines `class score x1 y1 x2 y2` (inclusive pixels)."""
    evaluator = VocEvaluator(names, iou_threshold=iou_threshold, legacy=True)
    paths = sorted(annotations.glob("*.xml"))
    assert paths
    for path in paths:
        rows = truth(*((names.index(o.name) + 1, o.corners, o.difficult) for o in read_annotation(path).objects))
        lines = detections / f"{path.stem}.txt"
        fields = [line.split() for line in lines.read_text().splitlines()] if lines.exists() else []
        evaluator.add(found(*((int(f[0]) + 1, float(f[1]), [float(v) for v in f[2:]]) for f in fields if f)), rows)
    return evaluator.result()


class TestPublishedFigures:
    def test_voc12_mini(self):
        data = real_data("voc12_mini") / "data" / "database"
        names = (data / "voc.names").read_text().split()
        result = evaluate_folder(data / "gts" / "pascalvoc_format", data / "dets" / "abs_xyx2y2", names)
        assert f"{result.map07:.6f}" == "0.607511"
        assert f"{result.map_area:.6f}" == "0.613875"
        assert sum(result.num_objects.values()) == 273 - 38
        assert sum(result.num_detections.values()) == 452

    @pytest.mark.parametrize(
        ("iou_threshold", "map07", "map_area"), [(0.5, "88.64", "89.58"), (0.75, "49.24", "50.97")]
    )
    def test_toy_example(self, iou_threshold, map07, map_area):
        data = real_data("voc12_mini") / "toyexample"
        names = (data / "voc.names").read_text().split()
        result = evaluate_folder(data / "gts_vocpascal_format", data / "dets_classid_abs_xyx2y2", names, iou_threshold)
        assert f"{100 * result.map07:.2f}" == map07
        assert f"{100 * result.map_area:.2f}" == map_area

    def test_coco(self):
        pytest.importorskip("pycocotools", reason="pycocotools (extra `coco`) is not installed")
        data = real_data("coco_eval_ref") / "tests" / "dataset" / "cocoapi"
        annotations = json.loads((data / "instances_val2014_100.json").read_text())
        detections = json.loads((data / "instances_val2014_fakebbox100_results.json").read_text())
        categories = sorted(annotations["categories"], key=lambda category: category["id"])
        label = {category["id"]: k for k, category in enumerate(categories, start=1)}

        def corners(row):
            x, y, width, height = row["bbox"]
            return [x, y, x + width, y + height]

        evaluator = CocoEvaluator([category["name"] for category in categories])
        for image in sorted(image["id"] for image in annotations["images"]):
            objects = [row for row in annotations["annotations"] if row["image_id"] == image]
            evaluator.add(
                found(
                    *(
                        (label[row["category_id"]], row["score"], corners(row))
                        for row in detections
                        if row["image_id"] == image
                    )
                ),
                {
                    "labels": [label[row["category_id"]] for row in objects],
                    "boxes": [corners(row) for row in objects],
                    "crowd": [row["iscrowd"] for row in objects],
                    "area": [row["area"] for row in objects],
                },
            )
        result = evaluator.result().to_dict()
        by_class = [value for value in result.pop("ap_by_class").values() if not math.isnan(value)]
        assert {name: f"{value:.6f}" for name, value in result.items()} == {
            **{"ap": "0.504581", "ap50": "0.696973", "ap75": "0.572982"},
            **{"ap_small": "0.585626", "ap_medium": "0.519400", "ap_large": "0.501398"},
            **{"ar1": "0.386813", "ar10": "0.593680", "ar100": "0.595353"},
            **{"ar_small": "0.639811", "ar_medium": "0.566421", "ar_large": "0.564291"},
        }
        assert np.mean(by_class) == pytest.approx(result["ap"])


class TestAveragePrecision:
    def test_by_hand(self):
        # Precision 1, 1/2, 2/3 at recall 1/4, 1/4, 2/4; made to fall: 1, 2/3, 2/3.
        right = np.array([True, False, True])
        assert voc_ap(right, 4) == pytest.approx(1 / 4 * 1 + 1 / 4 * 2 / 3)
        # Recall points 0, 0.1, 0.2 have precision 1; 0.3, 0.4, 0.5 have 2/3; the other five none.
        assert voc_ap(right, 4, use_07_metric=True) == pytest.approx((3 + 3 * 2 / 3) / 11)

    def test_a_recall_of_exactly_three_tenths_reaches_its_point(self):
        assert voc_ap(np.ones(3, dtype=bool), 10, use_07_metric=True) == pytest.approx(4 / 11)

    def test_ends(self):
        nothing = np.zeros(0, dtype=bool)
        for use_07_metric in (False, True):
            assert math.isnan(voc_ap(nothing, 0, use_07_metric=use_07_metric))
            assert math.isnan(voc_ap(np.zeros(2, dtype=bool), 0, use_07_metric=use_07_metric))
            assert voc_ap(nothing, 3, use_07_metric=use_07_metric) == 0
            assert voc_ap(np.zeros(2, dtype=bool), 3, use_07_metric=use_07_metric) == 0
            assert voc_ap(np.ones(3, dtype=bool), 3, use_07_metric=use_07_metric) == pytest.approx(1)


class TestVocRules:
    box, elsewhere = [0, 0, 10, 10], [50, 50, 60, 60]

    def area(self, images, **options):
        evaluator = VocEvaluator(["cat", "dog"], **options)
        for detections, target in images:
            evaluator.add(detections, target)
        return evaluator.result().ap_area["cat"]

    def test_overlap_must_exceed_the_threshold(self):
        half = [0, 0, 10, 5]  # IoU exactly 1/2
        assert self.area([(found((1, 0.9, half)), truth((1, self.box)))]) == 0
        assert self.area([(found((1, 0.9, half)), truth((1, self.box)))], iou_threshold=0.4999) == 1

    def test_legacy_counts_both_ends(self):
        # 10 and 6 pixels wide and 10 high when both ends count: 0.6; else 9 by 9 and 5 by 9.
        target, detection = truth((1, [1, 1, 10, 10])), found((1, 0.9, [1, 1, 6, 10]))
        assert self.area([(detection, target)], iou_threshold=0.58, legacy=True) == 1
        assert self.area([(detection, target)], iou_threshold=0.58) == 0

    def test_the_second_detection_of_an_object_is_wrong(self):
        rows = found((1, 0.9, self.box), (1, 0.8, self.box), (1, 0.7, self.elsewhere))
        images = [(rows, truth((1, self.box), (1, self.elsewhere)))]
        assert self.area(images) == pytest.approx(0.5 + 0.5 * 2 / 3)

    def test_even_if_another_object_is_free(self):
        near = [1, 0, 11, 10]
        rows = found((1, 0.9, self.box), (1, 0.8, self.box))
        assert self.area([(rows, truth((1, self.box), (1, near)))]) == 0.5

    def test_difficult_objects_count_neither_way(self):
        target = truth((1, self.box, True), (1, self.elsewhere))
        rows = found((1, 0.9, self.box), (1, 0.8, self.box), (1, 0.7, self.elsewhere))
        assert self.area([(rows, target)]) == 1
        assert self.area([(NOTHING, target)]) == 0

    def test_only_difficult_objects_leave_the_class_out_of_the_mean(self):
        evaluator = VocEvaluator(["cat", "dog"])
        evaluator.add(found((2, 0.9, self.box)), truth((1, self.box, True), (2, self.box)))
        result = evaluator.result()
        assert math.isnan(result.ap_area["cat"])
        assert result.map_area == result.map07 == 1
        assert result.to_dict()["classes"]["cat"]["ap07"] is None
        assert json.dumps(result.to_dict(), allow_nan=False)
        assert [line.split()[0] for line in result.table().splitlines()] == ["class", "cat", "dog", "mean"]

    def test_another_class_or_image_does_not_match(self):
        assert self.area([(found((2, 0.9, self.box)), truth((1, self.box)))]) == 0
        images = [(found((1, 0.9, self.box)), truth()), (NOTHING, truth((1, self.box)))]
        assert self.area(images) == 0

    def test_equal_scores_rank_in_the_order_of_adding(self):
        right, wrong = (found((1, 0.5, self.box)), truth((1, self.box))), (found((1, 0.5, self.box)), truth())
        assert self.area([right, wrong]) == 1
        assert self.area([wrong, right]) == 0.5

    def test_nothing_at_all(self):
        result = VocEvaluator(["cat"]).result()
        assert math.isnan(result.map07)
        evaluator = VocEvaluator(["cat"])
        evaluator.add(NOTHING, truth())
        assert math.isnan(evaluator.result().map_area)

    def test_boxes_that_are_no_boxes_match_nothing(self):
        for box in ([math.nan, 0, 10, 10], [10, 10, 0, 0], [5, 5, 5, 5], [0, 0, math.inf, 10]):
            assert self.area([(found((1, 0.9, box)), truth((1, self.box)))]) == 0

    def test_tensors_of_any_dtype(self):
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            detections = {
                "boxes": torch.tensor([self.box], dtype=dtype, requires_grad=True),
                "scores": torch.tensor([0.5], dtype=dtype),
                "labels": torch.tensor([1]),
            }
            assert self.area([(detections, truth((1, self.box)))]) == 1

    def test_bad_input_is_named(self):
        evaluator = VocEvaluator(["cat"])
        with pytest.raises(ValueError, match=r"iou_threshold must be in \[0, 1\), got 1.5"):
            VocEvaluator(["cat"], iou_threshold=1.5)
        with pytest.raises(ValueError, match="1 boxes, 2 scores and 1 labels"):
            evaluator.add({"boxes": [self.box], "scores": [1, 2], "labels": [1]}, truth())
        with pytest.raises(ValueError, match="2 boxes, 1 labels"):
            evaluator.add(NOTHING, {"boxes": [self.box] * 2, "labels": [1]})
        with pytest.raises(ValueError, match=r"scores'\] has a NaN"):
            evaluator.add(found((1, math.nan, self.box)), truth())
        for label in (0, 2):
            with pytest.raises(ValueError, match=r"detections\['labels'\] must be in 1..1"):
                evaluator.add(found((label, 0.5, self.box)), truth())


def retold(images, label, threshold, use_07_metric):
    """The devkit's rules in the order in which it states them, one detection at a time, in integers where it can."""
    rows = [
        (-score, number, place, box, image)
        for number, (detections, image) in enumerate(images)
        for place, (kind, score, box) in enumerate(detections)
        if kind == label
    ]
    taken: set[tuple[int, int]] = set()
    outcomes = []
    for _, number, _, box, image in sorted(rows, key=lambda row: row[:3]):
        best, at = 0.0, None
        for place, (kind, other, _) in enumerate(image):
            if kind != label:
                continue
            width = min(box[2], other[2]) - max(box[0], other[0])
            height = min(box[3], other[3]) - max(box[1], other[1])
            if width <= 0 or height <= 0:
                continue
            area = (box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1])
            overlap = width * height / (area - width * height)
            if overlap > best:
                best, at = overlap, place
        if at is None or not best > threshold:
            outcomes.append(False)
        elif not image[at][2]:
            outcomes.append((number, at) not in taken)
            taken.add((number, at))
    total = sum(kind == label and not hard for _, image in images for kind, _, hard in image)
    if total == 0:
        return math.nan
    points = [(sum(outcomes[: i + 1]), i + 1) for i in range(len(outcomes))]
    if use_07_metric:
        tops = [max((hit / n for hit, n in points if hit * 10 >= t * total), default=0) for t in range(11)]
        return sum(tops) / 11
    return sum(
        max(hit / n for hit, n in points if hit >= k) / total
        for k in range(1, total + 1)
        if points and points[-1][0] >= k
    )


def boxes_in_a_small_field():
    low, side = st.integers(0, 6), st.integers(1, 6)
    return st.builds(lambda x, y, w, h: (x, y, x + w, y + h), low, low, side, side)


IMAGE = st.tuples(
    st.lists(st.tuples(st.integers(1, 2), st.sampled_from([0.1, 0.5, 0.9]), boxes_in_a_small_field()), max_size=6),
    st.lists(st.tuples(st.integers(1, 2), boxes_in_a_small_field(), st.booleans()), max_size=4),
)


@given(st.lists(IMAGE, max_size=4), st.sampled_from([0.0, 0.3, 0.5]))
@settings(max_examples=200, deadline=None)
def test_evaluator_does_what_the_rules_say(images, threshold):
    evaluator = VocEvaluator(["cat", "dog"], iou_threshold=threshold)
    for detections, image in images:
        evaluator.add(found(*detections), truth(*image))
    result = evaluator.result()
    for label, name in ((1, "cat"), (2, "dog")):
        assert result.ap_area[name] == pytest.approx(retold(images, label, threshold, False), nan_ok=True)
        assert result.ap07[name] == pytest.approx(retold(images, label, threshold, True), nan_ok=True)


class TestCoco:
    @pytest.fixture(autouse=True)
    def _needs_pycocotools(self):
        pytest.importorskip("pycocotools", reason="pycocotools (extra `coco`) is not installed")

    def test_perfect_and_empty(self):
        evaluator = CocoEvaluator(["cat", "dog"])
        evaluator.add(found((1, 0.9, [0, 0, 50, 50])), truth((1, [0, 0, 50, 50])))
        evaluator.add(NOTHING, truth())
        result = evaluator.result()
        assert [result.ap, result.ap50, result.ap_medium, result.ar100] == pytest.approx([1] * 4)
        assert math.isnan(result.ap_small)
        assert math.isnan(result.ap_by_class["dog"])
        again = evaluator.result()  # asking twice changes nothing
        assert (again.ap, again.ar_medium) == (result.ap, result.ar_medium)

    def test_without_objects_or_images(self):
        evaluator = CocoEvaluator(["cat"])
        assert math.isnan(evaluator.result().ap)
        evaluator.add(found((1, 0.5, [0, 0, 1, 1])), truth())
        assert math.isnan(evaluator.result().ap)

    def test_detections_on_difficult_objects_do_not_count(self):
        evaluator = CocoEvaluator(["cat"])
        rows = found((1, 0.9, [0, 0, 50, 50]), (1, 0.8, [100, 100, 150, 150]))
        evaluator.add(rows, truth((1, [0, 0, 50, 50], True), (1, [100, 100, 150, 150])))
        assert evaluator.result().ap == pytest.approx(1)

    def test_bad_input_is_named(self):
        with pytest.raises(ValueError, match=r"target\['labels'\] must be in 1..1, got 2..2"):
            CocoEvaluator(["cat"]).add(NOTHING, truth((2, [0, 0, 1, 1])))
        with pytest.raises(ValueError, match="detections has entries of different lengths"):
            CocoEvaluator(["cat"]).add({"boxes": [], "labels": [], "scores": [1]}, truth())
