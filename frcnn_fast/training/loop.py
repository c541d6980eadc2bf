"""The training loop. It knows nothing of files and consoles: it calls back."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from frcnn_fast._ranks import Ranks
from frcnn_fast.data import Batch
from frcnn_fast.training.interrupt import StopOnSignal
from frcnn_fast.training.options import TrainOptions
from frcnn_fast.training.schemes import Stage, set_modes
from frcnn_fast.training.state import Training

Record = dict[str, Any]

_AGREE_EVERY = 8  # iterations between two questions of the ranks whether one of them was told to stop


class Fitted(NamedTuple):
    """How far training came."""

    iterations: int
    stopped_by: signal.Signals | None  # Ctrl-C or SIGTERM


def fit(
    training: Training,
    batches: Callable[[int, int], Iterable[Batch]],
    *,
    log: Callable[[Record], bool | None],
    save: Callable[[], None],
    evaluate: Callable[[], float | None] | None = None,
    finish: Callable[[Stage], object] = lambda stage: None,
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
        finish: called when a stage has come to its end, after `save`; once more where a training goes on from there.
        advance: called after every iteration with its number of images.

    Raises:
        FloatingPointError: a loss is not finite; the last checkpoint stays.
    """
    options, ranks, mean = training.options, training.ranks, _MeanLosses(training.options, training.ranks)
    if options.eval_every == 0:
        evaluate = None
    set_modes(training.detector, training.stages[training.stage])
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
            set_modes(training.detector, training.stages[training.stage])
            save()
            return bool(options.patience) and training.progress.since_best >= options.patience

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
            finish(training.stages[training.stage])
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
