"""supervision with our NMS and IoU under it: its own answers to the bit, whatever it is asked."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import frcnn_fast
from frcnn_fast import ops
from frcnn_fast.patch import supervision as adapters
from frcnn_fast.patch.core import Library

THRESHOLDS = (0.0, 1e-45, 0.1, 0.3, 1 / 3, 0.5, float(np.float32(0.5)), 0.7, 0.75, 1 - 1e-9, 1.0)


# Without supervision


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_the_threshold_decides_as_rounding_to_float32_does(threshold: float) -> None:
    ours = adapters._threshold(threshold)
    near = np.float32(threshold)
    marks = [np.nextafter(near, np.float32(to)) for to in (-1, 2)]
    middles = [(float(near) + float(mark)) / 2 for mark in marks]
    for middle in (float(near), *map(float, marks), *middles, ours):
        for iou in (np.nextafter(middle, -1.0), middle, np.nextafter(middle, 2.0)):
            assert (iou > ours) == (float(np.float32(iou)) > threshold)


def test_categories_of_any_number_are_told_apart() -> None:
    for categories in ([3.0, -1, 3, 0], [0.5, 0.25, 0.5, np.inf], [2.0**63, 0, -(2.0**63), 1], [-0.0, 0.0, 1, 1]):
        array = np.array(categories)
        ids = adapters._class_ids(array)
        assert np.array_equal(ids[:, None] == ids, array[:, None] == array)


def test_an_older_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("pretend")
    package.__version__ = "0.29.0.post0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pretend", package)
    with pytest.raises(ImportError, match=r"pretend 0\.29\.0\.post0 answers otherwise than 0\.30 and later"):
        Library("pretend", {}, oldest=(0, 30)).patch()
    Library("pretend", {}, oldest=(0, 29)).patch().undo()


# With it

supervision = pytest.importorskip("supervision")
theirs = importlib.import_module("supervision.detection.utils.iou_and_nms")
box_nms, box_iou_batch = theirs.box_non_max_suppression, theirs.box_iou_batch


@pytest.fixture(autouse=True)
def nothing_stays_patched() -> Iterator[None]:
    yield
    assert supervision.box_non_max_suppression is theirs.box_non_max_suppression is box_nms
    assert theirs.box_iou_batch is box_iou_batch
    assert adapters._SUPERVISION.holders == 0


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of our ops that have been called."""
    called: set[str] = set()

    def spy(name: str, op: Any) -> Any:
        def call(*args: Any) -> Any:
            called.add(name)
            return op(*args)

        return call

    for name in ("nms", "batched_nms", "box_iou"):
        monkeypatch.setattr(ops, name, spy(name, getattr(ops, name)))
    return called


def some_boxes(g: np.random.Generator, n: int, kind: str) -> np.ndarray:
    side = g.choice([60.0, 400.0])
    corner, size = g.random((n, 2)) * side, g.random((n, 2)) * side / 3
    boxes = np.concatenate([corner, corner + size], 1)
    if kind == "grid":  # IoUs that are ratios of small numbers, on the threshold again and again
        boxes = np.round(boxes / side * 8)
    elif kind == "tenths":
        boxes = np.round(boxes, 1)
    elif kind == "broken":
        boxes.ravel()[g.random(boxes.size) < 0.05] = g.choice([np.nan, np.inf, -np.inf, 1e200, -1e200, 1e-320, 5.0])
    elif kind == "inverted":
        boxes = g.random((n, 4)) * side
    elif kind == "far":
        boxes += g.choice([1e6, 1e9])
    elif kind == "tiny":
        boxes *= g.choice([1e-160, 1e-30])
    return boxes


KINDS = ("plain", "grid", "tenths", "broken", "inverted", "far", "tiny")
DTYPES = (np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8)


def some_predictions(g: np.random.Generator, kind: str) -> np.ndarray:
    n = int(g.integers(20, 150))
    scores = (
        g.choice(np.array([0.1, 0.5, 0.5000001, 0.9, -0.0, 0.0, np.nan, np.inf, -np.inf])[: g.integers(1, 10)], n)
        if g.random() < 0.5
        else g.random(n)
    )
    columns = [some_boxes(g, n, kind), scores]
    if g.random() < 0.7:
        classes = g.integers(0, 4, n).astype(np.float64)
        if g.random() < 0.3:
            classes = g.choice([0.0, -0.0, 0.5, 1e300, np.nan, np.inf, -np.inf, -3.0], n)
        columns.append(classes)
    return np.column_stack(columns)


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_the_same(kind: str, served: set[str]) -> None:
    g = np.random.default_rng(KINDS.index(kind))
    dropped = 0
    with frcnn_fast.patch_supervision():
        for trial in range(400):
            predictions = some_predictions(g, kind)
            if kind in ("plain", "grid") and trial % 2:
                predictions = np.nan_to_num(predictions * 10).clip(-100, 250).astype(DTYPES[trial // 2 % len(DTYPES)])
            threshold = float(g.choice(THRESHOLDS)) if trial % 3 else g.random()
            wanted = box_nms(predictions, threshold)
            before = predictions.copy()
            found = supervision.box_non_max_suppression(predictions, threshold)
            assert found.dtype == wanted.dtype
            assert np.array_equal(found, wanted), (kind, trial)
            assert np.array_equal(predictions, before, equal_nan=True)
            dropped += (~wanted).sum()
    assert {"nms", "batched_nms"} <= served
    assert dropped > 400


def test_many_boxes(served: set[str]) -> None:
    g = np.random.default_rng(9)
    predictions = np.column_stack([some_boxes(g, 2000, "plain"), g.random(2000), g.integers(0, 3, 2000)])
    wanted = box_nms(predictions, 0.5)
    with frcnn_fast.patch_supervision():
        assert np.array_equal(supervision.box_non_max_suppression(predictions), wanted)
    assert served == {"batched_nms"}


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@pytest.mark.parametrize("kind", KINDS)
def test_ious_are_the_same(kind: str, served: set[str]) -> None:
    g = np.random.default_rng(KINDS.index(kind))
    with frcnn_fast.patch_supervision():
        for trial in range(100):
            boxes, others = some_boxes(g, int(g.integers(50, 90)), kind), some_boxes(g, 40, kind)
            if kind in ("plain", "grid"):
                boxes = boxes.clip(0, 200).astype(DTYPES[trial % len(DTYPES)])
            wanted = box_iou_batch(boxes, others)
            found = supervision.box_iou_batch(boxes, others)
            assert found.dtype == wanted.dtype == np.float32
            assert np.array_equal(found.view(np.int32), wanted.view(np.int32)), (kind, trial)
    assert served == {"box_iou"}


def test_what_is_not_served_runs_supervisions_code(served: set[str]) -> None:
    g = np.random.default_rng(2)
    boxes = some_boxes(g, 60, "plain")
    predictions = np.column_stack([boxes, g.random(60), g.integers(0, 2, 60)])
    masks = g.random((60, 12, 12)) > 0.5
    metrics = supervision.detection.utils.iou_and_nms.OverlapMetric
    calls: dict[str, Any] = {
        "by the smaller area": lambda: supervision.box_non_max_suppression(predictions, 0.5, metrics.IOS),
        "by the smaller area, a name": lambda: supervision.box_iou_batch(boxes, boxes, "ios"),
        "no boxes": lambda: supervision.box_non_max_suppression(predictions[:0]),
        "few boxes": lambda: supervision.box_non_max_suppression(predictions[:5]),
        "few pairs": lambda: supervision.box_iou_batch(boxes[:5], boxes),
        "a subclass": lambda: supervision.box_non_max_suppression(np.ma.masked_array(predictions)),
        "extended precision": lambda: supervision.box_non_max_suppression(predictions.astype(np.longdouble)),
        "a threshold of another type": lambda: supervision.box_non_max_suppression(predictions, np.longdouble(0.5)),
        "masks": lambda: supervision.mask_non_max_suppression(predictions, masks),
        "merging": lambda: np.array([sorted(group)[0] for group in supervision.box_non_max_merge(predictions, 0.3)]),
    }
    for what, call in calls.items():
        wanted = call()
        with frcnn_fast.patch_supervision():
            assert np.array_equal(call(), wanted), what
        # supervision's own NMS takes the IoU from its own function.
        assert served == ({"box_iou"} if what == "a threshold of another type" else set()), what
        served.clear()
    for wrong in (-0.1, 1.1, float("nan")):
        with frcnn_fast.patch_supervision(), pytest.raises(ValueError, match="closed range from 0 to 1"):
            supervision.box_non_max_suppression(predictions, wrong)


@pytest.mark.parametrize("metric", ["IOU", "iou", theirs.OverlapMetric.IOU])
def test_the_metrics_name(metric: Any, served: set[str]) -> None:
    boxes = some_boxes(np.random.default_rng(1), 60, "plain")
    wanted = box_iou_batch(boxes, boxes, metric)
    with frcnn_fast.patch_supervision():
        assert np.array_equal(supervision.box_iou_batch(boxes, boxes, overlap_metric=metric), wanted)
    assert served == {"box_iou"}


def test_detections_are_suppressed_and_soft_nms_uses_our_iou(served: set[str]) -> None:
    g = np.random.default_rng(3)
    found = supervision.Detections(
        xyxy=some_boxes(g, 300, "plain").astype(np.float32),
        confidence=g.random(300).astype(np.float32),
        class_id=g.integers(0, 3, 300),
    )
    calls = (lambda: found.with_nms(0.4), lambda: found.with_nms(0.4, class_agnostic=True))
    wanted = [call() for call in calls]
    predictions = np.column_stack([found.xyxy, found.confidence])
    soft = supervision.box_soft_non_max_suppression(predictions)
    with frcnn_fast.patch_supervision() as patch:
        assert [call() for call in calls] == wanted
        assert served == {"nms", "batched_nms"}
        assert np.array_equal(supervision.box_soft_non_max_suppression(predictions), soft)
        assert served == {"nms", "batched_nms", "box_iou"}
    assert 0 < len(wanted[1]) < len(wanted[0]) < 300
    assert patch.replaced[:2] == [
        "supervision.detection.utils.iou_and_nms.box_non_max_suppression",
        "supervision.detection.utils.iou_and_nms.box_iou_batch",
    ]


def test_threads_get_the_same_while_patches_come_and_go() -> None:
    g = np.random.default_rng(4)
    predictions = [some_predictions(g, "grid") for _ in range(20)]
    wanted = [box_nms(p, 0.5) for p in predictions]
    wrong: list[int] = []

    def ask() -> None:
        for i in range(200):
            if not np.array_equal(supervision.box_non_max_suppression(predictions[i % 20], 0.5), wanted[i % 20]):
                wrong.append(i)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with frcnn_fast.patch_supervision():
            assert np.array_equal(supervision.box_non_max_suppression(predictions[0], 0.5), wanted[0])
    assert not wrong
