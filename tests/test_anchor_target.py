"""Training targets beyond the conformance suite: bad input, arrays, threads, windows of grid anchors, the draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from frcnn_fast import ops, reference

BOXES = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 30.0, 20.0]]])
COUNTS = torch.tensor([2])
RNG = torch.tensor([1, 2])
ANCHORS = torch.tensor([[0.0, 0.0, 10.0, 9.0], [4.0, 4.0, 28.0, 20.0], [50.0, 50.0, 60.0, 60.0]])


def targets(**changed: Any) -> Any:
    args: dict[str, Any] = {"anchors": ANCHORS, "gt_boxes": BOXES, "gt_counts": COUNTS, "rng": RNG}
    return ops.rpn_targets(**{**args, **changed})


def rois(**changed: Any) -> Any:
    args: dict[str, Any] = {
        "proposals": ANCHORS[None],
        "counts": torch.tensor([3]),
        "gt_boxes": BOXES,
        "gt_labels": torch.tensor([[3, 7]]),
        "gt_counts": COUNTS,
        "rng": RNG,
    }
    return ops.sample_rois(**{**args, **changed})


@pytest.mark.parametrize(
    ("error", "message", "changed"),
    [
        (ValueError, r"anchors: expected shape \[A, 4\], \[B, A, 4\] or AnchorGrids", {"anchors": torch.zeros(3, 5)}),
        (ValueError, r"anchors: .* with B = 1, A, got float32\[2, 3, 4\]", {"anchors": ANCHORS.expand(2, 3, 4)}),
        (
            TypeError,
            "anchors: expected float32 elements, the precision of the other inputs, got float64",
            {"anchors": ANCHORS.double()},
        ),
        (TypeError, "anchors: expected float16, bfloat16, float32 or float64", {"anchors": ANCHORS.int()}),
        (ValueError, r"gt_boxes: expected shape \[B, G, 4\], got float32\[2, 4\]", {"gt_boxes": BOXES[0]}),
        (TypeError, "gt_counts: expected int64", {"gt_counts": COUNTS.int()}),
        (ValueError, r"gt_counts: expected shape \[B\] = \[1\]", {"gt_counts": torch.tensor([1, 1])}),
        (ValueError, r"gt_counts\[0\] is 3, expected 0 to the padded size 2", {"gt_counts": torch.tensor([3])}),
        (ValueError, r"gt_counts\[0\] is -1", {"gt_counts": torch.tensor([-1])}),
        (TypeError, "crowd: expected bool", {"crowd": torch.zeros(1, 2)}),
        (ValueError, r"crowd: expected shape \[B, G\] = \[1, 2\]", {"crowd": torch.zeros(1, 3, dtype=torch.bool)}),
        (TypeError, r"rng: expected int64", {"rng": torch.zeros(2)}),
        (ValueError, r"rng: expected shape \[2\]", {"rng": torch.tensor([1])}),
        (ValueError, "image_sizes", {"image_sizes": torch.zeros(2, 2)}),
        (ValueError, "positive_iou: expected a number of at least 0, got -0.1", {"positive_iou": -0.1}),
        (ValueError, "negative_iou", {"negative_iou": float("nan")}),
        (ValueError, "batch_size", {"batch_size": 0}),
        (ValueError, "positive_fraction", {"positive_fraction": -0.1}),
        (ValueError, "positive_fraction", {"positive_fraction": 1.1}),
        (ValueError, "weights: expected four positive numbers", {"weights": (1.0, 1.0)}),
        (ValueError, "backend", {"backend": "gpu"}),
    ],
)
def test_wrong_arguments_are_named(error: type[Exception], message: str, changed: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        targets(**changed)


@pytest.mark.parametrize(
    ("error", "message", "changed"),
    [
        (ValueError, r"counts\[0\] is 4, expected 0 to the padded size 3", {"counts": torch.tensor([4])}),
        (ValueError, r"gt_counts\[0\] is 9", {"gt_counts": torch.tensor([9])}),
        (TypeError, "gt_boxes: expected the dtype of proposals", {"gt_boxes": BOXES.double()}),
        (TypeError, "gt_labels: expected int64", {"gt_labels": torch.zeros(1, 2)}),
        (ValueError, r"gt_labels: expected shape \[B, G\]", {"gt_labels": torch.zeros(1, 1, dtype=torch.int64)}),
        (ValueError, "positive_fraction: expected a number of at least 0 and at most 1", {"positive_fraction": 1.5}),
        (ValueError, r"proposals: expected shape \[B, N, 4\]", {"proposals": ANCHORS}),
    ],
)
def test_wrong_arguments_of_sample_rois_are_named(
    error: type[Exception], message: str, changed: dict[str, Any]
) -> None:
    with pytest.raises(error, match=message):
        rois(**changed)


def test_wrong_labels_are_named() -> None:
    with pytest.raises(TypeError, match="labels: expected int8"):
        ops.sample_anchors(torch.zeros(1, 4, dtype=torch.int64), RNG)
    with pytest.raises(ValueError, match=r"labels: expected an int8 tensor \[B, A\]"):
        ops.sample_anchors(torch.zeros(4, dtype=torch.int8), RNG)


def test_numpy_arrays_come_back_as_arrays() -> None:
    labels, matched = ops.assign_anchors(ANCHORS.numpy(), BOXES.numpy(), COUNTS.numpy())
    assert isinstance(labels, np.ndarray)
    assert labels.tolist() == [[1, 1, 0]]
    assert matched.tolist() == [[0, 1, -1]]


def test_boxes_that_require_a_gradient_are_constants() -> None:
    _, _, deltas, _, _ = targets(gt_boxes=BOXES.clone().requires_grad_())
    assert not deltas.requires_grad


def test_half_boxes_may_go_with_single_anchors() -> None:
    for got, want in zip(targets(gt_boxes=BOXES.half()), targets()):
        assert torch.equal(got, want)


def pyramid(g: np.random.Generator, integer: bool) -> ops.AnchorGrids:
    """Some levels with any anchors, strides and sizes."""
    levels = []
    for _ in range(g.integers(1, 5)):
        half = g.uniform(0, 60, (g.integers(1, 5), 4))
        cells = np.rint(half / 4) * 4 if integer else half
        size, stride = g.integers(1, 40, 2), g.integers(1, 33, 2)
        corners = torch.tensor(cells * [-1, -1, 1, 1], dtype=torch.float32)
        levels.append((corners, (int(size[0]), int(size[1])), (int(stride[0]), int(stride[1]))))
    return ops.AnchorGrids(levels, offset=float(g.choice([0.0, 0.5])))


@pytest.mark.parametrize("seed", range(60))
def test_windows_of_grids_hide_nothing(seed: int) -> None:
    """Grid anchors are looked at only where their overlap may matter; the oracle looks at all."""
    g = np.random.default_rng(seed)
    integer = bool(g.integers(2))
    grids, dtype = pyramid(g, integer), g.choice([np.float32, np.float64])
    table = reference.explicit_anchors(grids.cells.numpy().astype(dtype), grids.grid, grids.offset)
    low, high = table.min(0)[:2], table.max(0)[2:]
    B, G = 2, int(g.choice([1, 3, 20]))
    corner = low + g.random((B, G, 2)) * (high - low)
    side = np.exp(g.uniform(0.0, np.log((high - low).max() + 2.0), (B, G, 2)))
    boxes = np.concatenate([corner, corner + side], -1)
    boxes = np.rint(boxes / 4) * 4 if integer else boxes
    boxes[:, 0] = table[g.integers(len(table), size=B)]
    kwargs: dict[str, Any] = {"legacy": bool(g.integers(2))}
    if g.random() < 0.5:
        kwargs["image_sizes"] = np.stack([(high[::-1] * g.uniform(0.4, 1.0, 2)).astype(dtype)] * B)
    if g.random() < 0.4:
        kwargs |= {"crowd": g.random((B, G)) < 0.3, "crowd_overlap": float(g.choice([0.0, 0.5, 0.7]))}
    if g.random() < 0.5:
        kwargs |= {"positive_iou": float(g.choice([0.0, 0.5])), "negative_iou": float(g.choice([0.0, 0.1, 0.5]))}
    boxes, counts = boxes.astype(dtype), np.full(B, G)
    want = reference.assign_anchors(table, boxes, counts, **kwargs)
    tensors = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in kwargs.items()}
    for anchors in (grids, torch.from_numpy(table)):
        got = ops.assign_anchors(anchors, torch.from_numpy(boxes), torch.from_numpy(counts), **tensors)
        for result, answer in zip(got, want):
            assert np.array_equal(result.numpy(), answer)


def coco_like(G: int) -> tuple[ops.AnchorGrids, Tensor, Tensor]:
    """The feature pyramid of an 800 x 1333 picture."""
    shapes = [(32, (200, 336), 4), (64, (100, 168), 8), (128, (50, 84), 16), (256, (25, 42), 32), (512, (13, 21), 64)]
    levels = [(ops.generate_anchors((size,), (0.5, 1.0, 2.0)), grid, stride) for size, grid, stride in shapes]
    g = torch.Generator().manual_seed(3)
    side = torch.exp(torch.rand(2, G, 2, generator=g) * 3.0 + 3.0)
    corner = torch.rand(2, G, 2, generator=g) * torch.tensor([1000.0, 500.0])
    return ops.AnchorGrids(levels), torch.cat([corner, corner + side], -1), torch.tensor([G, G // 2])


def test_the_number_of_threads_and_the_kind_of_anchors_change_nothing() -> None:
    grids, boxes, counts = coco_like(100)
    table = grids.materialize()
    crowd = torch.rand(boxes.shape[:2], generator=torch.Generator().manual_seed(1)) < 0.1
    kwargs = {"image_sizes": [(800, 1333), (700, 1200)], "crowd": crowd}
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            for anchors in (grids, table):
                labels, matched = ops.assign_anchors(anchors, boxes, counts, **kwargs)
                drawn = ops.sample_anchors(labels, RNG)
                results.append((labels, matched, *drawn, *ops.rpn_targets(anchors, boxes, counts, RNG, **kwargs)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    labels, matched, indices, sampled, drawn_counts, *fused = results[0]
    assert torch.equal(fused[0], indices)
    assert torch.equal(fused[1], sampled)
    assert torch.equal(fused[4], drawn_counts)
    positive = sampled == 1
    assert torch.equal(fused[3][positive], matched.gather(1, indices.clamp(min=0))[positive])


def test_a_step_of_rng_draws_anew() -> None:
    labels = torch.zeros(2, 1000, dtype=torch.int8)
    rng = torch.tensor([5, 0])
    first, _, _ = ops.sample_anchors(labels, rng, batch_size=50, positive_fraction=0.0)
    again, _, _ = ops.sample_anchors(labels, rng.clone(), batch_size=50, positive_fraction=0.0)
    rng[1] += 1
    second, _, _ = ops.sample_anchors(labels, rng, batch_size=50, positive_fraction=0.0)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1]), "images draw for themselves"


def test_every_candidate_is_drawn_equally_often() -> None:
    labels = torch.zeros(400, 60, dtype=torch.int8)
    labels[:, ::3] = 1
    seen = torch.zeros(60)
    for step in range(10):
        indices, _, _ = ops.sample_anchors(labels, torch.tensor([8, step]), batch_size=15, positive_fraction=5 / 15)
        seen += torch.bincount(indices.flatten(), minlength=60)
    expected = 4000 * torch.where(labels[0] == 1, 5 / 20, 10 / 40)
    assert ((seen - expected).abs() < 6 * (expected * 0.75).sqrt()).all()


def test_a_sample_larger_than_the_anchors_takes_all() -> None:
    labels = torch.tensor([[1, 0, -1, 0]], dtype=torch.int8)
    indices, sampled, counts = ops.sample_anchors(labels, RNG, batch_size=1000, positive_fraction=1.0)
    assert indices[0, :4].tolist() == [0, 1, 3, -1]
    assert sampled[0, :4].tolist() == [1, 0, 0, -1]
    assert (indices[0, 4:] == -1).all()
    assert counts.tolist() == [[1, 2]]


def test_no_images() -> None:
    empty = torch.zeros(0, 2, 4), torch.zeros(0, dtype=torch.int64)
    assert [tuple(t.shape) for t in ops.assign_anchors(ANCHORS, *empty)] == [(0, 3), (0, 3)]
    assert [tuple(t.shape) for t in ops.rpn_targets(ANCHORS, *empty, RNG, batch_size=5)][2] == (0, 5, 4)
