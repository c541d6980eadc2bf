"""Recall of proposals: worked out by hand, and against the COCO API."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from frcnn_fast import recall as command
from frcnn_fast.data import ProposalSet, read_proposals
from frcnn_fast.evaluation import RecallEvaluator, recall_table
from tests.real_data import real_data


def result_of(*images, limits=(1, 2, 5)):
    """Of images of (proposals, boxes) or (proposals, boxes, more of the target)."""
    evaluator = RecallEvaluator(["thing"], limits=limits)
    for proposals, boxes, *more in images:
        evaluator.add(proposals, {"boxes": boxes, "labels": [1] * len(boxes), **(more[0] if more else {})})
    return evaluator.result()


class TestByHand:
    def test_one_of_two_objects_at_six_of_ten_thresholds(self):
        # 75 of 100 pixels are covered: IoU 0.75, enough for 0.5, 0.55, 0.6, 0.65, 0.7 and 0.75. The other object is not
        # met at all: recall 1/2 at six thresholds, AR = 6 * 0.5 / 10.
        found = result_of(([[0, 0, 10, 7.5]], [[0, 0, 10, 10], [50, 50, 60, 60]]))
        assert found.average["all"] == pytest.approx({1: 0.3, 2: 0.3, 5: 0.3})
        assert found.recall == {0.5: {1: 0.5, 2: 0.5, 5: 0.5}, 0.7: {1: 0.5, 2: 0.5, 5: 0.5}}
        assert found.num_objects["all"] == 2
        assert found.proposals_per_image == 1

    def test_only_the_first_so_many_count(self):
        found = result_of(([[50, 50, 60, 60], [0, 0, 10, 10]], [[0, 0, 10, 10]]))
        assert found.average["all"] == {1: 0.0, 2: 1.0, 5: 1.0}

    def test_an_iou_on_the_threshold_is_enough(self):
        # IoU 5/10 exactly, of 0.5 and above only the first threshold.
        found = result_of(([[0, 0, 10, 5]], [[0, 0, 10, 10]]))
        assert found.recall[0.5][1] == 1.0
        assert found.recall[0.7][1] == 0.0
        assert found.average["all"][1] == pytest.approx(0.1)

    def test_two_proposals_of_one_object_find_one(self):
        found = result_of(([[0, 0, 10, 10], [0, 0, 10, 10]], [[0, 0, 10, 10], [0, 0, 10, 9]]))
        # The first takes the first object (IoU 1). The second overlaps the other by 0.9: nine thresholds.
        assert found.average["all"][1] == pytest.approx(0.5)
        assert found.average["all"][2] == pytest.approx((9 * 1.0 + 0.5) / 10)

    def test_a_taken_object_leaves_the_next_best(self):
        # Both proposals overlap the first object most (1 and 0.95); the second then takes the other, at 8 / 9.5.
        found = result_of(([[0, 0, 10, 10], [0, 0, 10, 9.5]], [[0, 0, 10, 10], [0, 0, 10, 8]]))
        assert found.recall[0.7][2] == 1.0  # 0.842
        assert found.average["all"][2] == pytest.approx((7 * 1.0 + 3 * 0.5) / 10)

    def test_difficult_objects_do_not_count(self):
        found = result_of(
            ([[0, 0, 10, 10]], [[0, 0, 10, 10], [0, 0, 10, 10.5], [30, 30, 40, 40]], {"difficult": [1, 0, 0]})
        )
        assert found.num_objects["all"] == 2
        assert found.recall[0.5][1] == 0.5

    def test_areas_have_bounds_of_coco(self):
        boxes = [[0, 0, 31, 31], [0, 0, 32, 32], [0, 0, 96, 96], [0, 0, 97, 97]]
        found = result_of((boxes, boxes))
        # 32 x 32 is small and medium, 96 x 96 medium and large, as in COCO's code.
        assert found.num_objects == {"all": 4, "small": 2, "medium": 2, "large": 2}
        assert found.average["large"] == {1: 0.0, 2: 0.0, 5: 1.0}
        found = result_of((boxes[:1], boxes[:1], {"area": [5000.0]}))
        assert found.num_objects == {"all": 1, "small": 0, "medium": 1, "large": 0}
        assert math.isnan(found.average["small"][5])

    def test_nothing(self):
        found = result_of(([], []), (torch.zeros(0, 4), [[0, 0, 9, 9]]))
        assert found.average["all"] == {1: 0.0, 2: 0.0, 5: 0.0}
        assert math.isnan(result_of(([[0, 0, 9, 9]], [])).recall[0.5][1])
        assert math.isnan(result_of().proposals_per_image)
        assert json.loads(json.dumps(result_of().to_dict()))["recall"] == {
            "0.5": {"1": None, "2": None, "5": None},
            "0.7": {"1": None, "2": None, "5": None},
        }

    def test_the_table_names_every_figure(self):
        found = result_of(([[0, 0, 10, 10]], [[0, 0, 10, 10]]), limits=(1, 10))
        header, row, other = recall_table({"rpn.npz": found, "b": found}).splitlines()
        assert header.split() == [
            "proposals", "AR@1", "AR@10", "small@10", "medium@10", "large@10",
            "R0.5@1", "R0.5@10", "R0.7@1", "R0.7@10", "boxes/image",
        ]  # fmt: skip
        assert row.split() == ["rpn.npz", "1.000", "1.000", "1.000", "-", "-", *["1.000"] * 4, "1"]
        assert len(header) == len(row) == len(other)
        assert found.table().splitlines()[0].split() == header.split()[1:]

    @pytest.mark.parametrize(
        ("proposals", "message"), [([1.0, 2, 3, 4], r"proposals: got shape \[4\]"), ("x", "expected numbers")]
    )
    def test_what_is_no_proposals(self, proposals, message):
        with pytest.raises(ValueError, match=message):
            result_of((proposals, []))
        with pytest.raises(ValueError, match=r"limits: got \[0\]"):
            RecallEvaluator(["a"], limits=[0])


def test_it_is_the_coco_apis() -> None:
    """Random images: with crowds, areas of their own, ties and more proposals than the largest limit."""
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    random = np.random.default_rng(3)
    evaluator, images, objects, results = RecallEvaluator(["a"]), [], [], []
    for image in range(1, 13):
        corners = random.integers(0, 200, (9, 2))
        boxes = np.concatenate([corners, corners + random.integers(8, 150, (9, 2))], 1).astype(float)
        crowd, sizes = random.random(9) < 0.2, random.uniform(100, 20000, 9)
        near = boxes[random.integers(0, 9, 1100)] + random.integers(-9, 9, (1100, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        proposals = near[: random.integers(1, 1101)]
        evaluator.add(proposals, {"boxes": boxes, "labels": [1] * 9, "difficult": crowd, "area": sizes})
        images.append({"id": image})
        for (x1, y1, x2, y2), is_crowd, size in zip(boxes.tolist(), crowd, sizes, strict=True):
            objects.append(
                {
                    "id": len(objects) + 1, "image_id": image, "category_id": 1, "area": size,
                    "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(is_crowd),
                }
            )  # fmt: skip
        for rank, (x1, y1, x2, y2) in enumerate(proposals.tolist()):
            place = [x1, y1, x2 - x1, y2 - y1]
            results.append({"image_id": image, "category_id": 1, "bbox": place, "score": 1 - rank / 2000})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "a"}]}
        truth.createIndex()
        run = cocoeval.COCOeval(truth, truth.loadRes(results), "bbox")
        run.params.useCats, run.params.maxDets = 0, [100, 300, 1000]
        run.evaluate()
        run.accumulate()
    theirs = run.eval["recall"][:, 0]  # IoU x area x limit
    found = evaluator.result()
    for a, area in enumerate(("all", "small", "medium", "large")):
        assert list(found.average[area].values()) == pytest.approx(theirs[:, a].mean(0).tolist(), abs=1e-12), area
    assert list(found.recall[0.5].values()) == pytest.approx(theirs[0, 0].tolist(), abs=1e-12)
    assert list(found.recall[0.7].values()) == pytest.approx(theirs[4, 0].tolist(), abs=1e-12)


class Two:
    """Two images without pixels to look at."""

    class_names = ("thing",)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        target = {"boxes": [[0.0, 0, 10, 10 + index]], "labels": [1], "image_id": "ab"[index]}
        return torch.zeros(3, 20, 20, dtype=torch.uint8), target


def test_of_a_data_set() -> None:
    found = command.recall(ProposalSet({"a": [[0, 0, 10, 10]], "b": []}), Two())
    assert found.recall[0.7] == {100: 0.5, 300: 0.5, 1000: 0.5}
    with pytest.raises(ValueError, match="proposals: got none for image b, expected an entry"):
        command.recall(ProposalSet({"a": []}), Two())


# The objects of VOC 2007's image 000004, pixels counted from 1.
CARS = [
    (13, 311, 84, 362), (362, 330, 500, 389), (235, 328, 334, 375), (175, 327, 252, 364), (139, 320, 189, 359),
    (108, 325, 150, 353), (84, 323, 121, 350),
]  # fmt: skip


def test_the_published_selective_search_finds_every_object() -> None:
    folder = real_data("selective_search") / "data" / "demo"
    found = read_proposals(folder / "000004_boxes.mat")
    evaluator = RecallEvaluator(["car"], limits=[3000])
    evaluator.add(found["000004"], {"boxes": [[a - 1, b - 1, c, d] for a, b, c, d in CARS], "labels": [1] * len(CARS)})
    assert evaluator.result().recall[0.5] == {3000: 1.0}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = real_data("selective_search") / "data" / "demo"
    root = tmp_path / "voc"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / name).mkdir(parents=True)
    text = "".join(
        f"<object><name>car</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
        "</bndbox></object>"
        for a, b, c, d in CARS
    )
    size = "<size><width>500</width><height>406</height><depth>3</depth></size>"
    (root / "Annotations/000004.xml").write_text(f"<annotation>{size}{text}</annotation>")
    (root / "JPEGImages/000004.jpg").write_bytes((folder / "000004.jpg").read_bytes())
    (root / "ImageSets/Main/test.txt").write_text("000004\n")
    out = tmp_path / "recall.json"
    savemat(tmp_path / "000004.mat", {"boxes": np.array([[0, 0, 499, 405]], np.uint16)})
    sources = [str(folder / "000004_boxes.mat"), str(tmp_path / "000004.mat")]
    assert command.main([*sources, "--data-root", str(root), "-o", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written[sources[1]]["recall"]["0.5"]["1000"] == 0
    assert written[sources[1]]["proposals_per_image"] == 1
    assert written[sources[0]]["proposals_per_image"] == 2888
    assert written[sources[0]]["objects"]["all"] == 7
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["proposals", *sources]
    with pytest.raises(SystemExit):
        command.main([*sources, "--data-root", str(root), "-o", str(out)])
    assert "recall.json is there already" in capsys.readouterr().err
