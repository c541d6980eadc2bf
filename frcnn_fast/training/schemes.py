"""Training schemes (Ren et al. §3.2; Girshick 2015): what is trained when, as a list of stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from frcnn_fast.data import DetectionDataset, ProposalSet, read_proposals
from frcnn_fast.data.augment import unchanged
from frcnn_fast.io import PathLike
from frcnn_fast.model.detector import FasterRCNN
from frcnn_fast.model.losses import ROI_LOSSES, RPN_LOSSES

PARTS = ("backbone", "rpn", "roi_head")

# Where a stage's proposals come from, besides the name of an earlier stage.
FROM_RPN, FROM_FILES = "rpn", "files"

CHECKPOINT, PROPOSALS = "checkpoint", "proposals"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a training, with an optimiser and a learning rate schedule of its own.

    Attributes:
        losses: which of the losses that the detector returns are minimised, by name.
        trainable: the parts of the detector whose weights move: "backbone", "rpn", "roi_head". What was frozen before
            the training stays so. A part that does not move is in eval mode: its batch statistics stay, too.
        iterations: mini-batches.
        name: of its folder in the run; "" where what it keeps lies in the run's own.
        proposals: the head's: `FROM_RPN`, as it is now; `FROM_FILES`, those given to the run; or the name of an earlier
            stage, those that it kept.
        anew: parts that begin as the run began: the backbone with its published weights, new layers at random.
        parts: which networks are of use after it (`DetectorConfig.parts`).
        through_boxes: whether the head's losses have gradients through the proposals' corners.
        keeps: what it leaves at its end: `CHECKPOINT`, `PROPOSALS` (the RPN's, of the training images).
    """

    losses: tuple[str, ...]
    trainable: tuple[str, ...]
    iterations: int
    name: str = ""
    proposals: str = FROM_RPN
    anew: tuple[str, ...] = ()
    parts: str = "both"
    through_boxes: bool = False
    keeps: tuple[str, ...] = ()


def approximate_joint(iterations: int) -> list[Stage]:
    """Both networks at once; proposals are constants to the head's losses."""
    return [Stage(RPN_LOSSES + ROI_LOSSES, PARTS, iterations)]


def non_approximate_joint(iterations: int) -> list[Stage]:
    """Both networks at once, with gradients through the proposals' corners; needs the pooling that has them."""
    return [Stage(RPN_LOSSES + ROI_LOSSES, PARTS, iterations, through_boxes=True)]


def alternating(iterations: int) -> list[Stage]:
    """The paper's four steps (Ren et al. §3.2): each network by itself, the second time on shared convolutions.

    Of what the paper leaves open: the RPN of step 3 begins with new layers, the head of step 4 with those of step 2.
    """
    both = CHECKPOINT, PROPOSALS
    rpn, head = ("backbone", "rpn"), ("backbone", "roi_head")
    return [
        Stage(RPN_LOSSES, rpn, iterations, "1-rpn", parts="rpn", keeps=both),
        Stage(ROI_LOSSES, head, iterations, "2-fast-rcnn", "1-rpn", ("backbone",), "roi_head", keeps=(CHECKPOINT,)),
        Stage(RPN_LOSSES, rpn[1:], iterations, "3-rpn", anew=("rpn",), keeps=both),
        Stage(ROI_LOSSES, head[1:], iterations, "4-fast-rcnn", "3-rpn", keeps=(CHECKPOINT,)),
    ]


def rpn_only(iterations: int) -> list[Stage]:
    """The proposal network alone; the run keeps the proposals of its images."""
    return [Stage(RPN_LOSSES, ("backbone", "rpn"), iterations, parts="rpn", keeps=(PROPOSALS,))]


def fast_rcnn(iterations: int) -> list[Stage]:
    """The head alone, on given proposals (Girshick 2015)."""
    return [Stage(ROI_LOSSES, ("backbone", "roi_head"), iterations, proposals=FROM_FILES, parts="roi_head")]


# From options.iterations, those of each stage, to stages.
SCHEMES: dict[str, Callable[[int], list[Stage]]] = {
    "approximate-joint": approximate_joint,
    "non-approximate-joint": non_approximate_joint,
    "alternating": alternating,
    "rpn-only": rpn_only,
    "fast-rcnn": fast_rcnn,
}


def given_proposals(
    proposals: Mapping[str, Any] | Sequence[PathLike] | None,
    scheme: str,
    stages: Sequence[Stage],
    training: DetectionDataset,
    test: DetectionDataset | None,
) -> ProposalSet | None:
    """The proposals of these data sets, given as boxes by image id or as files. ValueError where the scheme needs some
    and there are none, or the reverse, an image has none, or the images are changed at random."""
    if unchanged(training) is not training and any(stage.proposals != FROM_RPN for stage in stages):
        raise ValueError(
            f"transforms: move the images away from the proposals that the scheme {scheme!r} has of them; leave them "
            "out, or train by approximate-joint"
        )
    needed = any(stage.proposals == FROM_FILES for stage in stages)
    if needed and proposals is None:
        raise ValueError(
            f"proposals: got none, but the scheme {scheme!r} trains on given ones; `frcnn-fast propose` writes those "
            "of Selective Search or of another run into a file"
        )
    if proposals is None:
        return None
    if not needed:
        raise ValueError(f"proposals: got some, but the scheme {scheme!r} makes its own; leave them out")
    if not isinstance(proposals, Mapping):
        proposals = read_proposals(*proposals)
    given = proposals if isinstance(proposals, ProposalSet) else ProposalSet(proposals)
    given.require(training, "training set")
    if test is not None:
        given.require(test, "test set")
    return given


def beginning(detector: FasterRCNN, stages: Sequence[Stage]) -> dict[str, Tensor]:
    """A copy of the tensors that a later stage begins with again; to be taken before the first one."""
    anew = {part for stage in stages for part in stage.anew}
    return {name: tensor.clone() for name, tensor in detector.state_dict().items() if name.partition(".")[0] in anew}


def renew(detector: FasterRCNN, stage: Stage, initial: Mapping[str, Tensor]) -> None:
    """Put back the parts that a stage begins anew; initial: of `beginning`."""
    with torch.no_grad():
        for name, tensor in detector.state_dict().items():
            if name.partition(".")[0] in stage.anew:
                tensor.copy_(initial[name])


def prepare(detector: FasterRCNN, stage: Stage, frozen: Collection[str] = ()) -> None:
    """Make the detector ready for a stage or the rest of one: what moves, in which mode, and what it is good for.

    frozen: parameters that never move, by name.
    """
    detector.config = dataclasses.replace(detector.config, parts=stage.parts)
    for name, parameter in detector.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] in stage.trainable and name not in frozen)
    set_modes(detector, stage)


def set_modes(detector: FasterRCNN, stage: Stage) -> None:
    """Training mode, but for the parts that do not move."""
    detector.train()
    for part in PARTS:
        if part not in stage.trainable:
            getattr(detector, part).eval()
