"""What the conformance suite leaves of detections: bad input, batches, agnostic boxes, arrays, a hand-worked image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from frcnn_fast import ops

B, N, K = 3, 40, 4


def inputs(dtype: torch.dtype = torch.float32, *, agnostic: bool = False) -> list[Tensor]:
    g = torch.Generator().manual_seed(5)
    corner = torch.rand(B, N, 2, generator=g) * 200
    proposals = torch.cat([corner, corner + 5 + torch.rand(B, N, 2, generator=g) * 80], -1)
    logits = torch.randn(B, N, K + 1, generator=g) * 2
    deltas = torch.randn(B, N, 4 if agnostic else 4 * (K + 1), generator=g) * 0.5
    sizes = torch.tensor([[220.0, 230.0]]).repeat(B, 1)
    return [logits.to(dtype), deltas.to(dtype), proposals.to(dtype), torch.tensor([N, N - 7, 0]), sizes]


LOGITS, DELTAS, PROPOSALS, COUNTS, SIZES = inputs()


@pytest.mark.parametrize(
    ("error", "named", "change"),
    [
        (ValueError, "class_logits", {"class_logits": LOGITS[0]}),
        (ValueError, "class_logits", {"class_logits": LOGITS[..., :0]}),
        (TypeError, "class_logits", {"class_logits": LOGITS.long()}),
        (ValueError, "box_deltas", {"box_deltas": DELTAS[..., :8]}),
        (ValueError, "box_deltas", {"box_deltas": DELTAS[:, :-1]}),
        (TypeError, "box_deltas", {"box_deltas": DELTAS.double()}),
        (ValueError, "proposals", {"proposals": PROPOSALS[:, :-1]}),
        (ValueError, "proposals", {"proposals": PROPOSALS.to("meta")}),
        (ValueError, "counts", {"counts": COUNTS[:2]}),
        (TypeError, "counts", {"counts": COUNTS.float()}),
        (ValueError, r"counts\[1\] is 41", {"counts": torch.tensor([0, N + 1, 0])}),
        (ValueError, r"counts\[2\] is -1", {"counts": torch.tensor([0, 0, -1])}),
        (ValueError, "image_sizes", {"image_sizes": SIZES[:1]}),
        (ValueError, "score_threshold", {"score_threshold": -0.1}),
        (ValueError, "iou_threshold", {"iou_threshold": float("nan")}),
        (ValueError, "max_detections", {"max_detections": -1}),
        (ValueError, "weights", {"weights": (1.0, 1.0)}),
        (ValueError, "background", {"background": "middle"}),
        (ValueError, r"box_deltas: expected shape \[B, N, K \* 4\]", {"background": "last"}),
    ],
)
def test_bad_input_is_named(error: type[Exception], named: str, change: dict[str, Any]) -> None:
    names = ("class_logits", "box_deltas", "proposals", "counts", "image_sizes")
    with pytest.raises(error, match=named):
        ops.detections(**(dict(zip(names, inputs())) | change))


def test_a_batch_is_its_images() -> None:
    whole = ops.detections(*inputs(), max_detections=15)
    for b in range(B):
        alone = ops.detections(*[t[b : b + 1] for t in inputs()], max_detections=15)
        for part, result in zip(alone, whole, strict=True):
            assert torch.equal(part[0], result[b])
    assert whole.counts.tolist()[2] == 0
    assert (whole[2][2] == -1).all()
    assert (whole[0][2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_boxes_for_all_classes_equal_repeated_ones(dtype: torch.dtype) -> None:
    logits, deltas, *rest = inputs(dtype, agnostic=True)
    agnostic = ops.detections(logits, deltas, *rest)
    repeated = ops.detections(logits, deltas.repeat(1, 1, K + 1), *rest)
    for a, r in zip(agnostic, repeated, strict=True):
        assert torch.equal(a, r)
    assert agnostic[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_the_background_first_or_last() -> None:
    """The same columns in another order: the same detections, but for the order of the softmax' sum."""
    logits, deltas, *rest = inputs(torch.float64)
    first = ops.detections(logits, deltas, *rest)
    last = ops.detections(logits.roll(-1, -1), deltas[..., 4:], *rest, background="last")
    assert torch.equal(first.counts, last.counts)
    assert torch.equal(first.labels - 1, torch.where(last.labels < 0, -2, last.labels))
    assert torch.equal(first.indices, last.indices)
    assert torch.equal(first.boxes, last.boxes)
    torch.testing.assert_close(first.scores, last.scores, rtol=1e-14, atol=0)


def test_indices_name_the_proposals() -> None:
    logits, deltas, proposals, counts, sizes = inputs()
    found = ops.detections(logits, torch.zeros_like(deltas), proposals, counts, sizes + 1000)
    for b in range(B):
        kept = found.indices[b, : found.counts[b]]
        torch.testing.assert_close(found.boxes[b, : found.counts[b]], proposals[b, kept])
        scores = logits[b].softmax(-1)[kept, found.labels[b, : found.counts[b]]]
        torch.testing.assert_close(found.scores[b, : found.counts[b]], scores)


def test_without_classes_or_room_there_is_nothing() -> None:
    logits, deltas, *rest = inputs()
    boxes, _, labels, indices, counts = ops.detections(logits[..., :1], deltas[..., :4], *rest, max_detections=5)
    assert boxes.shape == (B, 5, 4)
    assert (labels == -1).all()
    assert (indices == -1).all()
    assert counts.tolist() == [0, 0, 0]
    assert ops.detections(logits, deltas, *rest, max_detections=0).counts.tolist() == [0, 0, 0]
    assert ops.detections(logits, deltas, *rest, score_threshold=1.5).counts.tolist() == [0, 0, 0]


def test_one_image_by_hand() -> None:
    """Two classes over two equal boxes and a third apart. Equal logits give exact scores of 1/3."""
    proposals = torch.tensor([[[10.0, 10, 20, 30], [10, 10, 20, 30], [50, 50, 60, 70]]])
    logits = torch.zeros(1, 3, 3)
    logits[0, 2] = torch.tensor([0.0, float("-inf"), 0.0])  # half background, half class 2
    boxes, scores, labels, indices, counts = ops.detections(
        logits, torch.zeros(1, 3, 12), proposals, torch.tensor([3]), [(100.0, 55.0)], max_detections=4
    )
    third = np.float32(1) / np.float32(3)
    assert counts.tolist() == [3]
    assert labels.tolist() == [[2, 1, 2, -1]]
    assert indices.tolist() == [[2, 0, 0, -1]]
    assert scores.tolist() == [[0.5, third, third, 0.0]]
    assert boxes[0].tolist() == [[50, 50, 55, 70], [10, 10, 20, 30], [10, 10, 20, 30], [0, 0, 0, 0]]


def test_numpy_in_numpy_out() -> None:
    results = ops.detections(*[t.numpy() for t in inputs()])
    assert all(isinstance(r, np.ndarray) for r in results)
    for array, tensor in zip(results, ops.detections(*inputs()), strict=True):
        assert np.array_equal(array, tensor.numpy())
