"""What a training is going to do, in a few lines, and what about it makes no sense."""

from __future__ import annotations

import torch

from frcnn_fast.model import FasterRCNN
from frcnn_fast.training.options import TrainOptions

# Trained from nothing on a few thousand images, these learn next to nothing.
_NEED_WEIGHTS = ("vgg16", "zf", "squeezenet", "resnet", "mobilenet", "timm")
_MANY_PASSES = 1000
_LONG = 24 * 3600.0


def plan(
    detector: FasterRCNN, options: TrainOptions, images: int, device: torch.device, from_weights: bool
) -> list[str]:
    """Lines for the console; those that begin with "warning:" say what to do instead."""
    stages = len(options.stages())
    passes = stages * options.iterations * options.batch_size / images
    several = f"{stages} stages of " if stages > 1 else ""
    parameters = list(detector.parameters())
    total = sum(p.numel() for p in parameters)
    moving = sum(p.numel() for p in parameters if p.requires_grad)
    bytes_each = 4 * (2 + (2 if options.optimizer == "adamw" else 1))  # weight, gradient and what the optimiser keeps
    lines = [
        f"detector: {detector.config.backbone}, {len(detector.class_names)} classes, {_millions(total)} parameters"
        f"{_frozen(detector)}",
        f"training: {options.scheme}, {several}{options.iterations} iterations of {options.batch_size} on {images} "
        f"images ({passes:.3g} passes) by {options.optimizer} at {options.lr:.3g}",
        f"memory: {_bytes(total * 4 + moving * (bytes_each - 4))} for weights, gradients and optimiser, the maps of "
        f"{options.batch_size} images besides; a checkpoint has {_bytes(total * 4 + moving * (bytes_each - 8))}",
        f"device: {_device(device)}",
    ]
    name = detector.config.backbone.lower()
    if not from_weights and any(part in name for part in _NEED_WEIGHTS):
        lines.append(
            f"warning: {detector.config.backbone} begins with random weights, from which it learns little; give "
            "ImageNet's with --weights FILE, or take --backbone small"
        )
    late = [step for step in options.milestones if step >= max(1, options.iterations)]
    if options.schedule == "steps" and late:
        lines.append(
            f"warning: the learning rate never falls: the milestone {late[0]:g} is not before the end, "
            f"{options.iterations}; give milestones as shares, such as 0.75"
        )
    if options.warmup >= options.iterations:
        lines.append(
            f"warning: the warm-up of {options.warmup} iterations is as long as the training, {options.iterations}"
        )
    if passes > _MANY_PASSES:
        lines.append(f"warning: every image will be seen {passes:.0f} times; --epochs 100 would do for most data")
    return lines


def time_left(seconds: float) -> list[str]:
    """How long it will take, from the first iterations."""
    lines = [f"time: about {duration(seconds)} at the speed of the first iterations"]
    if seconds > _LONG:
        lines.append(
            f"warning: {duration(seconds)} is long; fewer --iterations, smaller images (--shorter, --longer), a "
            "smaller --backbone or a GPU make it shorter"
        )
    return lines


def duration(seconds: float) -> str:
    """90 -> "2 min", 5000 -> "1 h 23 min", 400000 -> "111 h"."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 24 * 60 else f"{minutes // 60} h"


def _frozen(detector: FasterRCNN) -> str:
    still = sum(p.numel() for p in detector.parameters() if not p.requires_grad)
    if not still:
        return ", none of them frozen"
    parts = sorted({name.partition(".")[0] for name, p in detector.named_parameters() if not p.requires_grad})
    return f", {_millions(still)} of them frozen (in {', '.join(parts)})"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {_bytes(properties.total_memory)}"
    return f"{device}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} million" if count >= 1e5 else str(count)


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"
