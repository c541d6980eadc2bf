"""Training schemes (Ren et al. §3.2): what is trained when, as a list of stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from frcnn_fast.model.losses import ROI_LOSSES, RPN_LOSSES


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a training, with an optimiser and a learning rate schedule of its own.

    Attributes:
        losses: which of the losses that the detector returns are minimised, by name.
        trainable: the parts of the detector whose weights move: "backbone", "rpn", "roi_head". What was frozen before
            the training stays so.
        iterations: mini-batches.
    """

    losses: tuple[str, ...]
    trainable: tuple[str, ...]
    iterations: int


def approximate_joint(iterations: int) -> list[Stage]:
    """Both networks at once; proposals are constants to the head's losses."""
    return [Stage(RPN_LOSSES + ROI_LOSSES, ("backbone", "rpn", "roi_head"), iterations)]


# From options.iterations to stages.
SCHEMES: dict[str, Callable[[int], list[Stage]]] = {"approximate-joint": approximate_joint}
