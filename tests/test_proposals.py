"""Given proposals: their files, on the way into a batch, in the detector, and the command that writes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from frcnn_fast import cli, evaluate, ops
from frcnn_fast.data import (
    Collate,
    DetectionView,
    DigitsDetection,
    ProposalSet,
    read_proposals,
    selective_search,
    write_proposals,
)
from frcnn_fast.model import build_detector, preset, save_detector
from frcnn_fast.model.losses import ROI_LOSSES, RPN_LOSSES
from frcnn_fast.propose import propose, search
from tests.real_data import real_data

A, B = [[0.0, 0, 10, 20], [5.5, 5, 9, 9.25]], [[1.0, 2, 3, 4]]


def tiny(**changes: Any) -> Any:
    torch.manual_seed(0)
    detector = build_detector([str(digit) for digit in range(10)], preset("small", head_channels=16, **changes))
    detector.seed(0)
    return detector


def batch_of(dataset: Any, config: Any, proposals: Any = None, *, flips: bool = False) -> Any:
    view = DetectionView(dataset, config.shorter, config.longer, flips=flips, proposals=proposals)
    return Collate(config.preprocess)([view[index] for index in range(len(view))])


def rpn_of(detector: Any, batch: Any) -> Any:
    return detector.rpn(detector.features(batch.images), tuple(batch.images.shape[2:]))


def arguments(batch: Any) -> tuple[Any, ...]:
    truth = batch.gt_boxes, batch.gt_labels, batch.gt_counts, batch.crowd
    return batch.images, batch.image_sizes, *truth, batch.image_scales


class TestFiles:
    @pytest.mark.parametrize("suffix", [".npz", ".json"])
    @pytest.mark.parametrize("scored", [True, False])
    def test_what_is_written_is_read(self, suffix, scored, tmp_path):
        rows: Any = {"a/1": [[*row, 0.75] for row in A] if scored else A, "leer": [], "0007": B}
        if scored:
            rows = {**rows, "leer": np.zeros((0, 5)), "0007": [[*B[0], 0.5]]}
        write_proposals(tmp_path / f"p{suffix}", ProposalSet(rows))
        found = read_proposals(tmp_path / f"p{suffix}")
        assert list(found) == ["a/1", "leer", "0007"]
        assert found["a/1"].tolist() == A
        assert found["leer"].shape == (0, 4)
        scores = found.scores("a/1")
        assert (scores.tolist() if scores is not None else None) == ([0.75, 0.75] if scored else None)
        assert found["a/1"].dtype == torch.float32

    def test_one_images_selective_search(self, tmp_path):
        # From 0, the last pixel included: the one pixel at the corner is 0, 0, 0, 0.
        boxes = np.array([[0, 0, 0, 0], [2, 3, 4, 9]], np.uint16)
        savemat(tmp_path / "000017_boxes.mat", {"boxes": boxes})
        found = read_proposals(tmp_path / "000017_boxes.mat")
        assert {name: rows.tolist() for name, rows in found.items()} == {"000017": [[0, 0, 1, 1], [2, 3, 5, 10]]}

    def test_a_whole_data_sets_selective_search(self, tmp_path):
        # From 1, y before x, the last pixel included.
        cells = np.empty((1, 2), object)
        cells[0, 0], cells[0, 1] = np.array([[1.0, 2, 3, 4]]), np.zeros((0, 4))
        names = np.empty((2, 1), object)
        names[:, 0] = ["000001", "000002"]
        savemat(tmp_path / "voc.mat", {"boxes": cells, "images": names})
        found = read_proposals(tmp_path / "voc.mat")
        assert {name: rows.tolist() for name, rows in found.items()} == {"000001": [[1, 0, 4, 3]], "000002": []}

    def test_the_published_file(self):
        found = read_proposals(real_data("selective_search") / "data" / "demo")
        assert {name: len(boxes) for name, boxes in found.items()} == {"000004": 2888, "001551": 2057}
        # The photographs have 500 x 406 and 500 x 375 pixels: half-open boxes reach their edges.
        assert found["000004"].amax(0).tolist()[2:] == [500, 406]
        assert found["000004"][0].tolist() == [0, 0, 24, 16]

    def test_an_array_for_each_image(self, tmp_path):
        arrays: Any = {"a": np.array(A), "b": np.array([[*B[0], 0.5]], np.float16)}
        np.savez(tmp_path / "p.npz", **arrays)
        found = read_proposals(tmp_path / "p.npz")
        assert found["a"].tolist() == A
        scores = found.scores("b")
        assert scores is not None
        assert scores.tolist() == [0.5]

    def test_results_of_coco(self, tmp_path):
        records = [
            {"image_id": 42, "bbox": [1, 2, 3, 4], "score": 0.5, "category_id": 1},
            {"image_id": 7, "bbox": [0, 0, 1, 1], "score": 0.25, "category_id": 1},
            {"image_id": 42, "bbox": [5, 5, 5, 5], "score": 0.125, "category_id": 1},
        ]
        (tmp_path / "p.json").write_text(json.dumps(records))
        found = read_proposals(tmp_path / "p.json")
        assert found["42"].tolist() == [[1, 2, 4, 6], [5, 5, 10, 10]]
        assert found["7"].tolist() == [[0, 0, 1, 1]]

    def test_several_files_and_folders(self, tmp_path):
        write_proposals(tmp_path / "x" / "a.json", ProposalSet({"a": A}))
        write_proposals(tmp_path / "x" / "b.npz", ProposalSet({"b": B}))
        write_proposals(tmp_path / "c.json", ProposalSet({"c": B}))
        assert set(read_proposals(tmp_path / "x", tmp_path / "c.json")) == {"a", "b", "c"}
        with pytest.raises(ValueError, match=r"c\.json: has proposals of image c, but so has an earlier file"):
            read_proposals(tmp_path / "c.json", tmp_path / "c.json")
        write_proposals(tmp_path / "x" / "proposals.npz", ProposalSet({"d": B}))
        assert set(read_proposals(tmp_path / "x")) == {"d"}  # a run's folder has other files, too

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("p.npz", b"PK", "p.npz: not a readable .npz file"),
            ("p.json", b"{", "p.json: not readable as JSON"),
            ("p.json", b"3", "p.json: is a JSON int, expected an object of boxes by image id, or a list"),
            ("p.json", b'[{"image_id": 1}]', "p.json: entry 0: KeyError.'bbox'., expected image_id, bbox"),
            ("p.json", b'{"a": [[0, 0, 1]]}', r"p.json: proposals of image a: shape \[1, 3\], expected \[N, 4\]"),
            ("p.json", b'{"a": [[0, 0, 1, 1], [3, 0, 2, 1]]}', "p.json: proposals of image a: row 1 is .*, expected"),
            ("p.json", b'{"a": [[0, 0, NaN, 1]]}', "p.json: proposals of image a: row 0 is .*nan"),
            ("p.json", b'{"a": "b"}', r"p.json: proposals of image a: is text, expected numbers"),
            ("p.mat", b"MATLAB", "p.mat: not a readable MATLAB file"),
            ("p.txt", b"", "p.txt: proposals are read from .npz, .json, .mat or a folder"),
        ],
    )
    def test_a_broken_file_is_named(self, name, content, message, tmp_path):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_proposals(tmp_path / name)

    def test_what_is_missing_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"gone\.npz: no such file"):
            read_proposals(tmp_path / "gone.npz")
        with pytest.raises(ValueError, match="no files of proposals in it"):
            read_proposals(tmp_path)
        savemat(tmp_path / "p.mat", {"rois": [1]})
        with pytest.raises(ValueError, match=r"p\.mat: has no `boxes`"):
            read_proposals(tmp_path / "p.mat")
        with pytest.raises(ValueError, match=r"written as \.npz or \.json"):
            write_proposals(tmp_path / "p.mat", ProposalSet({}))
        wrong: Any = {"image_ids": np.array(["a"]), "counts": np.array([2]), "boxes": np.zeros((1, 4))}
        np.savez(tmp_path / "q.npz", **wrong)
        with pytest.raises(ValueError, match=r"q\.npz: its image_ids, counts and boxes do not fit"):
            read_proposals(tmp_path / "q.npz")
        with pytest.raises(ValueError, match="got none for 2 images of the test set, the first digits-test-0-1"):
            ProposalSet({"digits-test-0-0": A}).require(DigitsDetection("test", length=3), "test set")


class TestBatches:
    def test_they_are_resized_and_mirrored_with_their_image(self):
        class Wide:
            class_names = ("thing",)

            def __len__(self):
                return 2

            def __getitem__(self, index):
                boxes = torch.tensor([[10.0, 20, 30, 60]])
                target = {"boxes": boxes, "labels": torch.ones(1, dtype=torch.int64), "image_id": "ab"[index]}
                return torch.zeros(3, 100, 200, dtype=torch.uint8), target

        proposals = ProposalSet({"a": [[10, 20, 30, 60], [0, 0, 200, 100]], "b": [[10, 20, 30, 60]]})
        view = DetectionView(Wide(), 50, 1000, flips=True, proposals=proposals)
        batch = Collate()([view[index] for index in range(4)])
        assert batch.proposals is not None
        assert batch.proposal_counts is not None
        assert batch.proposal_counts.tolist() == [2, 1, 2, 1]
        assert torch.equal(batch.proposals[:, :1], batch.gt_boxes)  # the same box has gone the same way
        assert batch.proposals[0].tolist() == [[5, 10, 15, 30], [0, 0, 100, 50]]
        assert batch.proposals[2].tolist() == [[85, 10, 95, 30], [0, 0, 100, 50]]
        assert batch.proposals[1, 1].tolist() == [0, 0, 0, 0]
        moved = batch.to("cpu")
        assert moved.proposals is not None

        with pytest.raises(ValueError, match="image b: has no proposals among those given"):
            DetectionView(Wide(), proposals=ProposalSet({"a": A}))[1]
        plain = DetectionView(Wide(), 50, 1000)
        assert Collate()([plain[0]]).proposals is None
        with pytest.raises(ValueError, match="samples: some have proposals and some have none"):
            Collate()([plain[0], view[0]])


class TestDetector:
    def test_its_own_proposals_given_back_change_nothing(self):
        detector, data = tiny(), DigitsDetection("train", length=3)
        batch = batch_of(data, detector.config)
        losses = detector(*arguments(batch))
        detector.seed(0)
        with torch.no_grad():
            own = detector.propose(rpn_of(detector, batch), batch.image_sizes, batch.image_scales)
        given = detector(*arguments(batch), proposals=own.boxes, proposal_counts=own.counts)
        assert list(losses) == list(given)
        assert all(torch.equal(losses[name], given[name]) for name in losses)

        detector.eval()
        with torch.no_grad():
            own = detector.propose(rpn_of(detector, batch), batch.image_sizes, batch.image_scales)
            found = detector(batch.images, batch.image_sizes, image_scales=batch.image_scales)
            again = detector(batch.images, batch.image_sizes, proposals=own.boxes, proposal_counts=own.counts)
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))

    def test_only_what_is_asked_for_runs(self):
        detector, data = tiny(), DigitsDetection("train", length=2)
        batch = batch_of(data, detector.config)
        whole = detector(*arguments(batch))
        ran: list[str] = []
        detector.rpn.register_forward_hook(lambda *_: ran.append("rpn"))
        detector.roi_head.register_forward_hook(lambda *_: ran.append("roi_head"))

        def losses(names, **given):
            ran.clear()
            detector.seed(0)
            return detector(*arguments(batch), losses=names, **given), list(ran)

        found, parts = losses(RPN_LOSSES)
        assert parts == ["rpn"]
        assert list(found) == list(RPN_LOSSES)
        assert all(torch.equal(loss, whole[name]) for name, loss in found.items())
        found, parts = losses(ROI_LOSSES)
        assert parts == ["rpn", "roi_head"]
        assert list(found) == list(ROI_LOSSES)
        assert all(torch.equal(loss, whole[name]) for name, loss in found.items())
        given = {"proposals": batch.gt_boxes + 1, "proposal_counts": batch.gt_counts}
        found, parts = losses(ROI_LOSSES, **given)
        assert parts == ["roi_head"]
        found, parts = losses(RPN_LOSSES + ROI_LOSSES, **given)
        assert parts == ["rpn", "roi_head"]
        assert list(found) == [*RPN_LOSSES, *ROI_LOSSES]

    def test_half_a_detector_says_so(self):
        data = DigitsDetection("test", length=1)
        for parts, message in (("rpn", "no trained head .*proposes, but does not detect"), ("roi_head", "pass them")):
            detector = tiny(parts=parts).eval()
            batch = batch_of(data, detector.config)
            with pytest.raises(ValueError, match=message):
                detector(batch.images, batch.image_sizes)
        with pytest.raises(ValueError, match="its RPN is not trained"):
            propose(detector, data, progress=False)
        with pytest.raises(ValueError, match="got one without the other"):
            detector(batch.images, batch.image_sizes, proposals=batch.gt_boxes)
        found = detector(batch.images, batch.image_sizes, proposals=batch.gt_boxes, proposal_counts=batch.gt_counts)
        assert found.boxes.shape[2] == 4

    def test_evaluation_on_given_proposals(self):
        """On its own proposals, written at the detector's test limits, a detector is as good as by itself."""
        detector, data = tiny(score_threshold=0.0, proposals_train=(300, 64)), DigitsDetection("test", length=6)
        assert detector.config.proposals_train == detector.config.proposals_test
        own = propose(detector, data, progress=False)
        alone = evaluate.evaluate(detector, data, progress=False)
        given = evaluate.evaluate(detector, data, progress=False, proposals=own)
        assert given.ap_area == pytest.approx(alone.ap_area, nan_ok=True)
        assert given.num_detections == alone.num_detections


class TestPropose:
    def test_boxes_are_those_of_the_op_in_the_images_pixels(self):
        detector, data = tiny(shorter=96, longer=200), DigitsDetection("train", length=3)
        found = propose(detector, data, count=20, batch_size=2, progress=False)
        assert list(found) == [data[index][1]["image_id"] for index in range(3)]
        batch = batch_of(DigitsDetection("train", length=1), detector.config)
        rpn = rpn_of(detector, batch)
        own = ops.rpn_proposals(
            rpn.logits, rpn.deltas, rpn.anchors, batch.image_sizes,
            pre_nms_top_n=detector.config.proposals_train[0], post_nms_top_n=20,
        )  # fmt: skip
        first = next(iter(found))
        assert int(own.counts[0]) == len(found[first]) == 20
        assert torch.allclose(found[first], own.boxes[0] * 2, atol=1e-4)  # 192 pixels high, seen at 96
        scores = found.scores(first)
        assert scores is not None
        assert torch.allclose(scores, own.scores[0].sigmoid())

    def test_an_unreadable_image_is_left_out_with_a_warning(self):
        class Torn:
            class_names = DigitsDetection("train", length=1).class_names

            def __len__(self):
                return 3

            def __getitem__(self, index):
                if index == 1:
                    raise ValueError("b.jpg: not a readable image")
                image, target = DigitsDetection("train", length=3)[index]
                return image, {**target, "image_id": "abc"[index]}

        with pytest.warns(UserWarning, match=r"no proposals for 1 unreadable images, the first: b\.jpg"):
            found = propose(tiny(), Torn(), batch_size=1, progress=False)
        assert list(found) == ["a", "c"]

    def test_the_command(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        save_detector("run/model.safetensors", tiny())
        short = {"train": DigitsDetection("train", length=3), "test": DigitsDetection("test", length=2)}
        monkeypatch.setattr("frcnn_fast.data.config.DigitsDetection", short.get)
        assert cli.main(["propose", "run", "-o", "p.npz", "--count", "7"]) == 0
        assert capsys.readouterr().out == "p.npz: 5 images, 7 proposals each on average\n"
        found = read_proposals("p.npz")
        assert {len(boxes) for boxes in found.values()} == {7}
        assert cli.main(["propose", "run", "-o", "p.json", "--on", "test"]) == 0
        assert len(read_proposals("p.json")) == 2
        assert cli.main(["evaluate", "--checkpoint", "run", "--proposals", "p.json"]) == 0
        capsys.readouterr()
        assert cli.main(["recall", "run", "p.json", "--count", "9"]) == 0
        assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["boxes/image", "9", "64"]
        for more, message in (
            (["-o", "p.json"], "p.json is there already"),
            (["-o", "p.txt"], "expected a name that ends in .npz or .json"),
            (["-o", "q.npz", "--count", "0"], "--count: got 0"),
        ):
            with pytest.raises(SystemExit):
                cli.main(["propose", "run", *more])
            assert message in capsys.readouterr().err


class TestSelectiveSearch:
    def test_it_finds_what_stands_out(self):
        pytest.importorskip("cv2.ximgproc", reason="needs the extra selective-search")
        image = torch.full((3, 120, 160), 40, dtype=torch.uint8)
        image[:, 30:90, 40:100] = 220
        image[0, 60:110, 110:150] = 200
        boxes = selective_search(image)
        assert boxes.dtype == torch.float32
        assert len(boxes.unique(dim=0)) == len(boxes)
        truth = torch.tensor([[40.0, 30, 100, 90], [110, 60, 150, 110]])
        assert (ops.box_iou(truth, boxes).amax(1) > 0.9).all()
        assert torch.equal(selective_search(image), boxes)
        wide = torch.nn.functional.interpolate(image[None].float(), scale_factor=5.0)[0].to(torch.uint8)
        assert (ops.box_iou(truth * 5, selective_search(wide)).amax(1) > 0.85).all()
        with pytest.raises(ValueError, match="mode: got 'best', expected 'fast' or 'quality'"):
            selective_search(image, "best")
        found = search(DigitsDetection("test", length=1), count=50, progress=False)
        assert [len(boxes) for boxes in found.values()] == [50]

    def test_without_opencv_the_extra_is_named(self):
        code = (
            "import sys; sys.modules['cv2'] = None\n"
            "import torch; from frcnn_fast.data import selective_search\n"
            "selective_search(torch.zeros(3, 9, 9, dtype=torch.uint8))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], text=True, capture_output=True, cwd=Path(__file__).parents[1]
        )
        assert "pip install 'frcnn_fast[selective-search]'" in done.stderr.splitlines()[-1]
