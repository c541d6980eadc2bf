"""The training loop. It knows nothing of files and consoles: it calls back."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from frcnn_fast._ranks import ALONE, Ranks
from frcnn_fast.data import Batch
from frcnn_fast.model.detector import FasterRCNN
from frcnn_fast.training.checkpoints import State, prefixed
from frcnn_fast.training.ema import Averaged
from frcnn_fast.training.interrupt import StopOnSignal
from frcnn_fast.training.optim import load_optimizer, make_optimizer, optimizer_tensors, set_rate
from frcnn_fast.training.options import TrainOptions
from frcnn_fast.training.randomness import load_random, random_tensors
from frcnn_fast.training.step import train_step

Record = dict[str, Any]

_AGREE_EVERY = 8  # iterations between two questions of the ranks whether one of them was told to stop


class Fitted(NamedTuple):
    """How far training came."""

    iterations: int
    stopped_by: signal.Signals | None  # Ctrl-C or SIGTERM


@dataclasses.dataclass
class Progress:
    """The scores of a training's evaluations."""

    best: float | None = None
    best_at: int = 0  # iterations
    evaluated: int = 0  # iterations at the last evaluation
    since_best: int = 0  # evaluations

    def add(self, score: float | None, done: int) -> None:
        better = score is not None and self.is_better(score)
        self.evaluated, self.since_best = done, self.since_best + 1
        if better:
            self.best, self.best_at, self.since_best = score, done, 0

    def is_better(self, score: float) -> bool:
        """NaN is not."""
        return score == score and (self.best is None or score > self.best)


class Training:
    """A training in progress: which stage and iteration it is at, and everything that its next update depends on.

    Args:
        detector: on `device`; parameters that do not require a gradient now are never trained.
        options: the stages and their schedule.

    `state` is all of it as tensors and plain values; `restore` puts it back, so that the updates after it are the same
    to the bit (on a processor, and elsewhere as far as torch is deterministic there).
    """

    def __init__(self, detector: FasterRCNN, options: TrainOptions, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.detector, self.options, self.device, self.ranks = detector, options, device, ranks
        self.stages = options.stages()
        self.total = sum(stage.iterations for stage in self.stages)
        self.stage = 0  # of `stages`
        self.iteration = 0  # done in this stage
        self._frozen = {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
        self._scaler = torch.amp.GradScaler(device.type) if options.precision == "float16" else None
        self.progress = Progress()
        if options.compile:
            detector.backbone.compile()
        if ranks.count > 1:
            detector.mean_over_ranks = ranks.mean
        self._begin()

    @property
    def done(self) -> int:
        """Iterations of all stages together."""
        return sum(stage.iterations for stage in self.stages[: self.stage]) + self.iteration

    @property
    def evaluation_due(self) -> bool:
        """Whether these weights are to be evaluated, and were not."""
        every = self.options.eval_every
        return every > 0 and self.progress.evaluated < self.done and (self.done % every == 0 or self.done == self.total)

    def _begin(self) -> None:
        """The parts that this stage trains, its optimiser and its schedule."""
        stage = self.stages[self.stage]
        for name, parameter in self.detector.named_parameters():
            parameter.requires_grad_(name.partition(".")[0] in stage.trainable and name not in self._frozen)
        self.optimizer = make_optimizer(self.detector, self.options)
        self._module: nn.Module = self.detector
        if self.ranks.count > 1:
            own = [self.device.index] if self.device.type == "cuda" else None
            self._module = DistributedDataParallel(self.detector, own, broadcast_buffers=False)
        self._average = Averaged(self.detector, self.options.ema) if self.options.ema else None
        self._schedule = dataclasses.replace(self.options, iterations=stage.iterations)

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return self._schedule.lr_at(self.iteration)

    def next_stage(self) -> None:
        self.stage, self.iteration = self.stage + 1, 0
        self._begin()

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One iteration. Returns its losses, still on the device."""
        set_rate(self.optimizer, self.lr)
        options = self.options
        losses = train_step(
            self._module,
            batch,
            self.optimizer,
            options.clip,
            self.stages[self.stage].losses,
            precision=options.precision,
            scaler=self._scaler,
            parts=options.parts,
        )
        self.iteration += 1
        if self._average is not None:
            self._average.update(self.detector, self.iteration)
        return losses

    @property
    def outcome(self) -> FasterRCNN:
        """The detector to evaluate and to keep: the one in training, or its average where options.ema asks for that."""
        return self.detector if self._average is None else self._average.detector

    def state(self) -> State:
        """Called in all ranks, which have the same but for their random states."""
        self._agree_on_statistics()
        own = {**random_tensors(self.device), "detector": self.detector.rng.cpu()}
        tensors = {
            **prefixed("model", self.detector.state_dict()),
            **prefixed("optimizer", optimizer_tensors(self.optimizer)),
        }
        for rank, random in enumerate(self.ranks.gathered(own)):
            tensors |= prefixed(f"random.{rank}", random)
        if self._average is not None:
            tensors |= prefixed("average", self._average.detector.state_dict())
        progress = dataclasses.asdict(self.progress)
        facts: dict[str, Any] = {"stage": self.stage, "iteration": self.iteration, "progress": progress}
        if self._scaler is not None:
            facts["scaler"] = self._scaler.state_dict()
        return State(self.done, tensors, facts)

    def _agree_on_statistics(self) -> None:
        """The mean of the batch statistics that the ranks have seen."""
        if self.ranks.count > 1:
            for buffer in self.detector.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.ranks.mean(buffer))

    def restore(self, state: State) -> None:
        """ValueError where the state is of another detector or another training."""
        self.stage, self.iteration = state.facts["stage"], state.facts["iteration"]
        self.progress = Progress(**state.facts["progress"])
        if self.stage >= len(self.stages) or self.done != state.done:
            raise ValueError(
                f"the checkpoint is at iteration {self.iteration} of stage {self.stage}, {state.done} in all, which "
                f"does not fit the {len(self.stages)} stages of {self.options.scheme}"
            )
        self._begin()
        try:
            self.detector.load_state_dict(state.part("model"))
            if self._average is not None:
                self._average.detector.load_state_dict(state.part("average"))
        except RuntimeError as error:
            raise ValueError(f"the checkpoint is of another detector: {error}") from error
        load_optimizer(self.optimizer, state.part("optimizer"))
        if self._scaler is not None:
            self._scaler.load_state_dict(state.facts["scaler"])
        random = state.part(f"random.{self.ranks.rank}")
        if random:  # a rank that was not there then draws anew
            self.detector.rng.copy_(random["detector"])
            load_random(random, self.device)


def fit(
    training: Training,
    batches: Callable[[int, int], Iterable[Batch]],
    *,
    log: Callable[[Record], bool | None],
    save: Callable[[], None],
    evaluate: Callable[[], float | None] | None = None,
    advance: Callable[[int], object] = lambda images: None,
) -> Fitted:
    """Train from where `training` is to the end of its last stage, or until Ctrl-C, SIGTERM, `log` or a lack of
    progress ends it. Every rank calls this.

    Args:
        batches: called when a stage begins, or goes on, with (iterations done in all, iterations left in the stage);
            gives at least as many batches, each rank its own.
        log: called every options.log_every iterations, and before every checkpoint, with the mean losses, the rate and
            the learning rate; returning True ends the training.
        save: called every options.checkpoint_every iterations, before and after every evaluation, at the end of every
            stage, and at the end. The detector is then as `Training.state` has it.
        evaluate: called every options.eval_every iterations (0: never) and at the end; gives the score, the higher the
            better, or None where there is none yet. After options.patience evaluations without a better one the
            training ends.
        advance: called after every iteration with its number of images.

    Raises:
        FloatingPointError: a loss is not finite; the last checkpoint stays.
    """
    options, ranks, mean = training.options, training.ranks, _MeanLosses(training.options, training.ranks)
    if options.eval_every == 0:
        evaluate = None
    with StopOnSignal() as signals:

        def stopped_by(done: int) -> signal.Signals | None:
            # They have to stop at the same iteration; asking each other costs some time.
            if ranks.count > 1 and done % _AGREE_EVERY:
                return None
            return next((received for received in ranks.gathered(signals.received) if received), None)

        def look() -> bool:
            """Evaluate; whether it is time to give up."""
            if evaluate is None:
                return False
            training.progress.add(evaluate(), training.done)
            training.detector.train()
            save()
            return bool(options.patience) and training.progress.since_best >= options.patience

        training.detector.train()
        if training.done and training.evaluation_due and look():  # killed between a checkpoint and its evaluation
            return Fitted(training.done, None)
        while True:
            left = training.stages[training.stage].iterations - training.iteration
            for batch in islice(batches(training.done, left), left) if left else ():
                lr = training.lr
                mean.add(training.update(batch.to(training.device, non_blocking=True)), batch.image_ids)
                done = training.done
                advance(len(batch) * ranks.count)
                left -= 1
                ended_by = stopped_by(done)
                stop = ended_by is not None
                due = evaluate is not None and training.evaluation_due
                checkpoint = stop or due or done % options.checkpoint_every == 0 or left == 0
                # A record before every checkpoint: it finds out whether the weights are worth keeping.
                if checkpoint or done % options.log_every == 0:
                    stop = any(ranks.gathered(bool(log(mean.record(done, lr))))) or stop
                if checkpoint or stop:
                    save()
                if not stop and due:
                    stop = look()
                if stop:
                    return Fitted(done, ended_by)
            if training.stage + 1 == len(training.stages):
                return Fitted(training.done, None)
            training.next_stage()


class _MeanLosses:
    """Sums the losses on the device, so that only a record waits for it."""

    def __init__(self, options: TrainOptions, ranks: Ranks) -> None:
        self.options, self.ranks = options, ranks
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
        """The means of all ranks since the last record, or since the beginning."""
        sums = self.ranks.mean(torch.stack(list(self.sums.values()))).tolist()
        losses = {name: total / len(self.steps) for name, total in zip(self.sums, sums, strict=True)}
        loss = sum(losses.values())
        if not math.isfinite(loss):
            self._diverged(done)
        rate = self.images * self.ranks.count / (time.perf_counter() - self.since)
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
