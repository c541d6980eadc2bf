"""One update of the weights."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from frcnn_fast.data import Batch

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def train_step(
    detector: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    clip: float = 0.0,
    minimised: Collection[str] | None = None,
    through_boxes: bool = False,
    *,
    precision: str = "float32",
    scaler: torch.amp.GradScaler | None = None,
    parts: int = 1,
) -> dict[str, Tensor]:
    """One update of the weights.

    Args:
        detector: in training mode; may be wrapped in `DistributedDataParallel`.
        batch: on the detector's device.
        clip: upper bound of the gradient's norm; 0: none.
        minimised: names of the losses to minimise; None: all that the detector returns.
        through_boxes: as in `FasterRCNN.forward`.
        precision: of the convolutions and products, a key of `PRECISIONS`; weights and losses are float32.
        scaler: for "float16", whose small gradients would vanish.
        parts: compute the batch in so many parts, one after the other, which takes less memory. The update is by the
            mean of their losses; random samples are drawn for each part.

    Returns:
        The losses, means over the parts, still on the device.
    """
    optimizer.zero_grad(set_to_none=True)
    pieces = list(_pieces(batch, parts))
    sums: dict[str, Tensor] = {}
    for place, piece in enumerate(pieces):
        last = place == len(pieces) - 1
        # Gradients go to the other processes once, with the last part.
        quiet = isinstance(detector, DistributedDataParallel) and not last
        with detector.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
            losses = _losses(detector, piece, precision, minimised, through_boxes)
            share = len(piece) / len(batch)
            loss = torch.stack(list(losses.values())).sum()
            loss = loss if share == 1 else loss * share
            (scaler.scale(loss) if scaler else loss).backward()
        for name, value in losses.items():
            value = value.detach() if share == 1 else value.detach() * share
            sums[name] = sums[name] + value if name in sums else value
    if clip:
        if scaler:
            scaler.unscale_(optimizer)
        clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    return sums


def _losses(
    detector: nn.Module, batch: Batch, precision: str, minimised: Collection[str] | None, through_boxes: bool
) -> dict[str, Tensor]:
    chosen: dict[str, Any] = {} if minimised is None else {"losses": minimised}
    if through_boxes:
        chosen["through_boxes"] = True
    if batch.proposals is not None:
        chosen |= {"proposals": batch.proposals, "proposal_counts": batch.proposal_counts}
    dtype = PRECISIONS[precision]
    with torch.autocast(batch.images.device.type, dtype, enabled=dtype is not None):
        losses: dict[str, Tensor] = detector(
            batch.images,
            batch.image_sizes,
            batch.gt_boxes,
            batch.gt_labels,
            batch.gt_counts,
            batch.crowd,
            batch.image_scales,
            **chosen,
        )
    return losses


def _pieces(batch: Batch, count: int) -> Iterator[Batch]:
    """The batch in `count` parts of nearly equal size, none empty."""
    if count == 1:
        yield batch
        return
    size = len(batch)
    edges = [size * k // count for k in range(count + 1)]
    names = [field.name for field in dataclasses.fields(batch)]
    for begin, end in itertools.pairwise(edges):
        if begin < end:
            yield Batch(**{name: _rows(getattr(batch, name), begin, end) for name in names})


def _rows(value: Any, begin: int, end: int) -> Any:
    return value[begin:end] if isinstance(value, Tensor | list) else value
