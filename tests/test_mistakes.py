"""What a detector gets wrong: kinds of mistakes, the confusion matrix, F1, the report and its drawings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from frcnn_fast import cli
from frcnn_fast.data import CocoDetection
from frcnn_fast.evaluation import (
    CocoEvaluator,
    Curve,
    Mistakes,
    VocEvaluator,
    confusion_matrix,
    pooled,
    worst_first,
)
from frcnn_fast.evaluation.report import COLOURS, ReportFolder, draw_verdict
from frcnn_fast.model import build_detector, preset, save_detector
from tests.real_data import real_data
from tests.test_data import image_file, voc_object, voc_tree, voc_xml

NAMES = ["cat", "dog"]


def found(*rows: tuple[list[float], float, int]) -> dict[str, Any]:
    boxes, scores, labels = zip(*rows, strict=True) if rows else ([], [], [])
    return {"boxes": list(boxes), "scores": list(scores), "labels": list(labels)}


def target(*rows: tuple[list[float], int], difficult: tuple[int, ...] = (), name: str = "a") -> dict[str, Any]:
    boxes, labels = zip(*rows, strict=True) if rows else ([], [])
    flags = [row in difficult for row in range(len(rows))]
    return {"boxes": list(boxes), "labels": list(labels), "difficult": flags, "image_id": name}


# Two objects in a row of ten-pixel boxes, far apart.
CAT, DOG, HARD = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [40.0, 0.0, 50.0, 10.0]


def judged(detections: dict[str, Any], truth: dict[str, Any], threshold: float = 0.0, **options: Any) -> Any:
    mistakes = Mistakes(NAMES, **options)
    mistakes.add(detections, truth)
    return mistakes.verdicts(threshold)[0]


class TestVerdicts:
    truth = target((CAT, 1), (DOG, 2), (HARD, 1), difficult=(2,))

    @pytest.mark.parametrize(
        ("row", "kind", "about"),
        [
            ((CAT, 0.9, 1), "hit", 0),
            (([0.0, 0.0, 10.0, 6.0], 0.9, 1), "hit", 0),  # overlap 0.6
            (([0.0, 0.0, 10.0, 5.0], 0.9, 1), "misplaced", 0),  # 0.5 is not above 0.5
            (([0.0, 0.0, 10.0, 1.0], 0.9, 1), "misplaced", 0),  # 0.1
            (([0.0, 0.0, 10.0, 0.9], 0.9, 1), "background", -1),
            ((DOG, 0.9, 1), "confused", 1),
            (([20.0, 0.0, 30.0, 5.0], 0.9, 1), "background", -1),  # a dog, but overlap 0.5
            ((HARD, 0.9, 1), "ignored", 2),
            ((HARD, 0.9, 2), "background", -1),  # a difficult object of another class excuses nothing
            (([70.0, 0.0, 80.0, 10.0], 0.9, 1), "background", -1),
            (([5.0, 0.0, float("nan"), 10.0], 0.9, 1), "background", -1),
        ],
    )
    def test_kinds(self, row, kind, about):
        verdict = judged(found(row), self.truth)
        assert (verdict.kinds, verdict.matched.tolist()) == ([kind], [about])
        hit = about if kind == "hit" else None
        assert verdict.missed.tolist() == [hit != 0, hit != 1, False]

    def test_the_better_of_two_has_the_object(self):
        verdict = judged(found((CAT, 0.5, 1), ([0.0, 0.0, 10.0, 9.0], 0.8, 1), (DOG, 0.1, 2)), self.truth, 0.2)
        assert (verdict.kinds, verdict.found.scores.tolist()) == (["hit", "duplicate"], [0.8, 0.5])
        assert verdict.missed.tolist() == [False, True, False]
        assert verdict.mistakes == 2

    def test_an_object_that_is_found_is_not_taken_for_another(self):
        verdict = judged(found((CAT, 0.5, 1), (CAT, 0.9, 2)), self.truth)
        assert verdict.kinds == ["background", "hit"]

    def test_the_larger_overlap_is_the_confusion(self):
        verdict = judged(found(([20.0, 0.0, 30.0, 7.0], 0.9, 1), (DOG, 0.2, 1)), self.truth)
        assert (verdict.kinds, verdict.matched.tolist()) == (["background", "confused"], [-1, 1])

    def test_another_overlap(self):
        assert judged(found(([0.0, 0.0, 10.0, 3.0], 0.9, 1)), self.truth, iou_threshold=0.25).kinds == ["hit"]
        assert judged(found(([0.0, 0.0, 10.0, 0.5], 0.9, 1)), self.truth, iou_threshold=0.0).kinds == ["hit"]
        with pytest.raises(ValueError, match="iou_threshold"):
            Mistakes(NAMES, iou_threshold=1)

    def test_nothing(self):
        verdict = judged(found(), target())
        assert (verdict.kinds, verdict.mistakes) == ([], 0)
        assert judged(found((CAT, 0.9, 1)), target()).kinds == ["background"]
        assert judged(found(), target((CAT, 1))).mistakes == 1

    def test_the_matrix(self):
        mistakes = Mistakes(NAMES)
        mistakes.add(found((CAT, 0.9, 1), (DOG, 0.8, 1), (HARD, 0.7, 1), (CAT, 0.6, 1)), self.truth)
        mistakes.add(found(([60.0, 0.0, 70.0, 10.0], 0.9, 2)), target((CAT, 1)))
        verdicts = mistakes.verdicts(0.0)
        # cat: one found, one missed; dog: found as a cat; nothing: a duplicate cat and a dog.
        assert confusion_matrix(verdicts, 2).tolist() == [[1, 0, 1], [1, 0, 0], [1, 1, 0]]

    def test_worst_first(self):
        mistakes = Mistakes(NAMES)
        for rows in ([], [(DOG, 0.3, 1)], [(DOG, 0.9, 1)], [(CAT, 0.5, 1)], [(DOG, 0.1, 1), (DOG, 0.2, 2)]):
            mistakes.add(found(*rows), target((CAT, 1)))
        # Sorted by: two false and a miss; one and a miss, the surer first; a miss.
        assert [verdict.index for verdict in worst_first(mistakes.verdicts(0.0))] == [4, 2, 1, 0]


class TestCurves:
    def test_by_hand(self):
        curve = Curve(np.array([0.9, 0.8, 0.8, 0.3]), np.array([True, False, True, False]), 4)
        assert curve.precision.tolist() == [1, 1 / 2, 2 / 3, 1 / 2]
        assert curve.recall.tolist() == [1 / 4, 1 / 4, 2 / 4, 2 / 4]
        assert curve.f1.tolist() == [2 / 5, 2 / 6, 4 / 7, 4 / 8]
        assert curve.best() == (0.8, 4 / 7)
        assert [curve.counts_at(t) for t in (0.0, 0.3, 0.31, 0.8, 0.81, 1.0)] == [
            (2, 2, 2), (2, 2, 2), (2, 1, 2), (2, 1, 2), (1, 0, 3), (0, 0, 4),
        ]  # fmt: skip

    def test_detections_of_one_score_stay_together(self):
        # Keeping only the first of the two would be better, and no threshold does it.
        curve = Curve(np.array([0.8, 0.8, 0.5]), np.array([True, False, True]), 2)
        assert curve.best() == (0.5, 0.8)
        assert Curve(np.array([0.8, 0.8]), np.array([True, False]), 1).best() == (0.8, 2 / 3)

    def test_ends(self):
        assert all(map(math.isnan, Curve(np.zeros(0), np.zeros(0, bool), 3).best()))
        assert all(map(math.isnan, Curve(np.ones(1), np.zeros(1, bool), 0).best()))
        whole = pooled(
            [Curve(np.array([0.9, 0.1]), np.array([True, False]), 1), Curve(np.array([0.5]), np.ones(1, bool), 2)]
        )
        assert (whole.scores.tolist(), whole.right.tolist(), whole.num_objects) == ([0.9, 0.5, 0.1], [1, 1, 0], 3)
        assert pooled([]).num_objects == 0

    @pytest.mark.parametrize("iou_threshold", [0.3, 0.5, 0.75])
    def test_hits_are_those_of_the_evaluator(self, iou_threshold):
        """Two ways to the same counts, on crowded random images, at any threshold."""
        rng = np.random.default_rng(0)
        voc = VocEvaluator(NAMES, iou_threshold=iou_threshold)
        mistakes = Mistakes(NAMES, iou_threshold=iou_threshold)
        for _ in range(40):
            sizes = rng.integers(0, 12, 2)
            boxes = [
                np.concatenate([low := rng.integers(0, 30, (n, 2)), low + rng.integers(5, 30, (n, 2))], 1)
                for n in sizes
            ]
            detections = {
                "boxes": boxes[0],
                "scores": rng.integers(0, 20, sizes[0]) / 20,
                "labels": rng.integers(1, 3, sizes[0]),
            }
            truth = {
                "boxes": boxes[1],
                "labels": rng.integers(1, 3, sizes[1]),
                "difficult": rng.random(sizes[1]) < 0.2,
            }
            voc.add(detections, truth)
            mistakes.add(detections, truth)
        curves = voc.curves()
        for threshold in (0.0, 0.25, 0.5, 0.95):
            verdicts = mistakes.verdicts(threshold)
            matrix = confusion_matrix(verdicts, 2)
            for k, name in enumerate(NAMES):
                hits, false, missed = curves[name].counts_at(threshold)
                assert matrix[k, k] == hits
                assert matrix[:, k].sum() == hits + false
                assert matrix[k].sum() == hits + missed
            counts = pooled(list(curves.values())).counts_at(threshold)
            assert sum(verdict.mistakes for verdict in verdicts) == counts[1] + counts[2]


class TestDrawing:
    def test_colours_and_legend(self):
        image = np.full((3, 400, 400), 255, dtype=np.uint8)
        place = [[x, 200.0, x + 60, 260.0] for x in (20.0, 120.0, 220.0, 320.0)]
        verdict = judged(
            found((place[0], 0.9, 1), (place[1], 0.8, 1), (place[3], 0.8, 2)),
            target((place[0], 1), (place[2], 2), (place[3], 2), difficult=(2,)),
        )
        pixels = np.array(draw_verdict(image, verdict, NAMES))
        top = pixels.shape[0] - 400 - (pixels.shape[0] - 400) // 2  # the caption is about half of what was added
        for kind, (x1, y1, x2, y2) in zip(("hit", "false", "missed", "ignored"), place, strict=True):
            part = pixels[top // 4 + int(y1) - 20 : top + int(y2) + 20, int(x1) : int(x2)]
            assert (part == COLOURS[kind]).all(-1).sum() > 60, kind
            assert (pixels[-60:] == COLOURS[kind]).all(-1).sum() > 50, kind  # the legend

    def test_only_what_is_there_is_explained(self):
        image = np.full((3, 400, 400), 255, dtype=np.uint8)
        verdict = judged(found(([20.0, 20.0, 90.0, 90.0], 0.9, 1)), target(([20.0, 20.0, 90.0, 90.0], 1)))
        pixels = np.array(draw_verdict(image, verdict, NAMES))
        assert [(pixels == COLOURS[kind]).all(-1).any() for kind in ("hit", "false", "missed")] == [True, False, False]


class TestReport:
    def write(self, path: Path, **changes: Any) -> float:
        voc, mistakes = VocEvaluator(NAMES), Mistakes(NAMES)
        for k in range(4):
            detections = found((CAT, 0.9 - 0.1 * k, 1), (DOG, 0.5, 1 + k % 2))
            for evaluator in (voc, mistakes):
                evaluator.add(detections, target((CAT, 1), (DOG, 2), name=f"../<{k}>"))

        def read(index: int) -> Any:
            if index == 2:
                raise ValueError("torn")
            return np.zeros((3, 20, 60), dtype=np.uint8)

        return ReportFolder(path, **changes).write("<title>", {"voc": voc.result()}, voc.curves(), mistakes, read)

    def test_files_figures_and_page(self, tmp_path):
        with pytest.warns(UserWarning, match="<2> was not drawn"):
            assert self.write(tmp_path / "r") == 0.5
        names = {str(path.relative_to(tmp_path / "r")) for path in (tmp_path / "r").rglob("*") if path.is_file()}
        assert names == {
            "evaluation.json", "precision_recall.png", "f1.png", "confusion.png", "index.html", "worst/001-.._0_.jpg",
        }  # fmt: skip
        figures = json.loads((tmp_path / "r/evaluation.json").read_text())
        assert figures["mistakes"]["confusion"]["matrix"] == [[4, 0, 0], [2, 2, 0], [0, 0, 0]]
        assert figures["mistakes"]["kinds"] == {
            "hit": 6, "confused": 2, "duplicate": 0, "misplaced": 0, "background": 0, "missed": 2, "ignored": 0,
        }  # fmt: skip
        assert figures["mistakes"]["at_best_threshold"]["dog"]["recall"] == 0.5
        assert figures["voc"]["classes"]["cat"]["objects"] == 4
        page = (tmp_path / "r/index.html").read_text()
        assert "&lt;title&gt;" in page
        assert "<title>&lt;title" in page
        assert all(name in page for name in names - {"evaluation.json", "index.html"})
        for name in ("precision_recall", "f1", "confusion"):
            with Image.open(tmp_path / f"r/{name}.png") as image:
                assert np.array(image).std() > 5

    @pytest.mark.filterwarnings("ignore:.*was not drawn")
    def test_an_earlier_report_is_not_replaced(self, tmp_path):
        self.write(tmp_path)
        (tmp_path / "notes.txt").touch()
        (tmp_path / "worst/009-old.jpg").touch()
        with pytest.raises(ValueError, match=r"evaluation\.json is an earlier report"):
            ReportFolder(tmp_path)
        assert self.write(tmp_path, overwrite=True) == 0.5
        assert (tmp_path / "notes.txt").exists()
        assert not (tmp_path / "worst/009-old.jpg").exists()

    def test_nothing_found_and_nothing_there(self, tmp_path):
        voc, mistakes = VocEvaluator(NAMES), Mistakes(NAMES)
        report = ReportFolder(tmp_path)
        assert math.isnan(report.write("t", {"voc": voc.result()}, voc.curves(), mistakes, lambda k: None))
        assert "No image has a mistake" in (tmp_path / "index.html").read_text()
        voc.add(found(), target((CAT, 1)))
        mistakes.add(found(), target((CAT, 1)))
        report.write("t", {"voc": voc.result()}, voc.curves(), mistakes, lambda k: np.zeros((3, 20, 60), np.uint8))
        assert json.loads((tmp_path / "evaluation.json").read_text())["mistakes"]["kinds"]["missed"] == 1

    def test_many_classes(self, tmp_path):
        names = [f"class {k}" for k in range(40)]
        voc, mistakes = VocEvaluator(names), Mistakes(names)
        for k in range(40):
            for evaluator in (voc, mistakes):
                evaluator.add(found((CAT, 0.5, k + 1)), target((CAT, k + 1)))
        ReportFolder(tmp_path).write("t", {"voc": voc.result()}, voc.curves(), mistakes, lambda k: None)
        assert (tmp_path / "confusion.png").stat().st_size > 1000

    def test_real_detections(self, tmp_path):
        """VOC 2012 photographs with the detections of a real network: the counts of three ways agree."""
        root = real_data("voc12_mini") / "data/database"
        dataset = CocoDetection(root / "gts/coco_format_v1/instances_default.json", images=root / "images")
        document = json.loads((root / "dets/coco_format/coco_dets.json").read_text())
        names = {item["id"]: item["name"] for item in document["categories"]}
        files = {item["id"]: item["file_name"] for item in document["images"]}
        rows: dict[str, list[tuple[list[float], float, int]]] = {}
        for item in document["annotations"]:
            x, y, width, height = item["bbox"]
            label = dataset.class_names.index(names[item["category_id"]]) + 1
            rows.setdefault(files[item["image_id"]], []).append(([x, y, x + width, y + height], item["score"], label))
        labels = dataset.class_names
        voc, mistakes, coco = VocEvaluator(labels), Mistakes(labels), CocoEvaluator(labels)
        for k in range(len(dataset)):
            for evaluator in (voc, mistakes, coco):
                evaluator.add(found(*rows.get(dataset.image_path(k).name, [])), dataset.target(k))
        results = {"voc": voc.result(), "coco": coco.result()}
        threshold = ReportFolder(tmp_path).write("t", results, voc.curves(), mistakes, dataset.read, worst=2)
        figures = json.loads((tmp_path / "evaluation.json").read_text())
        matrix = np.array(figures["mistakes"]["confusion"]["matrix"])
        assert matrix[:-1].sum() == sum(voc.result().num_objects.values()) == 273
        assert matrix[:, :-1].sum() == sum(score >= threshold for part in rows.values() for _, score, _ in part)
        assert figures["coco"]["ap50"] == pytest.approx(figures["voc"]["map_area"], abs=0.01)
        assert len(list((tmp_path / "worst").iterdir())) == 2


class TestCommand:
    @pytest.fixture
    def run(self, tmp_path) -> Path:
        voc_tree(tmp_path / "data", "test", a=voc_xml(voc_object("cat")), b=voc_xml(voc_object("dog")))
        save_detector(tmp_path / "model.safetensors", build_detector(NAMES, preset("small")))
        return tmp_path

    def test_metrics_and_reports(self, run, capsys):
        arguments = ["evaluate", "--checkpoint", str(run), "--data-root", str(run / "data"), "--device", "cpu"]
        assert cli.main([*arguments, "--metric", "coco", "-o", str(run / "coco.json")]) == 0
        said = capsys.readouterr()
        assert f"{run / 'data'} is PASCAL VOC: test test (2 images), 2 classes: cat, dog" in said.err
        lines = said.out.splitlines()
        assert lines[0].startswith("AP  at IoU 0.50:0.95  ")
        assert sum(line.startswith(("AP", "AR")) for line in lines) == 12
        assert lines[-1].startswith("COCO AP 0.")
        assert set(json.loads((run / "coco.json").read_text())["ap_by_class"]) == set(NAMES)

        assert cli.main([*arguments, "-o", str(run / "report"), "--worst", "1"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1].startswith("VOC07 mAP 0.")
        assert f"report: {run / 'report/index.html'}" in lines
        assert len(list((run / "report/worst").iterdir())) == 1
        assert cli.main([*arguments, "--metric", "coco", "-o", str(run / "report"), "--overwrite"]) == 0
        assert {"voc", "coco", "mistakes"} == set(json.loads((run / "report/evaluation.json").read_text()))

    def test_an_overlap_is_not_coco_s(self, run, capsys):
        with pytest.raises(SystemExit):
            cli.main(["evaluate", "--checkpoint", str(run), "--metric", "coco", "--iou", "0.3"])
        assert "--iou: COCO's figures have their own overlaps" in capsys.readouterr().err

    def test_images_of_another_format(self, run, capsys):
        image_file(run / "coco/test/a.jpg")
        document = {
            "images": [{"id": 5, "file_name": "a.jpg"}],
            "annotations": [{"id": 1, "image_id": 5, "category_id": 3, "bbox": [10, 10, 20, 20], "iscrowd": 0}],
            "categories": [{"id": 3, "name": "dog"}, {"id": 2, "name": "cat"}],
        }
        (run / "coco/test.json").write_text(json.dumps(document))
        assert (
            cli.main(["evaluate", "--checkpoint", str(run), "--data-root", str(run / "coco"), "--metric", "coco"]) == 0
        )
        assert "is COCO: test test (1 images)" in capsys.readouterr().err
