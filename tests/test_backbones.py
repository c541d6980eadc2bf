"""The families of backbones: parameters' names, shapes of maps, what is frozen, and that each trains in a detector."""

import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

from frcnn_fast.model import (
    ZF,
    MobileNetV3FPN,
    ResNetC4,
    ResNetFPN,
    SqueezeNet,
    TimmFPN,
    build_backbone,
    build_detector,
    config_for,
    load_detector,
    load_pretrained,
    preset,
    save_detector,
)
from frcnn_fast.model.backbones import BACKBONES, backbone_name
from frcnn_fast.model.backbones.zf import local_response
from frcnn_fast.model.layers import ConvNorm, FrozenBatchNorm2d, conv_norm
from frcnn_fast.model.protocol import backbone_shape, feature_maps, freeze_stages
from frcnn_fast.training import recipe
from tests.test_model import batch

# For a detector of any backbone that is small enough for a test.
TINY = {
    "rpn_channels": 8,
    "head_channels": 8,
    "proposals_train": (50, 10),
    "proposals_test": (50, 10),
    "roi_batch_size": 8,
    "shorter": 64,
    "longer": 96,
}


def names(module: nn.Module) -> list[str]:
    return list(module.state_dict())


class TestEvery:
    @pytest.mark.parametrize("name", BACKBONES)
    def test_maps_are_as_it_says(self, name):
        torch.manual_seed(0)
        backbone = build_backbone(name).eval()
        shape = backbone_shape(backbone)
        assert len(preset(name).anchor_sizes) == len(shape.rpn_strides)
        for size in ((64, 96), (65, 79)):
            with torch.no_grad():
                feature_maps(backbone, torch.zeros(1, 3, *size), shape)

    @pytest.mark.parametrize("name", BACKBONES)
    def test_its_name_and_settings_are_found_again(self, name):
        with torch.device("meta"):
            backbone = build_backbone(name)
        assert backbone_name(backbone) == name
        assert config_for(backbone) == preset(name)
        assert recipe(name).iterations > 0

    @pytest.mark.parametrize(
        "name", ["zf", "resnet18_c4", "resnet50_c4", "resnet18_fpn", "mobilenet_v3_large", "mobilenet_v3_large_fpn"]
    )
    def test_every_parameter_learns(self, name):
        torch.manual_seed(0)
        detector = build_detector(["a", "b"], preset(name, norm="batch", dropout=0.0, **TINY))
        losses = detector(**batch())
        sum(losses.values()).backward()
        idle = [n for n, p in detector.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
        assert idle == []
        with torch.no_grad():
            detector.eval()(batch()["images"], batch()["image_sizes"])

    @pytest.mark.parametrize("name", ["resnet18_c4", "resnet18_fpn", "mobilenet_v3_large_fpn", "zf"])
    def test_checkpoints_know_it(self, name, tmp_path):
        torch.manual_seed(0)
        config = preset(name, score_threshold=0.0, **TINY)
        detector = build_detector(["a"], config).eval()
        save_detector(tmp_path / "model.safetensors", detector)
        again = load_detector(tmp_path)
        inputs = batch()
        with torch.no_grad():
            expected = detector(inputs["images"], inputs["image_sizes"])
            found = again(inputs["images"], inputs["image_sizes"])
        assert expected.counts.sum() > 0
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    def test_options_of_a_module_reach_the_checkpoint(self):
        with torch.device("meta"):
            detector = build_detector(
                ["a"], preset("resnet50_fpn"), backbone=ResNetFPN(101, norm="batch", stride_in_1x1=True)
            )
        config = detector.config
        assert (config.backbone, config.norm, config.stride_in_1x1) == ("resnet101_fpn", "batch", True)

    def test_unknown_names(self):
        with pytest.raises(
            ValueError, match=r"got 'resnet50', expected one of .*resnet50_c4, resnet50_fpn, .* timm:MODEL"
        ):
            build_backbone("resnet50")
        with pytest.raises(ValueError, match="depth: got 20, expected one of 18, 34, 50, 101"):
            ResNetC4(20)


class TestNorm:
    def norm(self):
        generator = torch.Generator().manual_seed(0)
        frozen = FrozenBatchNorm2d(6)
        batch_norm = nn.BatchNorm2d(6).eval()
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = torch.rand(6, generator=generator) + 0.1
            getattr(frozen, name).copy_(value)
            getattr(batch_norm, name).data.copy_(value)
        return frozen, batch_norm

    def test_frozen_is_batch_normalisation_at_rest(self):
        frozen, batch_norm = self.norm()
        x = torch.randn(2, 6, 5, 4)
        torch.testing.assert_close(frozen(x), batch_norm(x))
        assert list(frozen.parameters()) == []
        assert set(names(batch_norm)) - set(names(frozen)) == {"num_batches_tracked"}

    @pytest.mark.parametrize("kind", [0, 1])
    def test_folded_is_the_same(self, kind):
        norm = self.norm()[kind]
        conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
        x = torch.randn(2, 4, 9, 8)
        torch.testing.assert_close(conv_norm(x, conv, norm), norm(conv(x)))

    def test_in_training_batch_statistics_count(self):
        layer = ConvNorm(nn.Conv2d(4, 6, 1, bias=False), "batch")
        y = layer(torch.randn(8, 4, 5, 5))
        torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
        assert layer[1].running_mean.abs().sum() > 0

    def test_frozen_statistics_stay_in_training(self):
        torch.manual_seed(0)
        backbone = ResNetC4(18).train()
        before = {name: tensor.clone() for name, tensor in backbone.named_buffers()}
        backbone(torch.randn(2, 3, 64, 64))
        assert len(before) > 0
        assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.named_buffers())


class TestResNet:
    def test_parameter_names_are_torchvisions(self):
        with torch.device("meta"):
            found = names(ResNetC4(50)) + names(build_detector(["a"], preset("resnet50_c4")).roi_head.body)
        norm = ("weight", "bias", "running_mean", "running_var")
        expected = ["conv1.weight", *(f"bn1.{part}" for part in norm)]
        for layer, count in enumerate((3, 4, 6, 3), start=1):
            for block in range(count):
                at = f"layer{layer}.{block}"
                if block == 0:
                    expected += [f"{at}.downsample.0.weight", *(f"{at}.downsample.1.{part}" for part in norm)]
                for i in (1, 2, 3):
                    expected += [f"{at}.conv{i}.weight", *(f"{at}.bn{i}.{part}" for part in norm)]
        assert sorted(found) == sorted(expected)

    def test_published_weights_fill_body_and_head(self):
        detector = build_detector(["a"], preset("resnet18_c4", **TINY))
        trunk, body = detector.backbone, detector.roi_head.body
        weights = {n: torch.full_like(p, 0.25) for n, p in [*trunk.state_dict().items(), *body.state_dict().items()]}
        assert load_pretrained(detector, {**weights, "fc.weight": torch.zeros(9, 512)}) == ["fc.weight"]
        assert all((p == 0.25).all() for p in [*trunk.state_dict().values(), *body.state_dict().values()])

    @pytest.mark.parametrize("name", ["resnet18_fpn", "mobilenet_v3_large_fpn"])
    def test_published_weights_fill_the_body_of_a_pyramid(self, name):
        detector = build_detector(["a"], preset(name, norm="batch", **TINY))
        own = detector.backbone.pretrained_names()
        assert own
        tensors = detector.backbone.state_dict()
        weights = {theirs: torch.full_like(tensors[ours], 0.25) for ours, theirs in own.items()}
        assert load_pretrained(detector, weights) == []
        assert all((p == 0.25).all() for p in detector.backbone.body.parameters())
        assert not any((p == 0.25).all() for p in detector.backbone.fpn.layer_blocks[0][0].parameters())

    def test_where_the_stride_lies(self):
        with torch.device("meta"):
            ours, caffes = ResNetC4(50), ResNetC4(50, stride_in_1x1=True)
        for backbone, strides in ((ours, ((1, 1), (2, 2))), (caffes, ((2, 2), (1, 1)))):
            block = backbone.get_submodule("layer2.0")
            assert (block.conv1.stride, block.conv2.stride) == strides

    @pytest.mark.parametrize("stages", [1, 2, 3, 4])
    def test_stages(self, stages):
        with torch.device("meta"):
            backbone = ResNetC4(18, norm="batch")
        freeze_stages(backbone, stages)
        frozen = {name.split(".")[0] for name, p in backbone.named_parameters() if not p.requires_grad}
        trained = {name.split(".")[0] for name, p in backbone.named_parameters() if p.requires_grad}
        parts = ["conv1", "layer1", "layer2", "layer3"]
        assert frozen - {"bn1"} == set(parts[:stages])
        assert trained == set(parts[stages:])
        with pytest.raises(ValueError, match="freeze: got 5 stages, but ResNetC4 has 4"):
            freeze_stages(backbone, 5)

    def test_the_coarsest_map_is_the_rpns_alone(self):
        torch.manual_seed(0)
        backbone = ResNetFPN(18).eval()
        with torch.no_grad():
            maps = backbone(torch.randn(1, 3, 128, 96))
        assert [tuple(m.shape[1:]) for m in maps] == [(256, 128 // s, -(-96 // s)) for s in (4, 8, 16, 32, 64)]
        assert torch.equal(maps[4], maps[3][:, :, ::2, ::2])
        assert backbone_shape(backbone).roi_strides == (4, 8, 16, 32)

    def test_the_pyramid_by_hand(self):
        """One channel, kernels that pass their middle: each map plus the coarser ones, every cell repeated."""
        backbone = ResNetFPN(18)
        fpn = backbone.fpn
        for block in (*fpn.inner_blocks, *fpn.layer_blocks):
            conv = block[0]
            nn.init.zeros_(conv.weight)
            middle = conv.kernel_size[0] // 2
            conv.weight.data[0, 0, middle, middle] = 1.0
        sizes = [(8, 6), (4, 3), (2, 2), (1, 1)]
        maps = [torch.full((1, c, *size), 10.0**i) for i, (c, size) in enumerate(zip((64, 128, 256, 512), sizes))]
        with torch.no_grad():
            found = fpn(maps)
        assert [m[0, 0].unique().tolist() for m in found] == [[1111], [1110], [1100], [1000], [1000]]
        assert [tuple(m.shape[2:]) for m in found] == [*sizes, (1, 1)]


class TestMobileNet:
    @pytest.mark.parametrize(("stages", "parts"), [(1, 2), (2, 4), (3, 7), (4, 13), (5, 16), (6, 17)])
    def test_stages_are_torchvisions(self, stages, parts):
        with torch.device("meta"):
            backbone = MobileNetV3FPN(norm="batch")
        freeze_stages(backbone, stages)
        frozen = [i for i, part in enumerate(backbone.body) if not any(p.requires_grad for p in part.parameters())]
        assert frozen == list(range(parts))
        assert all(p.requires_grad for p in backbone.fpn.parameters())

    def test_regions_are_pooled_from_the_first_map(self):
        with torch.device("meta"):
            shape = backbone_shape(MobileNetV3FPN())
        assert (shape.rpn_strides, shape.roi_levels) == ((32, 32, 64), (0,))


class TestZF:
    def test_parameter_names_are_caffes(self):
        with torch.device("meta"):
            detector = build_detector(["a"], preset("zf"))
        layers = [f"conv{i}.{part}" for i in range(1, 6) for part in ("weight", "bias")]
        assert names(detector.backbone) == layers
        assert {n: tuple(p.shape) for n, p in detector.roi_head.body.state_dict().items() if "weight" in n} == {
            "fc6.weight": (4096, 256 * 6 * 6),
            "fc7.weight": (4096, 4096),
        }
        assert detector.rpn.convs[0].weight.shape == (256, 256, 3, 3)

    def test_normalisation_by_hand(self):
        x = torch.zeros(1, 2, 3, 3)
        x[0, 0] = torch.tensor([[3.0, 0, 0], [0, 6, 0], [0, 0, 0]])
        x[0, 1] = 100.0
        found = local_response(x, alpha=0.5)
        # The mean of nine squares, zeros beyond the border: (9 + 36) / 9 = 5 around the middle and the corner.
        assert found[0, 0, 1, 1].item() == pytest.approx(6 / (1 + 0.5 * 5) ** 0.75)
        assert found[0, 0, 0, 0].item() == pytest.approx(3 / (1 + 0.5 * 5) ** 0.75)

    @pytest.mark.parametrize("kind", [ZF, SqueezeNet])
    def test_freeze(self, kind):
        backbone = kind()
        freeze_stages(backbone, 1)
        trained = [name for name, p in backbone.named_parameters() if not p.requires_grad]
        assert trained == names(backbone)[:2]
        with pytest.raises(ValueError, match="freeze: got 9 stages"):
            freeze_stages(backbone, 9)


class TestSettingsOfOtherDetectors:
    def test_two_convolutions_in_the_rpn_and_a_head_of_convolutions(self):
        torch.manual_seed(0)
        config = preset("small", rpn_convs=2, head="conv", head_channels=12, pool_size=3)
        detector = build_detector(["a", "b"], config)
        assert [c.weight.shape[:2] for c in detector.rpn.convs] == [(64, 64), (64, 64)]
        body = detector.roi_head.body
        assert [layer[0].weight.shape for layer in body.convs] == [(256, 64, 3, 3)] + 3 * [(256, 256, 3, 3)]
        assert body.fc6.weight.shape == (12, 256 * 9)
        losses = detector(**batch())
        sum(losses.values()).backward()
        assert [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []

    def test_the_stride_of_the_image(self):
        """100 pixels at stride 8 are 13 cells; torchvision's anchors are then 100 // 13 = 7 pixels apart."""
        for kind, strides in (("image", (4, 7)), ("backbone", (4, 8))):
            detector = build_detector(["a"], preset("small", anchor_stride=kind)).eval()
            images = torch.zeros(1, 3, 100, 100)
            with torch.no_grad():
                grids = detector.rpn(detector.backbone(images), (100, 100)).anchors.grid
            assert (grids[3], grids[8]) == strides

    def test_a_score_threshold_of_proposals(self):
        torch.manual_seed(0)
        plain = build_detector(["a"], preset("small")).eval()
        nn.init.normal_(plain.rpn.cls_logits.weight, std=1.0)
        inputs = batch()
        with torch.no_grad():
            rpn = plain.rpn(plain.backbone(inputs["images"]), (96, 96))
            every = plain.propose(rpn, inputs["image_sizes"])
            least = every[1].median().sigmoid().item()
            chosen = build_detector(["a"], preset("small", proposal_score_threshold=least)).eval()
            some = chosen.propose(rpn, inputs["image_sizes"])
        for b in range(2):
            count = int((every[1][b, : every[3][b]].sigmoid() >= least).sum())
            assert some[3][b] == count
            for one, other, padding in zip(some, every, (0, 0, -1)):
                assert torch.equal(one[b, :count], other[b, :count])
                assert (one[b, count:] == padding).all()
        assert 0 < some[3].sum() < every[3].sum()

    def test_box_weights_reach_targets_and_boxes(self):
        """Twice the weights: targets twice as large, and the same boxes from deltas twice as large."""
        found, losses = [], []
        for factor in (1.0, 2.0):
            torch.manual_seed(0)
            weights = (10 * factor, 10 * factor, 5 * factor, 5 * factor)
            detector = build_detector(
                ["a", "b"], preset("small", box_weights=weights, roi_beta=0.0, score_threshold=0.0)
            )
            nn.init.normal_(detector.roi_head.bbox_pred.weight, std=0.01)
            detector.roi_head.bbox_pred.weight.data *= factor
            losses.append(detector(**batch())["loss_box_reg"].item())
            with torch.no_grad():
                found.append(detector.eval()(batch()["images"], batch()["image_sizes"]))
        assert losses[1] == pytest.approx(2 * losses[0], rel=1e-4)
        assert found[0].counts.sum() > 0
        torch.testing.assert_close(found[0].boxes, found[1].boxes)

    def test_small_detections_are_dropped(self):
        def least_sides(least):
            torch.manual_seed(0)
            config = preset("small", score_threshold=0.0, detection_min_size=least)
            detector = build_detector(["a", "b"], config).eval()
            with torch.no_grad():
                found = detector(batch()["images"], batch()["image_sizes"])
            return torch.cat([(item["boxes"][:, 2:] - item["boxes"][:, :2]).amin(1) for item in found.to_list()])

        every = least_sides(0.0)
        some = least_sides(every.median().item())
        assert 0 < len(some) < len(every)
        assert some.min() >= every.median()


class _Info:
    def __init__(self, rows):
        self.rows = rows

    def channels(self):
        return [c for c, _ in self.rows]

    def reduction(self):
        return [s for _, s in self.rows]


class _Listed(nn.Module):
    """What timm makes with features_only: a map for each of out_indices."""

    def __init__(self, rows, out_indices=None):
        super().__init__()
        self.wanted = [rows[i] for i in out_indices] if out_indices is not None else rows
        self.feature_info = _Info(self.wanted)
        self.stages_0 = nn.ModuleList([nn.Conv2d(3, c, 1, stride=s) for c, s in self.wanted])
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        return [conv(self.bn(x)) for conv in self.stages_0]


@pytest.fixture
def timm(monkeypatch):
    """A stand-in for the library, which needs torchvision; tests/compat has the real one."""
    models = {"pyramid": [(4, 2), (6, 4), (8, 8), (10, 16), (12, 32)], "plain": [(5, 16), (7, 16)], "coarse": [(4, 64)]}

    def create_model(name, features_only, out_indices=None):
        if name not in models:
            raise RuntimeError(f"Unknown model ({name})")
        return _Listed(models[name], out_indices)

    def freeze(module):
        module.bn = FrozenBatchNorm2d(3)
        return module

    layers = types.SimpleNamespace(freeze_batch_norm_2d=freeze)
    module: Any = types.ModuleType("timm")
    vars(module).update(create_model=create_model, layers=layers)
    monkeypatch.setitem(sys.modules, "timm", module)
    monkeypatch.setitem(sys.modules, "timm.layers", layers)


@pytest.mark.usefixtures("timm")
class TestTimm:
    def test_a_pyramid_of_its_maps(self, tmp_path):
        config = preset("timm:pyramid", **TINY, score_threshold=0.0)
        assert config.anchor_sizes == ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
        assert (config.preprocess, config.pooling) == ("torch", "roi_align")
        torch.manual_seed(0)
        detector = build_detector(["a", "b"], config)
        assert detector.config.backbone == "timm:pyramid"
        assert detector.shape.rpn_strides == (4, 8, 16, 32, 64)
        assert detector.shape.roi_levels == (0, 1, 2, 3)
        assert all(torch.isfinite(loss) for loss in detector(**batch()).values())
        save_detector(tmp_path / "model.safetensors", detector)
        assert load_detector(tmp_path).config == detector.config

    def test_one_stride_is_one_map(self):
        backbone = TimmFPN("plain")
        assert (backbone.strides, backbone.roi_levels) == ((16, 32), (0,))
        assert backbone.body.feature_info.channels() == [7]
        assert isinstance(backbone.body.bn, FrozenBatchNorm2d)
        assert isinstance(TimmFPN("plain", norm="batch").body.bn, nn.BatchNorm2d)

    def test_its_names_in_a_published_file(self):
        found = TimmFPN("plain").pretrained_names()
        assert found["body.stages_0.0.weight"] == "stages.0.0.weight"
        assert found["body.bn.running_var"] == "bn.running_var"

    def test_models_that_do_not_fit(self):
        with pytest.raises(ValueError, match=r"timm:nothing cannot be made with features_only \(Unknown model"):
            preset("timm:nothing")
        with pytest.raises(ValueError, match=r"timm:coarse has maps at strides \[64\], expected some of 4 to 32"):
            TimmFPN("coarse")


def test_timm_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'frcnn_fast\[timm\]'"):
        TimmFPN("resnet18")
