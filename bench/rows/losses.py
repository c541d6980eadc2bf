"""The focal loss of dense detectors: its sum, and the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench import competitors
from bench.case import Case, Competitor, Row
from bench.checks import close_to
from frcnn_fast import ops

FAMILY, PLACE = "losses", 7

FLOPS = 60  # of an element and its slope, each


def one_hot(classes: Tensor, C: int) -> Tensor:
    """What losses without classes are given: [N, C]."""
    return (classes[:, None] == torch.arange(C, device=classes.device)).float()


def in_torch(inputs: Tensor, classes: Tensor) -> Tensor:
    """The loss of classes as mmdetection computes it where nothing is compiled."""
    t = one_hot(classes, inputs.shape[1])
    p = inputs.sigmoid()
    q = (1 - p) * t + p * (1 - t)
    factor = (0.25 * t + 0.75 * (1 - t)) * q.pow(2.0)
    return (torch.nn.functional.binary_cross_entropy_with_logits(inputs, t, reduction="none") * factor).sum()


def _focal_loss(N: int, C: int, by_class: bool, backward: bool) -> Callable[[str], Case]:
    """by_class: the classes of rows for targets, else a table of zeros and ones."""

    def make(device: str) -> Case:
        g = torch.Generator().manual_seed(5)
        leaf = (torch.randn(N, C, generator=g) * 2 - 4).to(device).requires_grad_(backward)
        classes = torch.randint(0, C, (N,), generator=g)
        classes[torch.rand(N, generator=g) < 0.99] = C
        classes = classes.to(device)
        targets = classes if by_class else one_hot(classes, C)

        def step(loss: Callable[[Tensor, Tensor], Tensor]) -> Any:
            found = loss(leaf, targets)
            return (found.detach(), *torch.autograd.grad(found, leaf)) if backward else found

        def run(backend: str | None = None) -> Any:
            return step(lambda x, t: ops.sigmoid_focal_loss(x, t, reduction="sum", backend=backend))

        against: dict[str, Competitor] = {}
        if by_class:
            against["PyTorch"] = Competitor(lambda: step(in_torch))
        elif not competitors.torchvision_missing:
            import torchvision.ops as tv

            against["torchvision"] = Competitor(lambda: step(lambda x, t: tv.sigmoid_focal_loss(x, t, reduction="sum")))
        moved = N * C * ((8 if by_class else 12) * (2 if backward else 1))
        # The sum is torch's, which depends on the number of threads.
        return Case(run, close_to(lambda: run("reference")), against, moved, N * C * FLOPS * (2 if backward else 1))

    return make


def _rows() -> Iterator[Row]:
    for N, C in ((120000, 80), (2000, 20)):
        for by_class in (False, True):
            for backward in (False, True):
                name = f"{N}x{C}{', classes' if by_class else ''}{', and the gradient' if backward else ''}"
                yield Row("sigmoid_focal_loss", name, _focal_loss(N, C, by_class, backward))


ROWS = tuple(_rows())
