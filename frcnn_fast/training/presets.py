"""Whole trainings by name: what differs from what suits the backbone anyway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Preset -> table -> name -> value; see `frcnn_fast.training.tree`.
PRESETS: dict[str, Mapping[str, Mapping[str, Any]]] = {
    # Ren et al.: 600 pixels, 9 anchors, 60,000 mini-batches of one image at 0.001 and 20,000 at 0.0001.
    "vgg16-voc07": {
        "data": {"dataset": "voc", "train_split": "trainval", "test_split": "test"},
        "detector": {"backbone": "vgg16"},
    },
    # The schedule that detection libraries call 1x: 12 passes over COCO's 118,000 training images.
    "r50-fpn-coco": {
        "data": {"dataset": "coco"},
        "detector": {"backbone": "resnet50_fpn"},
        "training": {
            "iterations": 90_000,
            "batch_size": 16,
            "lr": 0.02,
            "warmup": 1000,
            "schedule": "steps",
            "milestones": (2 / 3, 8 / 9),
            "clip": 0.0,
            "checkpoint_every": 2500,
        },
    },
    # Some hundred images of one's own, from ImageNet's or COCO's weights, on a GPU of any size or with patience.
    "r50-fpn-small": {
        "detector": {
            "backbone": "resnet50_fpn",
            "shorter": 480,
            "longer": 800,
            "proposals_test": (1000, 300),
            "roi_batch_size": 128,
        },
        "training": {"iterations": 3000, "batch_size": 4, "lr": 0.005, "warmup": 250},
    },
    # The blood cells, 364 images of 640 x 480, with ImageNet's weights of SqueezeNet: minutes on a processor. By
    # AdamW: after so few iterations SGD has hardly begun with the rarest class, of which an image has one object.
    "bccd": {
        "data": {"dataset": "voc"},
        "detector": {"backbone": "squeezenet1_0", "shorter": 480, "longer": 960},
        "training": {"optimizer": "adamw", "lr": 2e-4, "weight_decay": 0.01},
    },
    # The embedded data set.
    "digits": {"data": {"dataset": "digits"}, "detector": {"backbone": "small"}},
}
