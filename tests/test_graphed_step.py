"""Iterations replayed as graphs: what surrounds the graphs, on a processor; test_graphs has the graphs themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from frcnn_fast.data import Batch, DigitsDetection
from frcnn_fast.model import FasterRCNN, SmallBackbone, preset
from frcnn_fast.model.losses import ROI_LOSSES, RPN_LOSSES
from frcnn_fast.training import Training, TrainOptions, recipe
from frcnn_fast.training import graph as graphs
from frcnn_fast.training.batches import TrainingBatches
from frcnn_fast.training.graph import GraphedStep, Losses
from frcnn_fast.training.optim import make_optimizer, set_rate

CPU = torch.device("cpu")


class Again:
    """In the place of CUDA's graphs: a replay calls the step again, on the buffers that were there at its recording."""

    def __init__(self) -> None:
        self.ran, self.recorded, self.replayed = 0, 0, 0

    def run(self, call: Callable[[], Losses]) -> Losses:
        self.ran += 1
        return call()

    def record(self, call: Callable[[], Losses]) -> tuple[Callable[[], object], Losses]:
        self.recorded += 1
        losses = {name: torch.zeros(()) for name in RPN_LOSSES + ROI_LOSSES}

        def replay() -> None:
            self.replayed += 1
            for name, loss in call().items():
                losses[name].copy_(loss.detach())

        return replay, losses


def training(**changes: Any) -> Training:
    options = recipe("small", iterations=40, batch_size=2, device="cpu", warmup=3, **changes)
    torch.manual_seed(1)
    detector = FasterRCNN(SmallBackbone(), 11, preset("small", roi_batch_size=16, head_channels=16))
    return Training(detector, options, CPU)


def batches(count: int, options: TrainOptions) -> list[Batch]:
    return list(TrainingBatches(DigitsDetection("train", length=12), preset("small"), options, total=count))


def weights(detector: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in detector.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_replays_update_the_weights_as_iterations_do(optimizer: str) -> None:
    eager, replayed, again = training(optimizer=optimizer, lr=1e-3), training(optimizer=optimizer, lr=1e-3), Again()
    replayed._step = GraphedStep(replayed._eager_step, again)
    given = batches(9, eager.options)
    smaller = torch.tensor([[160, 200], [192, 210]])  # another shape, from time to time
    for place, batch in enumerate(given):
        if place % 3 == 2:
            batch.images, batch.image_sizes = batch.images[..., :224].contiguous(), smaller
        mine, theirs = eager.update(batch), replayed.update(copy.deepcopy(batch))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert (again.ran, again.recorded, again.replayed) == (2 * 2, 2, 9 - 2 * 2)
    a, b = weights(eager.detector), weights(replayed.detector)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_rate_in_a_tensor_is_set_in_place() -> None:
    one = training()
    options = recipe("small", optimizer="sgd", lr=0.25, backbone_lr=0.5, cuda_graph=True)
    optimizer = make_optimizer(one.detector, options)
    rates = [group["lr"] for group in optimizer.param_groups]
    set_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0625, 0.125]
    assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates, strict=True))


def test_few_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_MOST_GRAPHS", 1)
    again, one = Again(), training()
    step = GraphedStep(one._eager_step, again)
    (batch,) = batches(1, one.options)
    narrow = copy.deepcopy(batch)
    narrow.images = narrow.images[..., :224].contiguous()
    narrow.image_sizes = torch.tensor([[192, 224]] * 2)
    for _ in range(4):
        step(batch)
        step(narrow)
    assert (again.recorded, again.replayed, again.ran) == (1, 2, 2 + 4)


class Calls(TorchDispatchMode):
    """Every operation, with the shapes and types of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        self.calls.append((str(func), [(tuple(t.shape), t.dtype) for t in tensors]))
        return func(*args, **(kwargs or {}))


def test_every_iteration_of_a_shape_makes_the_same_calls_and_asks_for_no_value() -> None:
    """What a recorded graph takes for granted."""
    one = training(optimizer="sgd", lr=1e-3)
    options = recipe("small", optimizer="sgd", cuda_graph=True)
    one.optimizer = make_optimizer(one.detector, options)  # the rates in tensors
    seen = []
    for batch in map(graphs.padded, batches(5, one.options)):
        with Calls() as calls:
            one._step(batch)
        seen.append(calls.calls)
    assert len({tuple(batch.gt_labels.shape) for batch in batches(5, one.options)}) > 1  # the numbers of objects differ
    assert len(seen[1]) > 100
    assert seen[1] == seen[2] == seen[3] == seen[4]  # the first one makes the optimiser's buffers
    asked = {name for name, _ in seen[1]}
    assert not {name for name in asked if "_local_scalar_dense" in name or "nonzero" in name or "item" in name}


def test_it_is_refused_where_there_is_no_gpu() -> None:
    with pytest.raises(ValueError, match=r"cuda_graph: got it with 1 process\(es\) on cpu, expected one process"):
        training(cuda_graph=True)


def test_padding_to_powers_of_two() -> None:
    assert [graphs._missing(rows, 16) for rows in (0, 1, 16, 17, 32, 33)] == [16, 15, 0, 15, 0, 31]
