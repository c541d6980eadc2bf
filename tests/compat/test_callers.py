"""Libraries that call torchvision or NumPy for NMS: the same answers under our patches, which they do not know of."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

import frcnn_fast
from bench.compat import callers
from frcnn_fast import ops

NEEDED = {
    "ultralytics": {"nms"},
    "sahi": {"nms"},
    "transformers": {"nms", "batched_nms"},
    "supervision": {"nms", "batched_nms", "box_iou"},
}
CASES = [case for case in callers.CASES if case.library != "torchvision"]  # tests/test_patch.py has those


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.library}: {case.what}")
def test_answers_are_the_same(case: callers.Case) -> None:
    pytest.importorskip(case.library, reason=f"{case.library} (make test-compat)")
    found = callers.compare(case, rounds=1)
    assert found["equal"], found
    assert set(found["replaced"]) & NEEDED[case.library], found


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("transformers.models.sam.image_processing_sam", "batched_nms"),
        ("transformers.models.sam2.image_processing_sam2", "batched_nms"),
        ("transformers.models.sam3.image_processing_sam3", "batched_nms"),
        ("transformers.models.omdet_turbo.processing_omdet_turbo", "batched_nms"),
    ],
)
def test_names_that_others_imported_are_reached(module: str, name: str) -> None:
    pytest.importorskip("transformers", reason="transformers (make test-compat)")
    theirs = getattr(importlib.import_module(module), name)
    with frcnn_fast.patch_torchvision() as patch:
        assert f"{module}.{name}" in patch.replaced
        assert getattr(importlib.import_module(module), name) is not theirs
    assert getattr(importlib.import_module(module), name) is theirs


@pytest.mark.parametrize("kind", ["end to end", "agnostic", "some classes", "with masks", "few", "none"])
def test_ultralytics_suppression_of_every_kind(kind: str) -> None:
    suppression = pytest.importorskip("ultralytics.utils.nms", reason="ultralytics (make test-compat)")
    pytest.importorskip("torchvision")
    g = torch.Generator().manual_seed(1)
    centres, sides = torch.rand(2, 2, 3000, generator=g) * 640, torch.rand(2, 2, 3000, generator=g) * 120 + 4
    prediction = torch.cat([centres, sides, torch.rand(2, 12, 3000, generator=g) ** 4], 1)
    options: Any = {
        "agnostic": {"agnostic": True},
        "some classes": {"classes": [1, 3]},
        "with masks": {"nc": 8, "multi_label": True},
        "few": {"conf_thres": 0.9999},
        "none": {"conf_thres": 1.0},
    }.get(kind, {})
    if kind == "end to end":
        prediction = torch.rand(2, 300, 6, generator=g)

    def run() -> Any:
        return suppression.non_max_suppression(prediction.clone(), **options, return_idxs=True, max_time_img=60.0)

    theirs = run()
    with callers.called_ops() as called, frcnn_fast.patch_torchvision():
        assert callers.difference(run(), theirs) == 0.0
    assert called == (set() if kind in ("end to end", "none") else {"nms"})


def test_ultralytics_own_suppression_keeps_the_same() -> None:
    """TorchNMS, which it takes where torchvision has not been imported: fast_nms is another algorithm."""
    suppression = pytest.importorskip("ultralytics.utils.nms", reason="ultralytics (make test-compat)")
    rows = torch.from_numpy(callers.some_predictions(1200).astype(np.float32))
    boxes, scores = rows[:, :4].contiguous() / 4, rows[:, 4].contiguous()
    for threshold in (0.3, 0.5, 0.7):
        theirs = suppression.TorchNMS.nms(boxes, scores, threshold)
        assert torch.equal(ops.nms(boxes, scores, threshold), theirs)
        assert 50 < len(theirs) < 1200


def test_sahi_without_torchvision_keeps_the_same() -> None:
    """Its NumPy and its torchvision give the same; so does ours in the second's place."""
    combine = pytest.importorskip("sahi.postprocess.combine", reason="sahi (make test-compat)")
    from sahi.postprocess.backends import set_postprocess_backend

    predictions = callers.some_predictions(1500)
    set_postprocess_backend("numpy")
    theirs = combine.nms(predictions, "IOU", 0.4)
    set_postprocess_backend("torchvision")
    with callers.called_ops() as called, frcnn_fast.patch_torchvision():
        ours = combine.nms(predictions, "IOU", 0.4)
        assert combine.greedy_nmm(predictions[:300], "IOS", 0.4)
    assert called == {"nms"}
    assert sorted(ours) == sorted(theirs)
