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
from frcnn_fast.training.checkpoints import State, prefixed
from frcnn_fast.training.interrupt import StopOnSignal
from frcnn_fast.training.optim import load_optimizer, make_optimizer, optimizer_tensors, set_rate
from frcnn_fast.training.options import TrainOptions
from frcnn_fast.training.randomness import load_random, random_tensors
from frcnn_fast.training.schemes import Stage, beginning, prepare, renew, set_modes

Record = dict[str, Any]


class Fitted(NamedTuple):
    """How far training came."""

    iterations: int
    stopped_by: signal.Signals | None  # Ctrl-C or SIGTERM


def train_step(
    detector: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    clip: float = 0.0,
    minimised: Collection[str] | None = None,
    through_boxes: bool = False,
) -> dict[str, Tensor]:
    """One update of the weights. Returns the losses named in `minimised` (default: all), still on the device.

    through_boxes: as in `FasterRCNN.forward`.
    """
    chosen: dict[str, Any] = {} if minimised is None else {"losses": minimised}
    if through_boxes:
        chosen["through_boxes"] = True
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


class Training:
    """A training in progress: which stage and iteration it is at, and everything that its next update depends on.

    Args:
        detector: on `device`, with the weights that training starts from; parameters that do not require a gradient
            now are never trained.
        options: the stages and their schedule.

    `state` is all of it as tensors and plain values; `restore` puts it back, so that the updates after it are the same
    to the bit (on a processor, and elsewhere as far as torch is deterministic there).
    """

    def __init__(self, detector: FasterRCNN, options: TrainOptions, device: torch.device) -> None:
        self.detector, self.options, self.device = detector, options, device
        self.stages = options.stages()
        self.total = sum(stage.iterations for stage in self.stages)
        self.stage = 0  # of `stages`
        self.iteration = 0  # done in this stage
        self._frozen = {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
        self._initial = beginning(detector, self.stages)
        self._begin()

    @property
    def done(self) -> int:
        """Iterations of all stages together."""
        return sum(stage.iterations for stage in self.stages[: self.stage]) + self.iteration

    def _begin(self) -> None:
        """The parts that this stage trains, its optimiser and its schedule."""
        stage = self.stages[self.stage]
        prepare(self.detector, stage, self._frozen)
        self.optimizer = make_optimizer(self.detector, self.options)
        self._schedule = dataclasses.replace(self.options, iterations=stage.iterations)

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return self._schedule.lr_at(self.iteration)

    def next_stage(self) -> None:
        self.stage, self.iteration = self.stage + 1, 0
        renew(self.detector, self.stages[self.stage], self._initial)
        self._begin()

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One iteration. Returns its losses, still on the device."""
        set_rate(self.optimizer, self.lr)
        stage = self.stages[self.stage]
        losses = train_step(self.detector, batch, self.optimizer, self.options.clip, stage.losses, stage.through_boxes)
        self.iteration += 1
        return losses

    def state(self) -> State:
        tensors = {
            **prefixed("model", self.detector.state_dict()),
            **prefixed("optimizer", optimizer_tensors(self.optimizer)),
            **prefixed("random", {**random_tensors(self.device), "detector": self.detector.rng}),
        }
        return State(self.done, tensors, {"stage": self.stage, "iteration": self.iteration})

    def restore(self, state: State) -> None:
        """ValueError where the state is of another detector or another training."""
        self.stage, self.iteration = state.facts["stage"], state.facts["iteration"]
        if self.stage >= len(self.stages) or self.done != state.done:
            raise ValueError(
                f"the checkpoint is at iteration {self.iteration} of stage {self.stage}, {state.done} in all, which "
                f"does not fit the {len(self.stages)} stages of {self.options.scheme}"
            )
        try:
            self.detector.load_state_dict(state.part("model"))
        except RuntimeError as error:
            raise ValueError(f"the checkpoint is of another detector: {error}") from error
        self._begin()
        load_optimizer(self.optimizer, state.part("optimizer"))
        random = state.part("random")
        self.detector.rng.copy_(random["detector"])
        load_random(random, self.device)


def fit(
    training: Training,
    batches: Callable[[int, int], Iterable[Batch]],
    *,
    log: Callable[[Record], bool | None],
    save: Callable[[], None],
    finish: Callable[[Stage], object] = lambda stage: None,
    advance: Callable[[int], object] = lambda images: None,
) -> Fitted:
    """Train from where `training` is to the end of its last stage, or until Ctrl-C, SIGTERM or `log` ends it.

    Args:
        batches: called when a stage begins, or goes on, with (iterations done in all, iterations left in the stage);
            gives at least as many batches.
        log: called every options.log_every iterations, and before every checkpoint, with the mean losses, the rate and
            the learning rate; returning True ends the training.
        save: called every options.checkpoint_every iterations, at the end of every stage, and at the end. The
            detector is then as `Training.state` has it.
        finish: called when a stage has come to its end, after `save`; once more where a training goes on from there.
        advance: called after every iteration with its number of images.

    Raises:
        FloatingPointError: a loss is not finite; the last checkpoint stays.
    """
    options, mean = training.options, _MeanLosses(training.options)
    set_modes(training.detector, training.stages[training.stage])
    with StopOnSignal() as signals:
        while True:
            left = training.stages[training.stage].iterations - training.iteration
            for batch in islice(batches(training.done, left), left) if left else ():
                lr = training.lr
                mean.add(training.update(batch.to(training.device, non_blocking=True)), batch.image_ids)
                done = training.done
                advance(len(batch))
                left -= 1
                stop = signals.received is not None
                checkpoint = stop or done % options.checkpoint_every == 0 or left == 0
                # A record before every checkpoint: it finds out whether the weights are worth keeping.
                if checkpoint or done % options.log_every == 0:
                    stop = bool(log(mean.record(done, lr))) or stop
                if checkpoint or stop:
                    save()
                if stop:
                    return Fitted(done, signals.received)
            finish(training.stages[training.stage])
            if training.stage + 1 == len(training.stages):
                return Fitted(training.done, None)
            training.next_stage()


class _MeanLosses:
    """Sums the losses on the device, so that only a record waits for it."""

    def __init__(self, options: TrainOptions) -> None:
        self.options = options
        self._begin()

    def _begin(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps: list[tuple[Tensor, list[str]]] = []  # the sum of the losses and the images of each iteration
        self.images, self.since = 0, time.perf_counter()

    def add(self, losses: dict[str, Tensor], image_ids: list[str]) -> None:
        self.sums = {name: self.sums[name] + loss if name in self.sums else loss for name, loss in losses.items()}
        self.steps.append((torch.stack(list(losses.values())).sum(), image_ids))
        self.images += len(image_ids)

    def record(self, done: int, lr: float) -> Record:
        """The means since the last record, or since the beginning."""
        losses = {name: float(total) / len(self.steps) for name, total in self.sums.items()}
        loss = sum(losses.values())
        if not math.isfinite(loss):
            self._diverged(done)
        rate = self.images / (time.perf_counter() - self.since)
        self._begin()
        return {"iteration": done, "loss": loss, **losses, "lr": lr, "images_per_second": rate}

    def _diverged(self, done: int) -> None:
        before = done - len(self.steps)
        for place, (loss, image_ids) in enumerate(self.steps, start=1):
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {float(loss)} at iteration {before + place} on the images {', '.join(image_ids)}: "
                    f"training diverged; lower the learning rate (now {self.options.lr}) or clip the gradient (now "
                    f"{self.options.clip or 'off'}), or look at these images"
                )
        raise FloatingPointError(f"the losses up to iteration {done} have no finite mean: lower the learning rate")
