"""Whole calls of libraries under our patches: torchvision's detectors, and who calls torchvision or NumPy for NMS.

Each call runs patched and unpatched in turns; equal answers, and processor time theirs over ours. Random weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import frcnn_fast
from frcnn_fast import ops
from frcnn_fast.patch import Patch

Call = Callable[[], Any]


class Case(NamedTuple):
    """A call of a library."""

    library: str
    what: str
    patch: Callable[[], Patch]
    make: Callable[[], Call]  # builds its inputs
    tolerance: float = 0.0  # of floats, in units of the largest; 0: to the bit


# torchvision

DETECTORS = (
    "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn",
    "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn", "ssd300_vgg16",
)  # fmt: skip


SIZE = (480, 640)


def photograph(seed: int) -> Tensor:
    coarse = torch.rand(1, 3, 11, 13, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, SIZE, mode="bicubic")[0].clamp(0, 1)


def detector(name: str) -> Any:
    """It finds things of many scores, where random weights alone find the same everywhere."""
    from torchvision.models import detection

    torch.manual_seed(0)
    sizes = {} if name.startswith("ssd") else {"min_size": SIZE[0], "max_size": SIZE[1]}
    model = getattr(detection, name)(
        weights=None, weights_backbone=None, num_classes=2 if "key" in name else 91, **sizes
    )
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        features = model.backbone.train()(torch.stack([photograph(0), photograph(1)]) * 4 - 2)
        for norm in norms:
            norm.momentum = 0.1
        # RetinaNet's, FCOS's and SSD's scores become those of normally distributed logits.
        spread = 1.5 / float(model.head(list(features.values()))["cls_logits"].std()) if hasattr(model, "head") else 1.0
        for part, layer in model.named_modules():
            leaf = part.rsplit(".", 1)[-1]
            if not isinstance(layer, (nn.Conv2d, nn.Linear)):
                continue
            if "classification_head" in part:
                if leaf == "cls_logits" or "module_list" in part:
                    assert layer.bias is not None
                    layer.weight *= spread
                    nn.init.constant_(layer.bias, -3.0)
            elif leaf.startswith("cls"):
                layer.weight *= 15.0
            elif leaf == "bbox_pred":
                layer.weight *= 4.0
    return model.eval()


def inference(name: str) -> Call:
    model, image = detector(name), photograph(2)

    @torch.no_grad()
    def call() -> Any:
        found = model([image])[0]
        order = settled(found)
        return {key: found[key][order] for key in ("boxes", "labels", "scores")}

    return call


def settled(found: dict[str, Tensor]) -> Tensor:
    """An order of detections that does not depend on that of equal scores, which torchvision sorts in any order: by
    score as long as it falls by more than rounding, else by label and place."""
    falls = torch.cat([found["scores"].new_zeros(1), -found["scores"].diff()])[: len(found["scores"])]
    ranks = (falls > 1e-6).cumsum(0)
    keys = zip(ranks.tolist(), found["labels"].tolist(), found["boxes"].round().tolist())
    return torch.tensor([i for _, i in sorted((key, i) for i, key in enumerate(keys))], dtype=torch.int64)


def training(name: str) -> Call:
    """A step without an optimiser: losses, and gradients in a mean, since rounding moves single ones."""
    model = detector(name).train()
    height, width = SIZE
    shares = torch.tensor([[0.1, 0.1, 0.3, 0.5], [0.5, 0.3, 0.7, 0.8], [0.0, 0.6, 0.2, 0.9], [0.5, 0.3, 0.7, 0.9]])
    boxes = shares * torch.tensor([width, height, width, height])
    labels = torch.ones(4, dtype=torch.int64) if "key" in name else torch.tensor([1, 17, 44, 17])
    masks = torch.zeros(4, height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
        mask[y1:y2, x1:x2] = 1
    points = boxes.view(4, 2, 2).repeat(1, 9, 1)[:, :17] * 0.98 + 2
    keypoints = torch.cat([points, torch.ones(4, 17, 1)], 2)
    target = {"boxes": boxes, "labels": labels, "masks": masks, "keypoints": keypoints}
    statistics_of = {name: value.clone() for name, value in model.named_buffers()}

    def call() -> Any:
        torch.manual_seed(3)
        for name, buffer in model.named_buffers():
            buffer.copy_(statistics_of[name])
        model.zero_grad()
        losses = model([photograph(2), photograph(3)], [target, target])
        sum(losses.values()).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    return call


# ultralytics


def yolo_suppression() -> Call:
    """As its validation asks: every class of a place above 0.001, 7,000 of them."""
    import torchvision  # noqa: F401  # without it ultralytics uses code of its own
    from ultralytics.utils.nms import non_max_suppression

    g = torch.Generator().manual_seed(0)
    centres, sides = torch.rand(2, 8400, generator=g) * 640, torch.rand(2, 8400, generator=g) * 120 + 4
    scores = torch.rand(80, 8400, generator=g) ** 700
    prediction = torch.cat([centres, sides, scores])[None]
    return lambda: non_max_suppression(prediction.clone(), 0.001, 0.7, multi_label=True, max_time_img=60.0)


def yolo_detector() -> Call:
    os.environ.setdefault("YOLO_OFFLINE", "true")
    from ultralytics import YOLO

    torch.manual_seed(0)
    model = YOLO("yolov8n.yaml", verbose=False)
    for branch in model.model.model[-1].cv3:
        nn.init.normal_(branch[-1].weight, std=0.3)
        nn.init.constant_(branch[-1].bias, -3.0)
    image = (photograph(4).permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    return lambda: model.predict(image, conf=0.001, device="cpu", verbose=False)[0].boxes.data


# sahi


def some_predictions(n: int, seed: int = 0) -> np.ndarray:
    """x1, y1, x2, y2, score, class; no two scores equal."""
    g = np.random.default_rng(seed)
    corner, size = g.random((n, 2)) * 2000, g.random((n, 2)) * 80 + 4
    return np.column_stack([corner, corner + size, (g.permutation(n) + 0.5) / n, g.integers(0, 5, n)])


def slices_suppression() -> Call:
    from sahi.postprocess import combine
    from sahi.postprocess.backends import set_postprocess_backend

    set_postprocess_backend("torchvision")
    predictions = some_predictions(10_000)
    return lambda: combine.nms(predictions, "IOU", 0.5)


def slices_postprocess() -> Call:
    from sahi.postprocess.backends import set_postprocess_backend
    from sahi.postprocess.combine import NMSPostprocess
    from sahi.prediction import ObjectPrediction

    set_postprocess_backend("torchvision")
    found = [
        ObjectPrediction(
            bbox=row[:4].tolist(), score=float(row[4]), category_id=int(row[5]), category_name=str(int(row[5])),
            full_shape=[2100, 2100],
        )
        for row in some_predictions(3000)
    ]  # fmt: skip
    step = NMSPostprocess(match_threshold=0.5, match_metric="IOU", class_agnostic=False)
    return lambda: [(p.bbox.to_xyxy(), p.score.value, p.category.id) for p in step(list(found))]


# transformers: both import batched_nms by name


def masks_suppression() -> Call:
    from transformers.models.sam import image_processing_sam as sam

    n, g = 300, torch.Generator().manual_seed(0)
    boxes = torch.from_numpy(some_predictions(n)[:, :4]) / 8
    rle = sam._mask_to_rle(torch.rand(8, 24, 24, generator=g) > 0.5)
    scores = (torch.randperm(n, generator=g) + 0.5) / n
    return lambda: sam._post_process_for_mask_generation([rle[i % 8] for i in range(n)], scores, boxes, 0.7)[1:]


def words_suppression() -> Call:
    from transformers.models.omdet_turbo import processing_omdet_turbo as omdet

    g = torch.Generator().manual_seed(0)
    boxes = torch.rand(900, 4, generator=g) * torch.tensor([0.9, 0.9, 0.2, 0.2]) + 0.05
    scores, labels = torch.rand(900, 4, generator=g), torch.arange(4).repeat(900)
    return lambda: omdet._post_process_boxes_for_image(boxes, scores, labels, 4, (480, 640), 0.1, 0.5)


# supervision


def detections(n: int) -> Any:
    import supervision

    rows = some_predictions(n)
    return supervision.Detections(
        xyxy=rows[:, :4].astype(np.float32), confidence=rows[:, 4].astype(np.float32), class_id=rows[:, 5].astype(int)
    )


def with_nms() -> Call:
    found = detections(3000)
    return lambda: found.with_nms(0.5).xyxy


def soft_nms() -> Call:
    import supervision

    rows = some_predictions(1000)
    return lambda: supervision.box_soft_non_max_suppression(rows)


def confusion() -> Call:
    """10 images of 100 objects."""
    import supervision

    truths = [detections(100) for _ in range(10)]
    return lambda: supervision.ConfusionMatrix.from_detections(truths, truths, list("abcde")).matrix


TORCHVISION, SUPERVISION = frcnn_fast.patch_torchvision, frcnn_fast.patch_supervision
CASES = (
    *(
        Case("torchvision", f"{name}, {what}", TORCHVISION, functools.partial(step, name), 1e-3)
        for name in DETECTORS
        for what, step in (("inference", inference), ("training", training))
    ),
    Case("ultralytics", "non_max_suppression, 8,400 places of 80 classes", TORCHVISION, yolo_suppression),
    Case("ultralytics", "YOLOv8n, an image", TORCHVISION, yolo_detector),
    Case("sahi", "nms, 10,000 boxes", TORCHVISION, slices_suppression),
    Case("sahi", "NMSPostprocess, 3,000 predictions", TORCHVISION, slices_postprocess),
    Case("transformers", "SAM, 300 masks", TORCHVISION, masks_suppression),
    Case("transformers", "OmDet-Turbo, 900 boxes", TORCHVISION, words_suppression),
    Case("supervision", "Detections.with_nms, 3,000 boxes", SUPERVISION, with_nms),
    Case("supervision", "box_soft_non_max_suppression, 1,000 boxes", SUPERVISION, soft_nms),
    Case("supervision", "ConfusionMatrix, 10 images of 100 objects", SUPERVISION, confusion),
)


@contextlib.contextmanager
def called_ops() -> Iterator[set[str]]:
    """The names of our ops that are called in the block."""
    called: set[str] = set()
    theirs = {name: getattr(ops, name) for name in ops.__all__ if name.islower() and callable(getattr(ops, name))}

    def spy(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            called.add(name)
            return op(*args, **kwargs)

        return call

    try:
        vars(ops).update({name: spy(name, op) for name, op in theirs.items()})
        yield called
    finally:
        vars(ops).update(theirs)


def compare(case: Case, rounds: int = 5) -> dict[str, Any]:
    """The row of a case. The two take turns; the first turn of each is not timed."""
    call = case.make()
    theirs = call()
    with called_ops() as called, case.patch():
        ours = call()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for patched in (False, True) * rounds:
        with case.patch() if patched else contextlib.nullcontext():
            start = time.process_time()
            call()
            seconds[patched].append(time.process_time() - start)
    far = difference(ours, theirs)
    return {
        "library": case.library,
        "version": importlib.metadata.version(case.library),
        "subject": case.what,
        "replaced": sorted(called),
        "equal": far <= case.tolerance,
        "largest": far,
        "rounds": rounds,
        "ratio": round(statistics.median(seconds[False]) / max(statistics.median(seconds[True]), 1e-9), 2),
    }


def difference(ours: Any, theirs: Any) -> float:
    """The largest of two floats, over the largest number there or 1; infinite where anything else differs."""
    if dataclasses.is_dataclass(theirs):
        return difference(vars(ours), vars(theirs))
    if isinstance(theirs, dict):
        if ours.keys() != theirs.keys():
            return float("inf")
        return max((difference(ours[key], theirs[key]) for key in theirs), default=0.0)
    if isinstance(theirs, (list, tuple)):
        if len(ours) != len(theirs):
            return float("inf")
        return max((difference(a, b) for a, b in zip(ours, theirs)), default=0.0)
    a, b = (x.detach().numpy() if isinstance(x, Tensor) else np.asarray(x) for x in (ours, theirs))
    if a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b):
        return 0.0
    if a.shape != b.shape or a.dtype != b.dtype or b.dtype.kind != "f":
        return float("inf")
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))
