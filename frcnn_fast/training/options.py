"""How a detector is trained: optimiser, schedule, batches."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from frcnn_fast._options import check_choices, option
from frcnn_fast._settings import check_settings
from frcnn_fast.training.schemes import SCHEMES, Stage
from frcnn_fast.training.step import PRECISIONS


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """The schedule counts iterations, so that its result does not depend on the machine's speed.

    The defaults are the paper's: 60,000 mini-batches of one image at 0.001, 20,000 at 0.0001 (Ren et al. §3.1.3).
    """

    scheme: str = option("approximate-joint", "what is trained when", tuple(SCHEMES))
    iterations: int = option(80_000, "mini-batches; of each stage, where the scheme has several")
    epochs: float | None = option(None, "instead of iterations: passes over the images, mirror images not counted")
    batch_size: int = option(1, "images in one")
    optimizer: str = option("sgd", "sgd (with momentum) or adamw", ("sgd", "adamw"))
    lr: float = option(1e-3, "learning rate after the warm-up")
    momentum: float = option(0.9, "of sgd")
    weight_decay: float = option(5e-4, "pull of the weights towards zero")
    warmup: int = option(100, "iterations over which the learning rate grows to its full size")
    schedule: str = option("steps", "steps at the milestones, or cosine down to zero", ("steps", "cosine"))
    milestones: tuple[float, ...] = option(
        (0.75,), "iterations, or below 1 shares of the training, at which the learning rate is multiplied ..."
    )
    lr_factor: float = option(0.1, "... by this")
    backbone_lr: float = option(1.0, "factor of the backbone's learning rate")
    clip: float = option(0.0, "upper bound of the gradient's norm; 0: none")
    accumulate: int = option(1, "compute a mini-batch in so many parts, one after the other: less memory")
    precision: str = option(
        "float32", "of convolutions and products; weights and losses stay float32", tuple(PRECISIONS)
    )
    ema: float = option(0.0, "keep a moving average of the weights, which forgets 1 - this each iteration; 0: none")
    compile: bool = option(False, "compile the backbone with torch.compile")
    cuda_graph: bool = option(False, "replay whole iterations as CUDA graphs: one GPU, one process")
    flips: bool = option(True, "double the training set by mirror images")
    multi_scale: tuple[int, ...] | None = option(
        None, "lengths of the shorter side, one of which is drawn for each mini-batch (default: the detector's shorter)"
    )
    group_shapes: bool = option(False, "mini-batches of wide or of tall images alone, which need less padding")
    freeze: int | None = option(
        None, "first stages of the backbone that stay as loaded (default: where weights are given, as the paper)"
    )
    seed: int = option(0, "of weights, images' order and samples")
    workers: int = option(0, "processes that prepare images; 0: this one does")
    log_every: int = option(20, "iterations between two records of metrics.jsonl")
    checkpoint_every: int = option(500, "iterations between two checkpoints")
    eval_every: int = option(0, "iterations between two evaluations; 0: one, at the end")
    best_by: str = option("map_area", "score by which the best weights are kept", ("map_area", "map07"))
    patience: int = option(0, "evaluations without a better score after which training ends; 0: never")
    keep: int = option(1, "checkpoints before the last one that stay")
    tensorboard: bool = option(False, "write the records for TensorBoard, too (extra: tensorboard)")
    device: str | None = option(None, "cpu, cuda, ... (default: a GPU where there is one)")

    def __post_init__(self) -> None:
        if isinstance(self.multi_scale, list):
            object.__setattr__(self, "multi_scale", tuple(self.multi_scale))
        check_settings(self, {"multi_scale": (1, 2**31)})
        check_choices(self)
        for name in ("iterations", "batch_size", "accumulate", "log_every", "checkpoint_every"):
            _expect(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("momentum", "weight_decay", "warmup", "clip", "seed", "workers", "keep", "eval_every", "patience"):
            _expect(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        _expect("lr", self.lr, self.lr > 0, "a positive learning rate")
        _expect("backbone_lr", self.backbone_lr, self.backbone_lr > 0, "a positive factor (--freeze stops stages)")
        _expect("ema", self.ema, 0 <= self.ema < 1, "at least 0 and less than 1")
        _expect(
            "accumulate", self.accumulate, self.accumulate <= self.batch_size, f"at most batch_size, {self.batch_size}"
        )
        _expect("epochs", self.epochs, self.epochs is None or self.epochs > 0, "a positive number of passes")

    def for_images(self, count: int) -> TrainOptions:
        """The same with `epochs` turned into iterations over so many training images."""
        if self.epochs is None:
            return self
        iterations = max(1, math.ceil(self.epochs * count / self.batch_size))
        return dataclasses.replace(self, iterations=iterations, epochs=None)

    def stages(self) -> list[Stage]:
        return SCHEMES[self.scheme](self.iterations)

    def lr_at(self, iteration: int) -> float:
        """The learning rate of iteration 0, 1, ..."""
        if iteration < self.warmup:
            return self.lr * (iteration + 1) / self.warmup
        if self.schedule == "steps":
            steps = (step if step >= 1 else step * self.iterations for step in self.milestones)
            return self.lr * self.lr_factor ** sum(iteration >= step for step in steps)
        done = (iteration - self.warmup) / max(1, self.iterations - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


def recipe(backbone: str, **changes: Any) -> TrainOptions:
    """The options that suit a known backbone, or else any, with `changes` on top."""
    return TrainOptions(**{**_RECIPES.get(backbone, _CUSTOM), **changes})


_CUSTOM: dict[str, Any] = {"iterations": 5000, "batch_size": 2, "lr": 0.005, "schedule": "cosine", "clip": 10.0}

# Fine-tuning from ImageNet's weights: the learning rate of 16 images, 0.02, for two.
_RESNET: dict[str, Any] = {
    "iterations": 20_000,
    "batch_size": 2,
    "lr": 0.0025,
    "weight_decay": 1e-4,
    "warmup": 500,
    "schedule": "cosine",
    "clip": 10.0,
}

_RECIPES: dict[str, dict[str, Any]] = {
    "vgg16": {},
    "zf": {},
    **{f"resnet{depth}_{kind}": _RESNET for depth in (18, 34, 50, 101) for kind in ("c4", "fpn")},
    "mobilenet_v3_large_fpn": _RESNET,
    "squeezenet1_0": {"iterations": 600, "batch_size": 2, "lr": 0.004, "schedule": "cosine"},
    "small": {
        "iterations": 2000,
        "batch_size": 4,
        "optimizer": "adamw",
        "lr": 1.2e-3,
        "weight_decay": 0.01,
        "schedule": "cosine",
        "clip": 5.0,
        "flips": False,
    },
}


def _expect(name: str, value: object, right: bool, expected: str) -> None:
    if not right:
        raise ValueError(f"{name}: got {value!r}, expected {expected}")
