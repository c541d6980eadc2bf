"""The detector: names, shapes, losses, initialisation, checkpoints, and what it says to input that does not fit."""

import dataclasses
import math
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from frcnn_fast.io import load_weights
from frcnn_fast.model import (
    VGG16,
    DetectorConfig,
    FasterRCNN,
    SmallBackbone,
    SqueezeNet,
    build_detector,
    load_detector,
    load_pretrained,
    preset,
    save_detector,
)
from frcnn_fast.model.backbones import VGG16Head
from frcnn_fast.model.head import rows_of_images
from frcnn_fast.model.losses import head_losses, rpn_losses
from frcnn_fast.model.presets import config_for
from frcnn_fast.model.protocol import backbone_shape, freeze_stages
from frcnn_fast.training import recipe
from tests.real_data import real_data

# torchvision's names of the convolutions of vgg16 and of its first two fully connected layers.
VGG16_CONVOLUTIONS = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
VGG16_NAMES = [f"features.{i}.{part}" for i in VGG16_CONVOLUTIONS for part in ("weight", "bias")]
VGG16_HEAD_NAMES = ["classifier.0.weight", "classifier.0.bias", "classifier.3.weight", "classifier.3.bias"]
# ... and of the convolutions of squeezenet1_0.
SQUEEZENET_NAMES = ["features.0.weight", "features.0.bias"] + [
    f"features.{i}.{layer}.{part}"
    for i in (3, 4, 5, 7, 8, 9, 10, 12)
    for layer in ("squeeze", "expand1x1", "expand3x3")
    for part in ("weight", "bias")
]


def small_detector(**changes):
    torch.manual_seed(0)
    detector = build_detector(["circle", "square"], preset("small", **changes))
    detector.seed(5)
    return detector


def batch(sizes=((64, 96), (80, 64)), objects=((3, 1), (0, 0)), seed=0):
    """Two images, the second one smaller and without objects."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(len(sizes), 3, 96, 96)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width, generator=generator)
    counts = [count for count, _ in objects]
    gt_boxes = torch.zeros(len(sizes), 4, 4)
    gt_boxes[0, :3] = torch.tensor([[4.0, 6, 30, 40], [40, 20, 70, 60], [60, 2, 90, 30]])
    gt_labels = torch.full((len(sizes), 4), -1)
    gt_labels[0, :3] = torch.tensor([1, 2, 1])
    return {
        "images": images,
        "image_sizes": torch.tensor(sizes),
        "gt_boxes": gt_boxes,
        "gt_labels": gt_labels,
        "gt_counts": torch.tensor(counts),
        "crowd": torch.zeros(len(sizes), 4, dtype=torch.bool),
    }


class TestBackbones:
    def test_parameter_names_are_torchvisions(self):
        assert list(VGG16().state_dict()) == VGG16_NAMES
        assert list(VGG16Head().state_dict()) == VGG16_HEAD_NAMES
        assert list(SqueezeNet().state_dict()) == SQUEEZENET_NAMES

    def test_vgg_map_is_at_stride_16(self):
        with torch.no_grad():
            assert VGG16()(torch.zeros(1, 3, 64, 96))[0].shape == (1, 512, 4, 6)

    @pytest.mark.parametrize(("side", "cells"), [(320, 20), (64, 4), (65, 5)])
    def test_squeezenet_map_is_at_stride_16(self, side, cells):
        with torch.no_grad():
            assert SqueezeNet()(torch.zeros(1, 3, side, side))[0].shape == (1, 512, cells, cells)

    @pytest.mark.parametrize("cell", [(6, 6), (7, 5)])
    def test_squeezenet_cells_lie_where_anchors_take_them_to_be(self, cell):
        backbone = SqueezeNet()
        for name, parameter in backbone.named_parameters():
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 0.01)
        images = torch.zeros(1, 3, 208, 208)
        images[:, :, 16 * cell[0], 16 * cell[1]] = 1.0  # one bright pixel, at the centre of the cell's anchors
        with torch.no_grad():
            response = backbone(images)[0][0].sum(0)
        assert response[cell] > 0
        for axis, centre in enumerate(cell):
            profile = response.sum(1 - axis)
            assert profile.argmax() == centre
            before, after = profile[centre - 3 : centre].flip(0), profile[centre + 1 : centre + 4]
            torch.testing.assert_close(before, after, rtol=1e-4, atol=0.0)

    @pytest.mark.parametrize("shape", [(64, 96), (50, 71)])
    def test_small_backbone_has_two_levels(self, shape):
        fine, coarse = SmallBackbone()(torch.zeros(1, 3, *shape))
        assert fine.shape == (1, 64, math.ceil(shape[0] / 4), math.ceil(shape[1] / 4))
        assert coarse.shape == (1, 64, math.ceil(shape[0] / 8), math.ceil(shape[1] / 8))

    def test_the_paper_tunes_conv3_1_and_up(self):
        backbone = VGG16()
        freeze_stages(backbone, backbone.frozen_stages)
        frozen = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
        assert frozen == VGG16_NAMES[:8]

    @pytest.mark.parametrize("kind", [VGG16, SqueezeNet])
    def test_stages_end_before_the_poolings(self, kind):
        backbone = kind()
        poolings = [i for i, layer in enumerate(backbone.features) if isinstance(layer, nn.MaxPool2d)]
        # SqueezeNet: the last stage begins after the last pooling as well.
        assert backbone.stage_ends == (*poolings, len(backbone.features))
        freeze_stages(backbone, len(backbone.stage_ends))
        assert not any(parameter.requires_grad for parameter in backbone.parameters())

    def test_freezing_more_than_there_is_is_refused(self):
        with pytest.raises(ValueError, match="freeze: got 6 stages, but VGG16 has 5"):
            freeze_stages(VGG16(), 6)
        with pytest.raises(ValueError, match=r"SmallBackbone has no method freeze\(stages\)"):
            freeze_stages(SmallBackbone(), 1)


class Pyramid(nn.Module):
    """A backbone as a stranger writes it: a map for each stride."""

    def __init__(self, strides=(8, 16), returns=tuple, channels=6, **attributes):
        super().__init__()
        self.out_channels, self.strides, self.returns = channels, strides, returns
        torch.manual_seed(0)
        self.convolutions = nn.ModuleList([nn.Conv2d(3, 6, 3, stride=stride, padding=1) for stride in strides])
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, images):
        return self.returns([convolution(images) for convolution in self.convolutions])


def strangers(backbone, **changes):
    torch.manual_seed(0)
    changes = {
        "rpn_channels": 8,
        "head_channels": 8,
        "proposals_train": (50, 20),
        "proposals_test": (50, 20),
        **changes,
    }
    return build_detector(["a", "b"], dataclasses.replace(config_for(backbone), **changes), backbone=backbone)


class TestBackboneOfOnesOwn:
    @pytest.mark.parametrize(
        "returns", [tuple, list, lambda maps: OrderedDict(zip("01", maps, strict=True))], ids=["tuple", "list", "dict"]
    )
    def test_every_collection_of_maps_is_understood(self, returns):
        found = [strangers(Pyramid(returns=kind))(**batch()) for kind in (tuple, returns)]
        assert found[0] == found[1]

    def test_a_single_map_is_understood(self):
        losses = strangers(Pyramid((16,), returns=lambda maps: maps[0]))(**batch())
        assert all(torch.isfinite(loss) for loss in losses.values())

    @pytest.mark.parametrize("pooling", ["roi_pool", "roi_align"])
    def test_a_map_for_the_rpn_alone(self, pooling):
        """It has anchors and a gradient from the RPN; RoI pooling reads the other one as if it were alone."""
        both = strangers(Pyramid((8, 16), roi_levels=(0,)), pooling=pooling)
        inputs = batch()
        losses = both(**inputs)
        (losses["loss_classifier"] + losses["loss_box_reg"]).backward(retain_graph=True)
        assert both.backbone.convolutions[0].weight.grad.abs().sum() > 0
        assert both.backbone.convolutions[1].weight.grad is None
        losses["loss_objectness"].backward()
        gradient = both.backbone.convolutions[1].weight.grad
        assert gradient is not None
        assert gradient.abs().sum() > 0

    @pytest.mark.parametrize("pooled_levels", [(0,), (0, 1)])
    @pytest.mark.parametrize(
        ("changes", "contiguous"),
        [({"head": "fc"}, True), ({"head": "conv"}, False), ({"head": "fc", "pool_levels": (2, 3)}, True)],
        ids=["fc", "conv", "pyramid"],
    )
    def test_regions_are_stored_as_the_head_reads_them(self, changes, contiguous, pooled_levels):
        """The maps are channels_last; what is flattened is pooled contiguous, so that flattening copies nothing."""
        backbone = Pyramid((8, 16)[: len(pooled_levels)], roi_levels=pooled_levels)
        head = strangers(backbone, pooling="roi_align", **changes).roi_head
        maps = [m.contiguous(memory_format=torch.channels_last) for m in backbone(batch()["images"])]
        pooled = head._pooled(maps, torch.tensor([[0.0, 4, 6, 60, 50], [1.0, 1, 2, 90, 80]]), 3)
        assert pooled.is_contiguous() == contiguous
        assert pooled.is_contiguous(memory_format=torch.channels_last) != contiguous

    def test_the_pooled_level_keeps_its_stride(self):
        both = strangers(Pyramid((8, 16), roi_levels=(1,)))
        one = strangers(Pyramid((16,)))
        maps = both.backbone(batch()["images"])
        rois = torch.tensor([[0.0, 4, 6, 60, 50]])
        assert torch.equal(both.roi_head.pool(maps, rois), one.roi_head.pool(maps[1:], rois))

    @pytest.mark.parametrize(
        ("stride", "says", "message"),
        [
            (8, 16, r"map 0 of Pyramid is \(12, 12\) for images of \(96, 96\) pixels, not at its stride of 16: .* 6 "),
            (16, 8, "expected 12 cells or one more along 96 pixels, got 6"),
        ],
    )
    def test_a_wrong_stride_is_found_at_the_first_forward(self, stride, says, message):
        backbone = Pyramid((stride,))
        backbone.strides = (says,)
        with pytest.raises(ValueError, match=message):
            strangers(backbone)(**batch())

    @pytest.mark.parametrize("size", [(61, 97), (64, 96), (65, 79)])
    @pytest.mark.parametrize("padding", [0, 1])
    def test_maps_may_be_rounded_down_or_up(self, size, padding):
        backbone = Pyramid((4,))
        backbone.convolutions[0] = nn.Conv2d(3, 6, 4 if padding == 0 else 3, stride=4, padding=padding)
        detector = strangers(backbone).eval()
        with torch.no_grad():
            detector(torch.zeros(1, 3, *size), torch.tensor([size]))

    @pytest.mark.parametrize(
        ("backbone", "error", "message"),
        [
            (Pyramid(returns=lambda maps: maps[:1]), ValueError, r"returned 1 maps, expected 2, .* strides \(8, 16\)"),
            (Pyramid(channels=5), ValueError, "map 0 of Pyramid has 6 channels, expected its out_channels, 5"),
            (Pyramid(returns=lambda maps: None), TypeError, "Pyramid returned NoneType, expected a map"),
            (Pyramid((8,), returns=lambda maps: maps[0][0]), TypeError, r"returned shape \(6, 12, 12\), expected"),
        ],
    )
    def test_maps_that_are_not_as_said(self, backbone, error, message):
        with pytest.raises(error, match=message):
            strangers(backbone)(**batch())

    @pytest.mark.parametrize(
        ("attributes", "error", "message"),
        [
            ({"strides": None}, TypeError, "Pyramid has out_channels 6 and strides None, expected an int and a tuple"),
            ({"strides": (8.0,)}, TypeError, r"strides \(8.0,\), expected"),
            ({"out_channels": "6"}, TypeError, "out_channels '6'"),
            ({"roi_levels": 0}, TypeError, "roi_levels 0, expected a tuple of ints"),
            ({"roi_levels": ()}, TypeError, r"roi_levels \(\), expected"),
            ({"roi_levels": (0, 2)}, ValueError, r"roi_levels \(0, 2\), expected ascending indices below 2"),
            ({"roi_levels": (1, 0)}, ValueError, r"roi_levels \(1, 0\), expected ascending"),
        ],
    )
    def test_attributes_that_do_not_fit(self, attributes, error, message):
        backbone = Pyramid()
        for name, value in attributes.items():
            setattr(backbone, name, value)
        with pytest.raises(error, match=message):
            backbone_shape(backbone)

    def test_its_defaults_are_todays(self):
        config = config_for(Pyramid((4, 8, 16)))
        assert (config.preprocess, config.head_channels, config.pooling) == ("torch", 1024, "roi_align")
        assert config.anchor_sizes == ((32.0,), (64.0,), (128.0,))
        assert config_for(Pyramid((16,))).anchor_sizes == ((64.0, 128.0, 256.0, 512.0),)
        assert recipe("Pyramid").iterations == 5000
        assert recipe("vgg16").iterations == 80_000
        assert config_for(SmallBackbone()) == preset("small")

    def test_names_of_its_published_weights(self):
        class Renamed(Pyramid):
            def pretrained_names(self):
                return {"convolutions.0.weight": "conv1.weight"}

        detector = strangers(Renamed())
        weights = {"conv1.weight": torch.ones(6, 3, 3, 3), "fc.weight": torch.zeros(2, 2)}
        assert load_pretrained(detector, weights) == ["fc.weight"]
        assert (detector.backbone.convolutions[0].weight == 1).all()
        with pytest.raises(ValueError, match=r"lacks conv1\.weight of Renamed; it has fc\.weight"):
            load_pretrained(detector, {"fc.weight": torch.zeros(2, 2)})


class TestLosses:
    def test_rpn_loss_by_hand(self):
        logits = torch.tensor([[0.0, 2.0, -1.0, 9.0]])
        deltas = torch.zeros(1, 4, 4)
        deltas[0, 1] = torch.tensor([1.0, 0.0, 0.5, 0.0])
        indices, labels = torch.tensor([[1, 0, -1]]), torch.tensor([[1, 0, -1]], dtype=torch.int8)
        targets = torch.zeros(1, 3, 4)
        maps = [logits.reshape(1, 1, 2, 2)], [deltas.reshape(1, 2, 2, 4).permute(0, 3, 1, 2)]
        objectness, boxes = rpn_losses(*maps, indices, labels, targets, n_cls=4, n_reg=20, weight=10, beta=0.5)
        # log(1 + e^-2) for the object, log 2 for the background, nothing for the padding.
        assert objectness.item() == pytest.approx((math.log1p(math.exp(-2)) + math.log(2)) / 4)
        # |1| is beyond beta: 1 - beta / 2; 0.5 is at beta: 0.5 * 0.5^2 / 0.5.
        assert boxes.item() == pytest.approx(10 * (0.75 + 0.25) / 20)

    def test_head_loss_by_hand(self):
        logits = torch.tensor([[[0.0, 0.0], [1.0, 3.0], [7.0, -7.0]]])
        deltas = torch.zeros(1, 3, 8)
        deltas[0, 1, 4:] = torch.tensor([3.0, 0.0, 0.0, 0.5])
        deltas[0, 0] = 50.0  # a background row has no box loss
        labels = torch.tensor([[0, 1, -1]])
        classes, boxes = head_losses(logits, deltas, labels, torch.zeros(1, 3, 4), beta=1.0)
        assert classes.item() == pytest.approx((math.log(2) + math.log1p(math.exp(-2))) / 2)
        assert boxes.item() == pytest.approx((2.5 + 0.125) / 2)
        shared, _ = head_losses(logits, deltas[..., 4:], labels, torch.zeros(1, 3, 4))
        assert shared.item() == pytest.approx(classes.item())

    def test_nothing_sampled_is_no_loss(self):
        labels = torch.full((1, 3), -1)
        classes, boxes = head_losses(torch.randn(1, 3, 2), torch.randn(1, 3, 8), labels, torch.zeros(1, 3, 4))
        assert classes.item() == boxes.item() == 0


class TestForward:
    def test_every_parameter_learns(self):
        detector = small_detector()
        losses = detector(**batch())
        assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
        assert all(loss.dim() == 0 and torch.isfinite(loss) for loss in losses.values())
        sum(losses.values()).backward()
        idle = [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert idle == []

    def test_without_any_object_the_box_losses_are_zero(self):
        inputs = batch()
        inputs["gt_counts"] = torch.zeros(2, dtype=torch.int64)
        losses = small_detector()(**inputs)
        assert losses["loss_rpn_box_reg"] == losses["loss_box_reg"] == 0
        assert losses["loss_objectness"] > 0
        assert losses["loss_classifier"] > 0

    def test_a_crowd_object_is_no_positive(self):
        inputs = batch()
        inputs["crowd"][0, :3] = True
        losses = small_detector()(**inputs)
        assert losses["loss_rpn_box_reg"] == losses["loss_box_reg"] == 0

    def test_the_sample_depends_on_seed_and_step_alone(self):
        def run(seed, steps):
            detector = small_detector()
            detector.seed(seed)
            return [detector(**batch())["loss_objectness"].item() for _ in range(steps)]

        # Batch statistics change between steps, the weights do not: differences come from the samples.
        first = run(5, 2)
        assert first == run(5, 2)
        assert first[0] != first[1]
        assert run(6, 1) != first[:1]

    def test_detections_have_fixed_shapes_and_lie_in_their_image(self):
        detector = small_detector(score_threshold=0.0, max_detections=30).eval()
        inputs = batch()
        with torch.no_grad():
            found = detector(inputs["images"], inputs["image_sizes"])
            again = detector(inputs["images"], inputs["image_sizes"])
        assert found.boxes.shape == (2, 30, 4)
        assert found.scores.shape == found.labels.shape == (2, 30)
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        for b, item in enumerate(found.to_list()):
            count = int(found.counts[b])
            assert 0 < count == len(item["boxes"]) == len(item["scores"])
            height, width = inputs["image_sizes"][b].tolist()
            assert (item["boxes"] >= 0).all()
            assert (item["boxes"][:, 2] <= width).all()
            assert (item["boxes"][:, 3] <= height).all()
            assert set(item["labels"].tolist()) <= {1, 2}
            assert (found.boxes[b, count:] == 0).all()
            assert (found.labels[b, count:] == -1).all()

    @pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
    def test_the_whole_step_is_one_graph(self):
        """A graph without a break cannot ask for a value on the way: nothing waits for the device."""
        detector, inputs = small_detector(score_threshold=0.0), batch()
        compiled = torch.compile(detector, fullgraph=True, backend="eager")
        expected = detector(**inputs)
        detector.seed(5)
        assert compiled(**inputs) == expected
        detector.eval()
        with torch.no_grad():
            expected = detector(inputs["images"], inputs["image_sizes"])
            found = compiled(inputs["images"], inputs["image_sizes"])
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    @pytest.mark.parametrize("pooling", ["roi_pool", "roi_align"])
    def test_single_level_backbones_run_as_well(self, pooling):
        torch.manual_seed(0)
        config = preset(
            "squeezenet1_0", pooling=pooling, anchor_sizes=((32.0,),), rpn_channels=16, head_channels=8,
            proposals_train=(50, 20), proposals_test=(50, 20), class_agnostic=pooling == "roi_pool",
        )  # fmt: skip
        detector = build_detector(["a", "b"], config)
        losses = detector(**batch())
        sum(losses.values()).backward()
        gradient = detector.backbone.get_parameter("features.0.weight").grad
        assert gradient is not None
        assert gradient.abs().sum() > 0
        with torch.no_grad():
            found = detector.eval()(batch()["images"], batch()["image_sizes"])
        assert found.boxes.shape == (2, 100, 4)

    def test_proposals_keep_to_the_minimum_side_of_the_original_image(self):
        detector = small_detector(min_size=16.0).eval()
        inputs = batch()
        with torch.no_grad():
            rpn = detector.rpn(detector.backbone(inputs["images"]), (96, 96))
            scales = torch.tensor([0.5, 2.0])
            boxes, _, _, counts = detector.propose(rpn, inputs["image_sizes"], scales)
        for b, least in enumerate((8.0, 32.0)):
            sides = boxes[b, : counts[b], 2:] - boxes[b, : counts[b], :2]
            assert counts[b] > 0
            assert sides.min() >= least

    def test_rows_of_images_marks_padding(self):
        rows = rows_of_images(torch.arange(16.0).reshape(2, 2, 4), torch.tensor([1, 2]))
        assert rows.tolist() == [[0, 0, 1, 2, 3], [-1, 4, 5, 6, 7], [1, 8, 9, 10, 11], [1, 12, 13, 14, 15]]


class TestConstruction:
    def test_new_layers_start_as_in_the_paper(self):
        torch.manual_seed(0)
        detector = build_detector(["a"], DetectorConfig(backbone="squeezenet1_0", head_channels=64))
        rpn, head = detector.rpn, detector.roi_head
        layers: list[tuple[Any, float]] = [(rpn.convs[0], 0.01), (rpn.cls_logits, 0.01), (rpn.bbox_pred, 0.01)]
        for layer, std in [*layers, (head.cls_score, 0.01), (head.bbox_pred, 0.001)]:
            assert layer.weight.std().item() == pytest.approx(std, rel=0.2)
            assert (layer.bias == 0).all()

    def test_the_papers_output_layers(self):
        config = DetectorConfig()
        rpn = build_detector(["a"], DetectorConfig(backbone="squeezenet1_0", head_channels=8)).rpn
        assert config.anchors_per_location == 9
        assert rpn.bbox_pred.weight.shape == (36, 512, 1, 1)
        assert rpn.cls_logits.weight.shape == (9, 512, 1, 1)

    def test_settings_that_do_not_fit_each_other(self):
        with pytest.raises(ValueError, match="pooling: 'roi_pool' reads one feature level, the backbone offers 2"):
            build_detector(["a"], preset("small", pooling="roi_pool"))
        with pytest.raises(ValueError, match="pooling: got 'max'"):
            DetectorConfig(pooling="max")
        with pytest.raises(ValueError, match="all of the same length"):
            DetectorConfig(anchor_sizes=((32.0,), (64.0, 128.0)), pooling="roi_align")
        with pytest.raises(ValueError, match="anchor_sizes: got 1 levels, expected 2"):
            build_detector(["a"], preset("small", anchor_sizes=((32.0,),)))
        with pytest.raises(ValueError, match="backbone: got 'resnet', expected one of mobilenet_v3_large, "):
            build_detector(["a"], preset("resnet"))
        with pytest.raises(ValueError, match="num_classes: got 1"):
            FasterRCNN(SmallBackbone(), 1, preset("small"))
        with pytest.raises(TypeError, match="backbone: Linear has out_channels None"):
            FasterRCNN(nn.Linear(1, 1), 2)

    def test_config_survives_json(self):
        config = preset("small", score_threshold=0.25)
        assert DetectorConfig.from_dict(config.to_dict()) == config
        with pytest.raises(ValueError, match="unknown settings colour"):
            DetectorConfig.from_dict({"colour": 1})

    def test_inputs_that_do_not_fit(self):
        detector = small_detector()
        inputs = batch()
        with pytest.raises(ValueError, match=r"images: got torch.uint8 with shape \(2, 3, 96, 96\), expected floats"):
            detector(**{**inputs, "images": inputs["images"].to(torch.uint8)})
        with pytest.raises(ValueError, match=r"images: got shape \(0, 3, 96, 96\)"):
            detector(**{**inputs, "images": inputs["images"][:0]})
        with pytest.raises(ValueError, match="gt_boxes, gt_labels, gt_counts: got None"):
            detector(inputs["images"], inputs["image_sizes"])


class TestWeights:
    def test_published_weights_fill_backbone_and_head(self):
        torch.manual_seed(0)
        detector = build_detector(["a"], DetectorConfig(backbone="squeezenet1_0", head_channels=8))
        weights = {name: torch.full_like(p, 0.5) for name, p in detector.backbone.state_dict().items()}
        left_out = load_pretrained(detector, {**weights, "classifier.1.weight": torch.zeros(1000, 512, 1, 1)})
        assert left_out == ["classifier.1.weight"]
        assert all((p == 0.5).all() for p in detector.backbone.parameters())

    def test_weights_that_do_not_fit_are_named(self):
        detector = build_detector(["a"], DetectorConfig(backbone="squeezenet1_0", head_channels=8))
        weights = detector.backbone.state_dict()
        missing = {name: value for name, value in weights.items() if name != "features.3.squeeze.bias"}
        with pytest.raises(ValueError, match=r"w\.npz: lacks features\.3\.squeeze\.bias of SqueezeNet"):
            load_pretrained(detector, missing, source="w.npz")
        wrong = {**weights, "features.0.weight": torch.zeros(96, 3, 3, 3)}
        with pytest.raises(ValueError, match=r"features\.0\.weight \[96, 3, 3, 3\] \(expected \[96, 3, 7, 7\]\)"):
            load_pretrained(detector, wrong)

    def test_real_weights_load(self):
        file = real_data("weights") / "squeezenet1_0/squeezenet1_0_decoded_f32.npz"
        detector = build_detector(["a"], preset("squeezenet1_0"))
        assert load_pretrained(detector, load_weights(file)) == ["classifier.1.weight", "classifier.1.bias"]
        expected = np.load(file)["features.12.expand3x3.weight"]
        assert np.array_equal(
            detector.backbone.get_parameter("features.12.expand3x3.weight").detach().numpy(), expected
        )


class TestCheckpoint:
    def test_round_trip_gives_the_same_detections(self, tmp_path):
        detector = small_detector(score_threshold=0.0)
        detector(**batch())  # moves the batch statistics
        save_detector(tmp_path / "model.safetensors", detector, extra={"iteration": 1})
        inputs = batch()
        again = load_detector(tmp_path)
        assert again.class_names == ["circle", "square"]
        assert again.config == detector.config
        with torch.no_grad():
            expected = detector.eval()(inputs["images"], inputs["image_sizes"])
            found = again(inputs["images"], inputs["image_sizes"])
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    def test_a_backbone_of_ones_own_is_asked_for(self, tmp_path):
        class Mine(SmallBackbone):
            pass

        detector = build_detector(["a"], preset("small"), backbone=Mine())
        save_detector(tmp_path / "model.safetensors", detector)
        with pytest.raises(ValueError, match="trained with a backbone of its own, Mine; pass one as `backbone`"):
            load_detector(tmp_path)
        load_detector(tmp_path, backbone=Mine())

    def test_tensors_that_do_not_fit_are_named(self, tmp_path):
        detector = small_detector()
        detector.rpn.convs[0] = nn.Conv2d(64, 32, 3)
        save_detector(tmp_path / "model.safetensors", detector)
        with pytest.raises(ValueError, match=r"rpn\.convs\.0\.weight is \[32, 64, 3, 3\], expected \[64, 64, 3, 3\]"):
            load_detector(tmp_path)

    def test_a_missing_checkpoint_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"model\.safetensors: no such file"):
            load_detector(tmp_path)
