"""Checkpoints of other libraries, by recorded lists of their names and shapes; and our own as a start.

`tests/compat` compares detections with the libraries themselves; `tests/compat/record_names.py` made the lists.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch

from frcnn_fast import convert
from frcnn_fast.data import DigitsDetection
from frcnn_fast.model import (
    FasterRCNN,
    build_detector,
    config_of,
    from_checkpoint,
    load_detector,
    preset,
    save_detector,
    start_from,
)
from frcnn_fast.model.checkpoints.coco import COCO_80, COCO_91
from frcnn_fast.model.layers import scale_and_shift
from frcnn_fast.train import train
from frcnn_fast.training import recipe
from frcnn_fast.training.tree import build

RECORDED = Path(__file__).parent / "checkpoints"
FPN = "torchvision-fasterrcnn_resnet50_fpn"
NAMES = sorted(path.stem for path in RECORDED.glob("*.json"))


def shapes(name: str) -> dict[str, list[int]]:
    return json.loads((RECORDED / f"{name}.json").read_text())


def state(name: str) -> dict[str, torch.Tensor]:
    """Tensors that can be told from each other: each is filled with its place in the list."""
    return {key: torch.full(shape, float(i)) for i, (key, shape) in enumerate(shapes(name).items())}


@functools.lru_cache(maxsize=1)
def converted(name: str) -> FasterRCNN:
    """The detector of `state`; nobody changes it."""
    return from_checkpoint(state(name))


def place(name: str, key: str) -> float:
    return float(list(shapes(name)).index(key))


class TestRecorded:
    def test_there_is_a_list_of_every_model(self):
        assert len(NAMES) == 7

    @pytest.mark.parametrize("name", NAMES)
    def test_every_tensor_has_a_place(self, name, recwarn):
        """All of ours are filled, each from another one of theirs, and none of theirs is left (nor warned of)."""
        detector = from_checkpoint(state(name))
        assert not [warning for warning in recwarn if "left out" in str(warning.message)]
        values = [tensor.flatten()[-1].item() for tensor in detector.state_dict().values()]
        assert len(set(values)) == len(values)
        theirs = [key for key in shapes(name) if "anchor_generator" not in key and "pixel_" not in key]
        if name.startswith("mmdetection"):
            theirs = [key for key in theirs if not key.endswith("num_batches_tracked")]
        assert len(values) == len(theirs)

    @pytest.mark.parametrize(
        ("name", "backbone", "classes"),
        [
            (FPN, "resnet50_fpn", COCO_91),
            (f"{FPN}_v2", "resnet50_fpn", COCO_91),
            ("torchvision-fasterrcnn_mobilenet_v3_large_fpn", "mobilenet_v3_large_fpn", COCO_91),
            ("detectron2-faster_rcnn_R_50_FPN", "resnet50_fpn", COCO_80),
            ("detectron2-faster_rcnn_R_50_C4", "resnet50_c4", COCO_80),
            ("mmdetection-faster-rcnn_r50_fpn", "resnet50_fpn", COCO_80),
            ("mmdetection-faster-rcnn_r50-caffe-c4", "resnet50_c4", COCO_80),
        ],
    )
    def test_what_it_becomes(self, name, backbone, classes):
        detector = converted(name)
        assert not detector.training
        assert detector.config.backbone == backbone
        assert detector.class_names == list(classes)
        kind = ("batch", "conv") if name.endswith("_v2") else ("frozen", "own" if backbone.endswith("c4") else "fc")
        assert (detector.config.norm, detector.config.head) == kind

    @pytest.mark.parametrize(
        ("name", "pairs"),
        [
            (
                FPN,
                {
                    "backbone.body.layer4.2.conv3.weight": "backbone.body.layer4.2.conv3.weight",
                    "backbone.fpn.layer_blocks.3.0.bias": "backbone.fpn.layer_blocks.3.0.bias",
                    "rpn.convs.0.weight": "rpn.head.conv.0.0.weight",
                    "roi_head.body.fc7.bias": "roi_heads.box_head.fc7.bias",
                    "roi_head.bbox_pred.weight": "roi_heads.box_predictor.bbox_pred.weight",
                },
            ),
            (
                f"{FPN}_v2",
                {
                    "rpn.convs.1.bias": "rpn.head.conv.1.0.bias",
                    "roi_head.body.convs.3.1.running_var": "roi_heads.box_head.3.1.running_var",
                    "roi_head.body.fc6.weight": "roi_heads.box_head.5.weight",
                    "backbone.fpn.inner_blocks.2.1.bias": "backbone.fpn.inner_blocks.2.1.bias",
                },
            ),
            (
                "detectron2-faster_rcnn_R_50_FPN",
                {
                    "backbone.body.conv1.weight": "backbone.bottom_up.stem.conv1.weight",
                    "backbone.body.layer1.0.downsample.1.running_mean": (
                        "backbone.bottom_up.res2.0.shortcut.norm.running_mean"
                    ),
                    "backbone.body.layer4.2.bn3.bias": "backbone.bottom_up.res5.2.conv3.norm.bias",
                    "backbone.fpn.inner_blocks.0.0.weight": "backbone.fpn_lateral2.weight",
                    "backbone.fpn.layer_blocks.3.0.bias": "backbone.fpn_output5.bias",
                    "rpn.bbox_pred.weight": "proposal_generator.rpn_head.anchor_deltas.weight",
                    "roi_head.body.fc7.weight": "roi_heads.box_head.fc2.weight",
                },
            ),
            (
                "detectron2-faster_rcnn_R_50_C4",
                {
                    "backbone.layer3.5.conv2.weight": "backbone.res4.5.conv2.weight",
                    "roi_head.body.layer4.0.downsample.0.weight": "roi_heads.res5.0.shortcut.weight",
                },
            ),
            (
                "mmdetection-faster-rcnn_r50_fpn",
                {
                    "backbone.body.layer2.0.bn2.weight": "backbone.layer2.0.bn2.weight",
                    "backbone.fpn.layer_blocks.1.0.weight": "neck.fpn_convs.1.conv.weight",
                    "rpn.convs.0.bias": "rpn_head.rpn_conv.bias",
                    "roi_head.body.fc6.weight": "roi_head.bbox_head.shared_fcs.0.weight",
                },
            ),
            (
                "mmdetection-faster-rcnn_r50-caffe-c4",
                {
                    "backbone.layer3.0.conv1.weight": "backbone.layer3.0.conv1.weight",
                    "roi_head.body.layer4.2.bn3.running_var": "roi_head.shared_head.layer4.2.bn3.running_var",
                },
            ),
        ],
    )
    def test_where_tensors_come_from(self, name, pairs):
        ours = converted(name).state_dict()
        for to, source in pairs.items():
            assert ours[to].unique().tolist() == [place(name, source)], to

    @pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("torchvision")])
    def test_the_background_comes_first(self, name):
        tensors = state(name)
        (scores,) = (key for key in tensors if key.endswith(("cls_score.bias", "fc_cls.bias")))
        (boxes,) = (key for key in tensors if key.endswith(("box_predictor.bbox_pred.bias", "fc_reg.bias")))
        tensors[scores] = torch.arange(81.0)
        tensors[boxes] = torch.arange(320.0)
        ours = from_checkpoint(tensors).state_dict()
        assert ours["roi_head.cls_score.bias"].tolist() == [80.0, *range(80)]
        assert ours["roi_head.bbox_pred.bias"].tolist() == [0.0] * 4 + list(range(320))

    def test_the_order_of_anchors_in_mmdetections_c4(self):
        """Theirs: five sizes of the first ratio, then of the next. Ours: three ratios of the first size."""
        name = "mmdetection-faster-rcnn_r50-caffe-c4"
        tensors = state(name)
        tensors["rpn_head.rpn_cls.bias"] = torch.arange(15.0)
        tensors["rpn_head.rpn_reg.bias"] = torch.arange(60.0)
        ours = from_checkpoint(tensors).state_dict()
        order = [5 * ratio + size for size in range(5) for ratio in range(3)]
        assert ours["rpn.cls_logits.bias"].tolist() == order
        assert ours["rpn.bbox_pred.bias"].tolist() == [4 * anchor + side for anchor in order for side in range(4)]

    def test_names_before_torchvision_0_13(self):
        """As published, fasterrcnn_resnet50_fpn has these, and normalisations that add nothing to the variance."""
        older = {
            key.replace("rpn.head.conv.0.0.", "rpn.head.conv.").replace("_blocks.", "_blocks.", 1): tensor
            for key, tensor in state(FPN).items()
        }
        for key in [key for key in older if "fpn." in key]:
            older[key.replace(".0.weight", ".weight").replace(".0.bias", ".bias")] = older.pop(key)
        assert "backbone.fpn.inner_blocks.0.weight" in older
        variance = "backbone.body.layer1.0.bn1.running_var"
        older[variance] = torch.linspace(1e-6, 1e-3, 64)
        weight = older[variance.replace("running_var", "weight")]
        now = from_checkpoint(older)
        scale, _ = scale_and_shift(now.backbone.get_submodule("body.layer1.0.bn1"))
        torch.testing.assert_close(scale, weight / older[variance].sqrt())
        newer = from_checkpoint(older, norm_eps=1e-5)
        scale, _ = scale_and_shift(newer.backbone.get_submodule("body.layer1.0.bn1"))
        torch.testing.assert_close(scale, weight / (older[variance] + 1e-5).sqrt())
        assert now.rpn.convs[0].weight.unique().tolist() == [place(FPN, "rpn.head.conv.0.0.weight")]

    def test_detectron2_without_statistics(self):
        name = "detectron2-faster_rcnn_R_50_FPN"
        tensors = {key: tensor for key, tensor in state(name).items() if "running" not in key}
        norm = from_checkpoint(tensors).backbone.get_submodule("body.bn1")
        assert (norm.running_mean == 0).all()
        assert (norm.running_var == 1).all()


class TestSettings:
    def test_what_the_caller_knows_better(self):
        name = "detectron2-faster_rcnn_R_50_FPN"
        names = [f"class {i}" for i in range(80)]
        detector = from_checkpoint(state(name), class_names=names, stride_in_1x1=False, preprocess="torch", shorter=640)
        assert detector.class_names == names
        config = detector.config
        assert (config.stride_in_1x1, config.preprocess, config.shorter) == (False, "torch", 640)
        block = detector.backbone.get_submodule("body.layer2.0")
        assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))
        assert from_checkpoint(state(name)).backbone.get_submodule("body.layer2.0").conv1.stride == (2, 2)

    def test_other_numbers_of_classes_have_numbers(self):
        tensors = state(FPN)
        tensors["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(4, 1024)
        tensors["roi_heads.box_predictor.cls_score.bias"] = torch.zeros(4)
        tensors["roi_heads.box_predictor.bbox_pred.weight"] = torch.zeros(16, 1024)
        tensors["roi_heads.box_predictor.bbox_pred.bias"] = torch.zeros(16)
        assert from_checkpoint(tensors).class_names == ["1", "2", "3"]
        with pytest.raises(ValueError, match="class_names: got 2, but state_dict has 3 classes"):
            from_checkpoint(tensors, class_names=["a", "b"])

    def test_one_box_for_all_classes(self):
        name = "mmdetection-faster-rcnn_r50_fpn"
        tensors = state(name)
        tensors["roi_head.bbox_head.fc_reg.weight"] = torch.zeros(4, 1024)
        tensors["roi_head.bbox_head.fc_reg.bias"] = torch.zeros(4)
        detector = from_checkpoint(tensors)
        assert detector.config.class_agnostic
        assert detector.roi_head.bbox_pred.bias.shape == (4,)

    def test_coco_names(self):
        assert len(COCO_80) == len(set(COCO_80)) == 80
        assert len(COCO_91) == len(set(COCO_91)) == 90
        assert (COCO_91[0], COCO_91[17], COCO_91[89]) == ("person", "dog", "toothbrush")
        assert sum(name.startswith("unused") for name in COCO_91) == 10

    def test_anchors_that_do_not_fit_are_named(self):
        with pytest.raises(ValueError, match=r"rpn\.cls_logits\.weight is \[3, 256, 1, 1\], expected \[2, 256, 1, 1\]"):
            from_checkpoint(state(FPN), anchor_ratios=(0.5, 2.0))


class TestRefusals:
    def test_other_files(self):
        with pytest.raises(ValueError, match=r"no detector that is known here: expected rpn\.head\.cls_logits\.weight"):
            from_checkpoint({"features.0.weight": torch.zeros(1)})

    def test_missing_tensors_are_named(self):
        tensors = state(FPN)
        del tensors["backbone.body.layer2.1.bn1.bias"]
        with pytest.raises(ValueError, match=r"backbone\.body\.layer2\.1\.bn1\.bias is missing"):
            from_checkpoint(tensors)
        del tensors["roi_heads.box_predictor.cls_score.bias"]
        with pytest.raises(ValueError, match=r"state_dict: lacks what becomes roi_head\.cls_score\.bias"):
            from_checkpoint(tensors)

    def test_other_resnets_are_named(self):
        tensors = {key: tensor for key, tensor in state(FPN).items() if ".layer3.5." not in key}
        with pytest.raises(ValueError, match=r"its ResNet has \(3, 4, 5\) blocks of 3 convolutions"):
            from_checkpoint(tensors)

    def test_a_mask_head_is_left_out_with_a_warning(self):
        tensors = {**state(FPN), "roi_heads.mask_head.0.0.weight": torch.zeros(1)}
        with pytest.warns(UserWarning, match=r"left out roi_heads\.mask_head\.0\.0\.weight, which have no place here"):
            from_checkpoint(tensors)

    def test_a_file_is_named(self, tmp_path):
        torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "a.pth")
        with pytest.raises(ValueError, match=r"a\.pth: no detector that is known here"):
            from_checkpoint(tmp_path / "a.pth")


def small(class_names, seed=0, **changes) -> FasterRCNN:
    torch.manual_seed(seed)
    return build_detector(class_names, preset("small", **changes))


class TestStart:
    """A run as the start of another one."""

    def begin(self, tmp_path, class_names, old=("cat", "dog"), **changes):
        source = small(old, seed=1)
        torch.nn.init.normal_(source.roi_head.bbox_pred.weight)
        save_detector(tmp_path / "model.safetensors", source)
        detector = small(class_names, seed=2, **changes)
        return source.state_dict(), detector, start_from(detector, tmp_path)

    def test_the_same_classes_take_everything(self, tmp_path):
        before, detector, started = self.begin(tmp_path, ["cat", "dog"])
        after = detector.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert (started.left_out, started.new, started.new_classes) == ([], [], [])
        assert started.lines() == [f"weights: {len(before)} tensors taken over"]

    def test_classes_are_known_by_their_names(self, tmp_path):
        torch.manual_seed(2)
        fresh = small(["dog", "cow", "cat"], seed=2).state_dict()
        before, detector, started = self.begin(tmp_path, ["dog", "cow", "cat"])
        after = detector.state_dict()
        assert started.new_classes == ["cow"]
        assert "new classes: cow" in started.lines()
        assert not started.left_out
        for layer, each in (("cls_score", 1), ("bbox_pred", 4)):
            for part in ("weight", "bias"):
                name = f"roi_head.{layer}.{part}"
                old, new, untouched = (t[name].unflatten(0, (-1, each)) for t in (before, after, fresh))
                assert torch.equal(new[[0, 1, 3]], old[[0, 2, 1]])  # background, dog, cat
                assert torch.equal(new[2], untouched[2])
        rest = [name for name in before if not name.startswith(("roi_head.cls_score", "roi_head.bbox_pred"))]
        assert all(torch.equal(after[name], before[name]) for name in rest)

    def test_what_does_not_fit_is_listed(self, tmp_path):
        changes = {"anchor_ratios": (1.0,), "head_channels": 128}
        before, detector, started = self.begin(tmp_path, ["cat"], **changes)
        listed = [line.split(" [")[0] for line in started.left_out]
        assert "rpn.cls_logits.weight" in listed
        assert "rpn.cls_logits.weight [4, 64, 1, 1] (here [2, 64, 1, 1])" in started.left_out
        assert "roi_head.cls_score.weight" in listed
        assert set(started.taken) == {
            name for name in before if name.startswith(("backbone.", "rpn.convs.")) or name == "roi_head.cls_score.bias"
        } | {"roi_head.bbox_pred.bias"}
        assert set(started.new) == set(detector.state_dict()) - set(started.taken)
        assert any(line.startswith("left out, since it does not fit: ") for line in started.lines())

    @pytest.mark.parametrize("agnostic", [(True, True), (True, False), (False, True)])
    def test_one_box_for_all_classes(self, tmp_path, agnostic):
        source = small(["cat", "dog"], class_agnostic=agnostic[0])
        torch.nn.init.ones_(source.roi_head.bbox_pred.bias)
        save_detector(tmp_path / "model.safetensors", source)
        detector = small(["cat"], class_agnostic=agnostic[1])
        started = start_from(detector, tmp_path)
        taken = agnostic == (True, True)
        assert ("roi_head.bbox_pred.bias" in started.taken) == taken
        assert bool((detector.roi_head.bbox_pred.bias == 1).all()) == taken

    def test_another_backbone_is_refused(self, tmp_path):
        save_detector(tmp_path / "model.safetensors", small(["cat"]))
        other = build_detector(["cat"], preset("squeezenet1_0", head_channels=8))
        with pytest.raises(ValueError, match=r"its detector is on small, of which nothing fits squeezenet1_0; choose"):
            start_from(other, tmp_path)

    def test_another_librarys_detector(self, tmp_path):
        torch.save(state(FPN), tmp_path / "theirs.pth")
        config = config_of(tmp_path / "theirs.pth")
        assert config is not None
        assert config.backbone == "resnet50_fpn"
        detector = build_detector(["dog", "unicorn"], config)
        started = start_from(detector, tmp_path / "theirs.pth")
        assert (started.left_out, started.new_classes) == ([], ["unicorn"])
        boxes = detector.roi_head.bbox_pred.bias
        place_of_boxes = place(FPN, "roi_heads.box_predictor.bbox_pred.bias")
        assert boxes.tolist() == [place_of_boxes] * 8 + [0.0] * 4

    def test_a_classifier(self, tmp_path):
        detector = build_detector(["cat"], preset("squeezenet1_0", head_channels=8))
        weights = {name: torch.full_like(t, 0.5) for name, t in detector.backbone.state_dict().items()}
        torch.save({**weights, "classifier.1.bias": torch.zeros(9)}, tmp_path / "w.pth")
        assert config_of(tmp_path / "w.pth") is None
        started = start_from(detector, tmp_path / "w.pth")
        assert started.left_out == ["classifier.1.bias"]
        assert set(started.taken) == set(weights)
        assert all((p == 0.5).all() for p in detector.backbone.parameters())


class TestTraining:
    def test_a_training_that_starts_from_a_run(self, tmp_path):
        """It brings its settings, and the log says what was taken and what was not."""
        before = small(["0", "1", "no digit"], rpn_lambda=3.0)
        save_detector(tmp_path / "old" / "model.safetensors", before)
        options = recipe("small", iterations=1, lr=1e-12, weight_decay=0.0, batch_size=2, checkpoint_every=1)
        data = DigitsDetection("train", length=4)
        result = train(data, out=tmp_path / "new", weights=tmp_path / "old", options=options, progress=False)
        assert result.detector.config == before.config
        text = (tmp_path / "new" / "train.log").read_text()
        assert f"weights: {len(before.state_dict())} tensors taken over" in text
        assert "new classes: 2, 3, 4, 5, 6, 7, 8, 9" in text
        found, expected = result.detector.roi_head.cls_score.weight, before.roi_head.cls_score.weight
        torch.testing.assert_close(found[:3], expected[:3])

    def test_the_command_takes_the_settings_of_the_run(self, tmp_path):
        save_detector(tmp_path / "model.safetensors", small(["a"], rpn_lambda=3.0))
        run = {"run": {"weights": str(tmp_path)}, "data": {"data_root": "elsewhere"}}
        config = build([run])
        assert (config.detector.backbone, config.detector.rpn_lambda) == ("small", 3.0)
        assert config.training == recipe("small")
        assert build([run, {"detector": {"rpn_lambda": 1.0}}]).detector.rpn_lambda == 1.0
        asked = build([run, {"detector": {"backbone": "squeezenet1_0"}}])
        assert asked.detector == preset("squeezenet1_0")


class TestConvert:
    def test_a_run_of_a_file(self, tmp_path, capsys):
        torch.save(state(FPN), tmp_path / "theirs.pth")
        arguments = [str(tmp_path / "theirs.pth"), "-o", str(tmp_path / "run"), "--shorter", "320"]
        assert convert.main(arguments) == 0
        assert "resnet50_fpn, 90 classes" in capsys.readouterr().out
        ours = load_detector(tmp_path / "run")
        assert (ours.config.shorter, ours.class_names[16]) == (320, "cat")
        assert ours.rpn.convs[0].weight.unique().tolist() == [place(FPN, "rpn.head.conv.0.0.weight")]
        with pytest.raises(SystemExit):
            convert.main(arguments)
        assert "is there already" in capsys.readouterr().err
