"""What a detector does with one image, stage by stage: `tell`, and the `Story` that it returns."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from frcnn_fast import ops
from frcnn_fast.data import Collate, boxes_to_original
from frcnn_fast.inference.detector import Detector, lowered_threshold
from frcnn_fast.inference.result import Result
from frcnn_fast.inference.sources import load
from frcnn_fast.model.head import rows_of_images


class Level(NamedTuple):
    """A feature level of the proposal network; H, W its map, k anchors a cell."""

    stride: tuple[int, int]  # (y, x) in pixels of the network's input
    anchors: Tensor  # [H, W, k, 4]
    objectness: Tensor  # [H, W, k], 0..1
    num_candidates: int  # anchors that go into NMS


class Ranked(NamedTuple):
    """Boxes of anchors, best first."""

    boxes: Tensor  # [n, 4]
    objectness: Tensor  # [n], 0..1
    anchors: Tensor  # int64 [n], rows of all levels' anchors together


@dataclasses.dataclass(frozen=True)
class Story:
    """An image's way through a detector. Tensors are on the CPU, boxes in pixels of the image as it was given.

    Attributes:
        result: the detections, best first.
        resized: (height, width) that the network saw; padded: with what is added on the right and below.
        levels: of the proposal network, finest first.
        candidates: what goes into NMS: of each level the best anchors, decoded, clipped, and large enough.
        proposals: what NMS left of them, over all levels, at most as many as the head takes.
        sources: int64 [D], the proposal that each detection was made of.
        probabilities: [P, K + 1], what the head says of each proposal; column 0 is the background.
        milliseconds: median time of each stage, in the order of the stages; `repeats`: of how many runs.
    """

    result: Result
    resized: tuple[int, int]
    padded: tuple[int, int]
    levels: list[Level]
    candidates: Ranked
    proposals: Ranked
    sources: Tensor
    probabilities: Tensor
    milliseconds: dict[str, float]
    repeats: int

    @property
    def anchors(self) -> Tensor:
        """[A, 4], all levels together."""
        return torch.cat([level.anchors.reshape(-1, 4) for level in self.levels])

    def level_of(self, anchor: int) -> int:
        """The level (0, 1, ...) of a row of `anchors`."""
        for number, level in enumerate(self.levels):
            if anchor < level.objectness.numel():
                return number
            anchor -= level.objectness.numel()
        raise IndexError(f"anchor: got a row beyond the {len(self.anchors)} of all levels")


@torch.inference_mode()
def tell(
    detector: Detector,
    image: Any,
    *,
    score_threshold: float | None = None,
    repeats: int = 5,
) -> Story:
    """Look at one image as `Detector` does, and keep what each stage made.

    Args:
        detector: is put into eval mode.
        image: as `Detector` takes it.
        score_threshold: as for `Detector`.
        repeats: runs of the whole way whose times are taken, after one that is not counted.

    Returns:
        A `Story`. Its detections are those of `detector(image, batch=1, score_threshold=score_threshold)`.

    Raises:
        ValueError, TypeError: the image, as for `Detector`; repeats below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats: got {repeats}, expected at least 1")
    model, device = detector.model, detector.device
    config = model.config
    model.eval()
    loaded, collate = load(image), Collate(config.preprocess)
    watch = _Watch(device)

    def once() -> dict[str, Any]:
        slot = watch("resize", lambda: detector.slot(loaded, collate))
        if slot.outcome is not None:
            raise slot.outcome
        batch = watch("scale, pad, move to the device", lambda: detector.batch([slot], collate))
        size = batch.images.shape[2], batch.images.shape[3]
        features = watch("backbone", lambda: model.features(batch.images))
        rpn = watch("proposal network", lambda: model.rpn(features, size))
        proposed = watch(
            "proposals: rank, decode, NMS", lambda: model.propose(rpn, batch.image_sizes, batch.image_scales)
        )
        boxes, counts = proposed.boxes, proposed.counts
        pooled = watch("pooling of regions", lambda: model.roi_head.pool(features, rows_of_images(boxes, counts)))
        logits, deltas = watch("head", lambda: model.roi_head.predict(pooled, *boxes.shape[:2]))
        with lowered_threshold(model, score_threshold):
            found = watch(
                "detections: scores, decode, NMS",
                lambda: model.finish(logits, deltas, boxes, counts, batch.image_sizes),
            )
        return {"slot": slot, "batch": batch, "rpn": rpn, "proposed": proposed, "logits": logits, "found": found}

    for _ in range(repeats + 1):
        made = once()
    slot, batch, rpn, proposed, found = (made[name] for name in ("slot", "batch", "rpn", "proposed", "found"))

    # Fewer or other anchors never come in after this: NMS sees them in the same order.
    all_logits, all_deltas = rpn.tables()
    decoded = ops.decode_clip(
        all_deltas, rpn.anchors, batch.image_sizes, image_scales=batch.image_scales, min_size=config.min_size
    )
    chosen = _candidates(
        all_logits[0], rpn.anchors.level_sizes, decoded, config.proposals_test[0], config.filter_order == "before_top_n"
    )
    resized = (slot.resized.shape[-2], slot.resized.shape[-1])
    original = (loaded.image.shape[-2], loaded.image.shape[-1])

    def in_image(boxes: Tensor) -> Tensor:
        return boxes_to_original(boxes.float().cpu(), resized, original)

    levels, logits, anchors = [], all_logits[0].float().cpu(), in_image(rpn.anchors.materialize())
    parts = rpn.anchors.level_sizes
    rows = zip(*[iter(rpn.anchors.grid)] * 5)
    for (height, width, k, *stride), scores, table, level_candidates in zip(
        rows, logits.split(parts), anchors.split(parts), chosen, strict=True
    ):
        levels.append(
            Level(
                (stride[0], stride[1]),
                table.view(height, width, k, 4),
                scores.sigmoid().view(height, width, k),
                len(level_candidates),
            )
        )
    together = torch.cat(chosen)
    together = together[logits[together].argsort(descending=True, stable=True)]
    count = int(found.counts[0])
    kept = found.scores[0, :count] >= (score_threshold or 0.0)
    detections = {name: getattr(found, name)[0, :count].cpu() for name in ("boxes", "scores", "labels")}
    return Story(
        result=detector.result(slot, detections, score_threshold),
        resized=resized,
        padded=(batch.images.shape[2], batch.images.shape[3]),
        levels=levels,
        candidates=Ranked(in_image(decoded.boxes[0].cpu()[together]), logits[together].sigmoid(), together),
        proposals=_ranked(proposed, in_image),
        sources=found.indices[0, :count][kept].cpu(),
        probabilities=made["logits"][0, : int(proposed.counts[0])].float().softmax(-1).cpu(),
        milliseconds=watch.medians(skipped=1),
        repeats=repeats,
    )


def _candidates(
    logits: Tensor, level_sizes: list[int], decoded: ops.DecodedBoxes, most: int, filter_first: bool
) -> list[Tensor]:
    """Of each level the anchors (of all levels together) that go into NMS."""
    valid = decoded.valid[0]
    # NaN is never selected.
    scores = logits.where(valid, torch.nan) if filter_first else logits
    found, start = [], 0
    for size in level_sizes:
        best = ops.top_n(scores[None, start : start + size], most)
        rows = best.indices[0, : int(best.counts[0])] + start
        found.append(rows[valid[rows]].cpu())
        start += size
    return found


def _ranked(proposed: ops.Proposals, in_image: Callable[[Tensor], Tensor]) -> Ranked:
    count = int(proposed.counts[0])
    return Ranked(
        in_image(proposed.boxes[0, :count]),
        proposed.scores[0, :count].float().sigmoid().cpu(),
        proposed.indices[0, :count].cpu(),
    )


class _Watch:
    """Calls things and takes the time of each, the device's included."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, name: str, function: Callable[[], Any]) -> Any:
        self._wait()
        start = time.perf_counter()
        made = function()
        self._wait()
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        return made

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def medians(self, skipped: int) -> dict[str, float]:
        """Milliseconds of each, the first calls left out."""
        return {name: 1e3 * statistics.median(times[skipped:]) for name, times in self.seconds.items()}
