"""NumPy arrays of every kind, wherever they stand among the arguments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from frcnn_fast import ops

BOXES = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]], np.float32)
SCORES = np.array([0.9, 0.8, 0.7], np.float32)
KEPT = [0, 2]


def read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda a: a,
    "reversed twice": lambda a: a[::-1].copy()[::-1],
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "read-only": read_only,
    "every second": lambda a: np.repeat(a, 2, axis=0)[::2],
    "Fortran order": np.asfortranarray,
    "broadcast": lambda a: np.broadcast_to(a, a.shape),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_kinds_of_arrays(kind: str) -> None:
    make = KINDS[kind]
    keep = ops.nms(make(BOXES), make(SCORES), 0.5)  # type: ignore[arg-type]
    assert isinstance(keep, np.ndarray)
    assert keep.tolist() == KEPT


def test_keywords_and_places() -> None:
    boxes, scores = torch.from_numpy(BOXES), torch.from_numpy(SCORES)
    by_keyword = ops.nms(boxes=BOXES, scores=SCORES, iou_threshold=0.5)  # type: ignore[arg-type]
    assert isinstance(by_keyword, np.ndarray)
    assert by_keyword.tolist() == KEPT
    for mixed in (
        ops.nms(boxes, SCORES, 0.5),  # type: ignore[arg-type]
        ops.nms(BOXES, scores, 0.5),  # type: ignore[arg-type]
        ops.nms(boxes, scores=SCORES, iou_threshold=0.5),  # type: ignore[arg-type]
    ):
        assert isinstance(mixed, torch.Tensor)
        assert mixed.tolist() == KEPT


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int16, np.int64, ">i4"])
def test_integers(dtype: str) -> None:
    ids = np.array([1, 2, 1], dtype)
    keep = ops.batched_nms(BOXES, SCORES, ids, 0.5)  # type: ignore[arg-type]
    assert keep.tolist() == [0, 1, 2]
    iou = ops.box_iou(BOXES.astype(dtype), BOXES.astype(dtype))  # type: ignore[arg-type]
    assert np.array_equal(iou, ops.box_iou(BOXES, BOXES))  # type: ignore[arg-type]


def test_arrays_in_a_list() -> None:
    features = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    pooled = ops.roi_align(features, [BOXES, BOXES[:1]], 2, 0.25)  # type: ignore[list-item, arg-type]
    wanted = ops.roi_align(torch.from_numpy(features), [torch.from_numpy(BOXES), torch.from_numpy(BOXES[:1])], 2, 0.25)
    assert np.array_equal(pooled, wanted.numpy())


@pytest.mark.parametrize("wrong", [np.array(["a"]), np.array([1 + 2j]), np.array([None])])
def test_what_is_no_number_is_a_type_error(wrong: np.ndarray) -> None:
    with pytest.raises(TypeError, match="boxes: expected numbers"):
        ops.nms(wrong, SCORES, 0.5)  # type: ignore[arg-type]
