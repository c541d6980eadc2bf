"""Backbones of the real timm library."""

import pytest
import torch

from frcnn_fast.model import build_detector, load_detector, load_pretrained, preset, save_detector
from tests.test_model import batch

timm = pytest.importorskip("timm", reason="timm (make test-compat)")

SETTINGS = {"rpn_channels": 16, "head_channels": 16, "proposals_train": (50, 20), "proposals_test": (50, 20)}


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050"])
def test_a_model_trains_detects_and_is_read_again(name, tmp_path):
    torch.manual_seed(0)
    detector = build_detector(["a", "b"], preset(f"timm:{name}", score_threshold=0.0, **SETTINGS))
    assert detector.shape.rpn_strides == (4, 8, 16, 32, 64)
    inputs = batch()
    losses = detector(**inputs)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    save_detector(tmp_path / "model.safetensors", detector)
    with torch.no_grad():
        expected = detector.eval()(inputs["images"], inputs["image_sizes"])
        found = load_detector(tmp_path)(inputs["images"], inputs["image_sizes"])
    assert expected.counts.sum() > 0
    assert torch.equal(found.boxes, expected.boxes)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050", "efficientnet_b0"])
def test_published_weights_have_the_names_that_are_asked_for(name):
    """Those of the whole model, as its file has them."""
    detector = build_detector(["a"], preset(f"timm:{name}", **SETTINGS))
    whole = timm.create_model(name)
    left = load_pretrained(detector, whole.state_dict())
    assert any("weight" in tensor for tensor in left)  # the classifier
    first = next(iter(detector.backbone.pretrained_names().items()))
    assert torch.equal(detector.state_dict()[f"backbone.{first[0]}"], whole.state_dict()[first[1]])
