"""Training schemes, from their stages to the files of a run, and the head's spatial pyramid."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch

from frcnn_fast import ops
from frcnn_fast._options import add_options, chosen
from frcnn_fast.model import DetectorConfig, build_detector, load_detector, preset, save_detector


class TestPyramid:
    def test_the_bins_of_every_size_are_one_vector(self):
        torch.manual_seed(0)
        config = DetectorConfig(
            backbone="squeezenet1_0", anchor_sizes=((64.0,),), pool_levels=(1, 2, 3, 6), head_channels=8
        )
        head = build_detector(["a", "b"], config).roi_head
        assert head.body.fc6.in_features == 512 * (1 + 4 + 9 + 36)
        features = torch.randn(2, 512, 9, 12)
        rois = torch.tensor([[0, 5.0, 9, 100, 130], [1, 0, 0, 191, 143], [-1, 0, 0, 0, 0]])
        pooled = head.pool([features], rois)
        assert pooled.shape == (3, 512 * 50)
        start = 0
        for size in (1, 2, 3, 6):
            one = ops.roi_pool(features, rois, size, 1 / 16)
            assert torch.equal(pooled[:, start : start + 512 * size**2], one.flatten(1))
            start += 512 * size**2
        # One bin over the whole map is its maximum.
        assert torch.equal(pooled[1, :512], features[1].amax((1, 2)))
        assert not pooled[2].any()

    def test_it_survives_a_checkpoint_and_trains(self, tmp_path):
        torch.manual_seed(0)
        detector = build_detector(["a"], preset("small", pool_levels=(1, 2), head_channels=8))
        save_detector(tmp_path / "model.safetensors", detector)
        assert load_detector(tmp_path).config.pool_levels == (1, 2)
        boxes, labels = torch.tensor([[[10.0, 10, 60, 50]]]), torch.ones(1, 1, dtype=torch.int64)
        images, sizes = torch.randn(1, 3, 64, 96), torch.tensor([[64, 96]])
        losses: Any = detector(images, sizes, boxes, labels, torch.tensor([1]))
        torch.stack(list(losses.values())).sum().backward()
        assert detector.roi_head.body.fc6.weight.shape == (8, 64 * 5)
        assert (detector.roi_head.body.fc6.weight.grad != 0).any()

    def test_one_level_is_plain_pooling(self):
        config = preset("squeezenet1_0", pool_levels=(7,), head_channels=8)
        torch.manual_seed(0)
        pyramid = build_detector(["a"], config)
        torch.manual_seed(0)
        plain = build_detector(["a"], preset("squeezenet1_0", head_channels=8))
        rois = torch.tensor([[0, 5.0, 9, 100, 130]])
        features = [torch.randn(1, 512, 9, 12)]
        hidden = [d.roi_head.body(d.roi_head.pool(features, rois)) for d in (pyramid, plain)]
        assert torch.equal(*hidden)

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(ValueError, match=r"pool_levels: got \(1, 2\) with head 'conv'"):
            preset("small", pool_levels=(1, 2), head="conv")
        with pytest.raises(ValueError, match=r"pool_levels: got .*expected from 1"):
            preset("small", pool_levels=(0, 2))

    @pytest.mark.parametrize("given", [["1,2,3,6"], ["1", "2", "3", "6"], ["1,2", "3,6"]])
    def test_on_the_command_line(self, given):
        parser = argparse.ArgumentParser()
        add_options(parser.add_argument_group("detector"), DetectorConfig)
        args = parser.parse_args(
            ["--pool-levels", *given, "--proposals-train", "50,20", "--anchor-sizes", "8,9", "3,4"]
        )
        assert chosen(args, DetectorConfig) == {
            "pool_levels": (1, 2, 3, 6), "proposals_train": (50, 20), "anchor_sizes": ((8, 9), (3, 4)),
        }  # fmt: skip
        with pytest.raises(ValueError, match="proposals_train: got"):
            DetectorConfig(**chosen(parser.parse_args(["--proposals-train", "50"]), DetectorConfig))
