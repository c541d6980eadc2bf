"""The training loop. It knows nothing of files and consoles: it calls back."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from frcnn_fast.data import Batch
from frcnn_fast.model.detector import FasterRCNN
from frcnn_fast.training.interrupt import StopOnSignal
from frcnn_fast.training.options import TrainOptions
from frcnn_fast.training.schemes import Stage

Record = dict[str, Any]


class Fitted(NamedTuple):
    """How far training came."""

    iterations: int
    stopped_by: signal.Signals | None  # Ctrl-C or SIGTERM


def make_optimizer(detector: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """The optimiser of the parameters that are not frozen."""
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=options.lr, weight_decay=options.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay, fused=True
    )


def train_step(
    detector: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    clip: float = 0.0,
    minimised: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """One update of the weights. Returns the losses named in `minimised` (default: all), still on the device."""
    chosen: dict[str, Any] = {} if minimised is None else {"losses": minimised}
    if batch.proposals is not None:
        chosen |= {"proposals": batch.proposals, "proposal_counts": batch.proposal_counts}
    losses = detector(
        batch.images,
        batch.image_sizes,
        batch.gt_boxes,
        batch.gt_labels,
        batch.gt_counts,
        batch.crowd,
        batch.image_scales,
        **chosen,
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
    advance: Callable[[int], object] = lambda images: None,
) -> Fitted:
    """Train through the stages of options.scheme, or until Ctrl-C, SIGTERM or `log` ends it.

    Args:
        batches: at least as many as the stages have iterations.
        log: called every options.log_every iterations, and before every checkpoint, with the mean losses, the rate and
            the learning rate; returning True ends the training.
        save: called with the number of iterations done every options.checkpoint_every, and at the end.
        advance: called after every iteration with its number of images.

    Raises:
        FloatingPointError: a loss is not finite; the last checkpoint stays.
    """
    detector.train()
    stages = options.stages()
    total = sum(stage.iterations for stage in stages)
    frozen = {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    source, mean, done = iter(batches), _MeanLosses(options), 0
    with StopOnSignal() as signals:
        for stage in stages:
            _choose_trainable(detector, stage, frozen)
            optimizer = make_optimizer(detector, options)
            schedule = dataclasses.replace(options, iterations=stage.iterations)
            for iteration, batch in enumerate(islice(source, stage.iterations)):
                lr = schedule.lr_at(iteration)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                batch = batch.to(device, non_blocking=True)
                mean.add(train_step(detector, batch, optimizer, options.clip, stage.losses))
                done += 1
                advance(len(batch))
                stop = signals.received is not None
                checkpoint = stop or done % options.checkpoint_every == 0 or done == total
                # A record before every checkpoint: it finds out whether the weights are worth keeping.
                if checkpoint or done % options.log_every == 0:
                    stop = bool(log(mean.record(done, lr))) or stop
                if checkpoint or stop:
                    save(done)
                if stop:
                    return Fitted(done, signals.received)
    return Fitted(done, None)


def _choose_trainable(detector: nn.Module, stage: Stage, frozen: Collection[str]) -> None:
    for name, parameter in detector.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] in stage.trainable and name not in frozen)


class _MeanLosses:
    """Sums the losses on the device, so that only a record waits for it."""

    def __init__(self, options: TrainOptions) -> None:
        self.options = options
        self._begin()

    def _begin(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps, self.since = 0, time.perf_counter()

    def add(self, losses: dict[str, Tensor]) -> None:
        self.sums = {name: self.sums[name] + loss if name in self.sums else loss for name, loss in losses.items()}
        self.steps += 1

    def record(self, done: int, lr: float) -> Record:
        """The means since the last record, or since the beginning."""
        losses = {name: float(total) / self.steps for name, total in self.sums.items()}
        loss = sum(losses.values())
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at iteration {done} ({losses}): training diverged; lower the learning rate "
                f"(now {self.options.lr}) or clip the gradient (now {self.options.clip or 'off'})"
            )
        rate = self.steps * self.options.batch_size / (time.perf_counter() - self.since)
        self._begin()
        return {"iteration": done, "loss": loss, **losses, "lr": lr, "images_per_second": rate}
