"""The training loop: approximate joint training (Ren et al. §3.2), one optimiser over both stages' losses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from frcnn_fast._command import progress_bar
from frcnn_fast.data import Batch
from frcnn_fast.model.detector import FasterRCNN
from frcnn_fast.training.interrupt import StopOnInterrupt
from frcnn_fast.training.options import TrainOptions

Record = dict[str, Any]


class Fitted(NamedTuple):
    """How far training came."""

    iterations: int
    interrupted: bool  # by Ctrl-C


def make_optimizer(detector: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """The optimiser of the parameters that are not frozen."""
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=options.lr, weight_decay=options.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay, fused=True
    )


def train_step(
    detector: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, clip: float = 0.0
) -> dict[str, Tensor]:
    """One update of the weights; the losses stay on the device."""
    losses = detector(
        batch.images,
        batch.image_sizes,
        batch.gt_boxes,
        batch.gt_labels,
        batch.gt_counts,
        batch.crowd,
        batch.image_scales,
    )
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    if clip:
        clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    optimizer.step()
    return {name: loss.detach() for name, loss in losses.items()}


def fit(
    detector: FasterRCNN,
    batches: Iterable[Batch],
    options: TrainOptions,
    *,
    log: Callable[[Record], bool | None],
    save: Callable[[int], None],
    device: torch.device,
) -> Fitted:
    """Train on options.iterations batches, or fewer after Ctrl-C or where `log` says so.

    Args:
        log: called every options.log_every iterations, and before every checkpoint, with the mean losses, the rate and
            the learning rate; returning True ends the training.
        save: called with the number of iterations done every options.checkpoint_every, and at the end.

    Raises:
        FloatingPointError: a loss is not finite; the last checkpoint stays.
    """
    detector.train()
    optimizer = make_optimizer(detector, options)
    sums: dict[str, Tensor] = {}
    since, done, steps = time.perf_counter(), 0, 0
    bar = progress_bar(options.iterations * options.batch_size, smoothing=0.05)
    with StopOnInterrupt() as interrupt, bar as progress:
        for batch in batches:
            for group in optimizer.param_groups:
                group["lr"] = options.lr_at(done)
            losses = train_step(detector, batch.to(device, non_blocking=True), optimizer, options.clip)
            sums = {name: sums[name] + loss if name in sums else loss for name, loss in losses.items()}
            done, steps = done + 1, steps + 1
            progress.update(len(batch))
            stop = interrupt.requested
            checkpoint = stop or done % options.checkpoint_every == 0 or done == options.iterations
            # A record before every checkpoint: it finds out whether the weights are worth keeping.
            if checkpoint or done % options.log_every == 0:
                now = time.perf_counter()
                record = _record(done, steps, sums, options, now - since)
                sums, since, steps = {}, now, 0
                progress.set_postfix_str(_summary(record), refresh=False)
                stop = bool(log(record)) or stop
            if checkpoint or stop:
                save(done)
            if stop:
                break
    return Fitted(done, interrupt.requested)


def _record(done: int, steps: int, sums: dict[str, Tensor], options: TrainOptions, seconds: float) -> Record:
    losses = {name: float(total) / steps for name, total in sums.items()}
    loss = sum(losses.values())
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} at iteration {done} ({losses}): training diverged; lower the learning rate "
            f"(now {options.lr}) or clip the gradient (now {options.clip or 'off'})"
        )
    return {
        "iteration": done,
        "loss": loss,
        **losses,
        "lr": options.lr_at(done - 1),
        "images_per_second": steps * options.batch_size / seconds,
    }


def _summary(record: Record) -> str:
    short = {
        "loss": "loss",
        "loss_objectness": "objectness",
        "loss_rpn_box_reg": "proposals",
        "loss_classifier": "classes",
        "loss_box_reg": "boxes",
    }
    return " ".join(f"{short[name]} {value:.3f}" for name, value in record.items() if name in short)
