"""A training in progress, and its state."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from frcnn_fast._ranks import ALONE, Ranks
from frcnn_fast.data import Batch
from frcnn_fast.model.detector import FasterRCNN
from frcnn_fast.training.checkpoints import State, prefixed
from frcnn_fast.training.ema import Averaged
from frcnn_fast.training.graph import CudaRecorder, GraphedStep, Step
from frcnn_fast.training.optim import load_optimizer, make_optimizer, optimizer_tensors, set_rate
from frcnn_fast.training.options import TrainOptions
from frcnn_fast.training.randomness import load_random, random_tensors
from frcnn_fast.training.schemes import beginning, prepare, renew
from frcnn_fast.training.step import train_step


@dataclasses.dataclass
class Progress:
    """The scores of a training's evaluations."""

    best: float | None = None
    best_at: int = 0  # iterations
    evaluated: int = 0  # iterations at the last evaluation
    since_best: int = 0  # evaluations

    def add(self, score: float | None, done: int) -> None:
        self.evaluated = done
        if score is None:
            return
        if self.is_better(score):
            self.best, self.best_at, self.since_best = score, done, 0
        else:
            self.since_best += 1

    def is_better(self, score: float) -> bool:
        """NaN is not."""
        return score == score and (self.best is None or score > self.best)


class Training:
    """A training in progress: which stage and iteration it is at, and everything that its next update depends on.

    Args:
        detector: on `device`, with the weights that training starts from; parameters that do not require a gradient
            now are never trained.
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
        if options.cuda_graph and (device.type != "cuda" or ranks.count > 1):
            raise ValueError(
                f"cuda_graph: got it with {ranks.count} process(es) on {device.type}, expected one process on a CUDA "
                "device; leave it out"
            )
        if options.compile:
            detector.backbone.compile()
        if ranks.count > 1:
            detector.mean_over_ranks = ranks.mean
        self._initial = beginning(detector, self.stages)
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
        prepare(self.detector, stage, self._frozen)
        self.optimizer = make_optimizer(self.detector, self.options)
        self._module: nn.Module = self.detector
        if self.ranks.count > 1:
            own = [self.device.index] if self.device.type == "cuda" else None
            with warnings.catch_warnings():
                # Its successor would still make the ranks' random seeds the same.
                warnings.simplefilter("ignore", FutureWarning)
                self._module = DistributedDataParallel(self.detector, own, broadcast_buffers=False)
        self._average = Averaged(self.detector, self.options.ema) if self.options.ema else None
        self._schedule = dataclasses.replace(self.options, iterations=stage.iterations)
        self._step: Step = self._eager_step
        if self.options.cuda_graph:
            self._step = GraphedStep(self._eager_step, CudaRecorder(self.device))

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return self._schedule.lr_at(self.iteration)

    def next_stage(self) -> None:
        """The next stage goes on from what this one has kept: its average, where there is one."""
        if self._average is not None:
            self.detector.load_state_dict(self._average.detector.state_dict())
        self.stage, self.iteration = self.stage + 1, 0
        renew(self.detector, self.stages[self.stage], self._initial)
        self._begin()

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One iteration. Returns its losses, still on the device."""
        set_rate(self.optimizer, self.lr)
        losses = self._step(batch)
        self.iteration += 1
        if self._average is not None:
            self._average.update(self.detector, self.iteration)
        return losses

    def _eager_step(self, batch: Batch) -> dict[str, Tensor]:
        options, stage = self.options, self.stages[self.stage]
        return train_step(
            self._module,
            batch,
            self.optimizer,
            options.clip,
            stage.losses,
            stage.through_boxes,
            precision=options.precision,
            scaler=self._scaler,
            parts=options.accumulate,
        )

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
