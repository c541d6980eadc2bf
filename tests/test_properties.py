"""What must hold for any input, searched by hypothesis on every fast backend that is here."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from frcnn_fast import ops

from .conformance.backends import BACKENDS, Backend

FAST = [b for b in BACKENDS if not b.missing and not b.slow and b.name in ("cpu", "cuda")]
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=FAST, ids=lambda b: b.name)
def backend(request: pytest.FixtureRequest):
    with request.param.activate():
        yield request.param


# Small integers make ties, touching edges and exact thresholds likely, and counterexamples readable.
coordinate = st.integers(-4, 12)
side = st.integers(0, 8)
box = st.tuples(coordinate, coordinate, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
score = st.one_of(st.integers(-3, 3), st.sampled_from([float("inf"), float("-inf"), float("nan"), -0.0]))
scored_boxes = st.lists(st.tuples(box, score), max_size=70)
threshold = st.sampled_from([0.0, 0.25, 0.3, 1 / 3, 0.5, 0.7, 1.0])
seeds = st.integers(0, 2**32 - 1)


def on(backend: Backend, values: object, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype).reshape(*shape).to(backend.device)


def rank(scores: np.ndarray) -> list[int]:
    return sorted((i for i in range(len(scores)) if scores[i] == scores[i]), key=lambda i: (-scores[i], i))


@given(rows=scored_boxes, limit=threshold)
@relaxed
def test_nms_keeps_apart_and_drops_only_what_overlaps(backend: Backend, rows: list, limit: float) -> None:
    boxes = on(backend, [r[0] for r in rows], -1, 4)
    scores = on(backend, [r[1] for r in rows], -1)
    keep = ops.nms(boxes, scores, limit).cpu().tolist()
    above = ops.box_iou(boxes, boxes).cpu().numpy() > np.float32(limit)
    order = rank(scores.cpu().numpy())
    assert keep == [i for i in order if i in set(keep)], "kept rows come in rank order"
    place = {i: p for p, i in enumerate(order)}
    for p, i in enumerate(keep):
        assert not any(above[i, k] for k in keep[:p]), "two kept boxes overlap above the threshold"
    for i in set(order) - set(keep):
        assert any(above[i, k] and place[k] < place[i] for k in keep), f"box {i} was dropped by no kept box"


@given(rows=scored_boxes, limit=threshold, seed=seeds)
@relaxed
def test_nms_does_not_depend_on_the_order_of_its_input(backend: Backend, rows: list, limit: float, seed: int) -> None:
    boxes = on(backend, [r[0] for r in rows], -1, 4)
    scores = on(backend, list(range(len(rows))), -1)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(rows))).to(backend.device)
    assert ops.nms(boxes, scores, limit).tolist() == order[ops.nms(boxes[order], scores[order], limit)].tolist()


@given(rows=scored_boxes, limit=threshold, classes=st.integers(1, 4))
@relaxed
def test_batched_nms_is_nms_of_each_class(backend: Backend, rows: list, limit: float, classes: int) -> None:
    boxes, scores = on(backend, [r[0] for r in rows], -1, 4), on(backend, [r[1] for r in rows], -1)
    ids = torch.arange(len(rows), device=backend.device) % classes
    alone = [
        torch.nonzero(ids == c)[:, 0][ops.nms(boxes[ids == c], scores[ids == c], limit)].tolist()
        for c in range(classes)
    ]
    assert sorted(ops.batched_nms(boxes, scores, ids, limit).tolist()) == sorted(itertools.chain(*alone))


@given(rows=st.lists(box, max_size=20))
@relaxed
def test_iou_is_symmetric_and_at_most_one(backend: Backend, rows: list) -> None:
    boxes = on(backend, rows, -1, 4)
    iou = ops.box_iou(boxes, boxes)
    assert torch.equal(iou.isnan(), iou.T.isnan())
    assert torch.equal(iou.nan_to_num(), iou.T.nan_to_num())
    assert not ((iou < 0) | (iou > 1)).any()
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert (iou.diagonal()[area > 0] == 1).all()


@given(values=st.lists(score, max_size=300), n=st.integers(0, 320))
@relaxed
def test_top_n_is_the_head_of_the_ranking(backend: Backend, values: list, n: int) -> None:
    scores = on(backend, values, 1, -1) if values else torch.zeros(1, 0, device=backend.device)
    best, indices, counts = (t.cpu() for t in ops.top_n(scores, n))
    order = rank(scores[0].cpu().numpy())[:n]
    assert counts.tolist() == [len(order)]
    assert indices[0].tolist() == order + [-1] * (n - len(order))
    assert best[0].tolist() == [float(scores[0, i]) for i in order] + [0.0] * (n - len(order))


@given(seed=seeds, legacy=st.booleans(), dtype=st.sampled_from([torch.float32, torch.float64]))
@relaxed
def test_decoding_undoes_encoding(backend: Backend, seed: int, legacy: bool, dtype: torch.dtype) -> None:
    g = np.random.default_rng(seed)
    corner = g.uniform(50.0, 400.0, (2, 1, 30, 2))
    anchors, objects = np.concatenate([corner, corner + g.uniform(8.0, 200.0, corner.shape)], axis=-1)
    weights = tuple(g.uniform(1.0, 10.0, 4))
    a, o = on(backend, anchors, 1, 30, 4, dtype=dtype), on(backend, objects, 1, 30, 4, dtype=dtype)
    deltas = ops.encode(o, a, weights=weights, legacy=legacy)
    boxes, valid = ops.decode_clip(
        deltas, a, on(backend, [5000.0, 5000.0], 1, 2, dtype=dtype), weights=weights, legacy=legacy
    )
    # Inclusive pixels: the decoded far corner is one more (the width includes it).
    wanted = o + on(backend, [0.0, 0.0, 1.0, 1.0], 4, dtype=dtype) if legacy else o
    assert valid.all()
    torch.testing.assert_close(boxes, wanted, rtol=0, atol=2e-3 if dtype == torch.float32 else 1e-10)


@given(seed=seeds, shift=st.tuples(st.integers(0, 3), st.integers(0, 3)))
@relaxed
def test_proposals_move_with_the_picture(backend: Backend, seed: int, shift: tuple[int, int]) -> None:
    """Ren et al. 2015, section 3.1.1: moving the picture by whole strides moves every proposal by as much."""
    g = np.random.default_rng(seed)
    height, width, k, stride, (dy, dx) = 6, 7, 3, 16, shift
    cells = ops.generate_anchors((16, 32, 48), (1.0,)).to(backend.device)
    logits = np.full((height + 6, width + 6, k), np.nan)  # NaN: never proposed
    deltas = np.zeros((height + 6, width + 6, k, 4))
    inner = (slice(3, 3 + height), slice(3, 3 + width))
    logits[inner] = g.normal(size=(height, width, k))
    # Quarters of a side and no growth: every sum is exact, so the moved boxes are equal to the bit.
    deltas[inner][..., :2] = g.integers(-2, 3, (height, width, k, 2)) / 4

    def propose(rows: int, columns: int) -> tuple[Tensor, ...]:
        placed = [np.roll(m, (rows, columns), (0, 1)).reshape(1, -1, *m.shape[3:]) for m in (logits, deltas)]
        grids = ops.AnchorGrids([(cells, (height + 6, width + 6), stride)])
        sizes = on(backend, [1000.0, 1000.0], 1, 2)
        return ops.rpn_proposals(
            on(backend, placed[0], 1, -1),
            on(backend, placed[1], 1, -1, 4),
            grids,
            sizes,
            pre_nms_top_n=100,
            post_nms_top_n=40,
        )

    boxes, scores, indices, counts = propose(0, 0)
    moved_boxes, moved_scores, moved_indices, moved_counts = propose(dy, dx)
    count = int(counts[0])
    assert count == int(moved_counts[0])
    assert torch.equal(scores, moved_scores)
    assert (moved_indices - indices)[0, :count].tolist() == [(dy * (width + 6) + dx) * k] * count
    offset = on(backend, [dx * stride, dy * stride] * 2, 4)
    assert torch.equal(boxes[0, :count] + offset, moved_boxes[0, :count])


@given(anchors=st.lists(box, min_size=1, max_size=60), objects=st.lists(box, max_size=6), legacy=st.booleans())
@relaxed
def test_every_object_that_is_touched_has_an_anchor(
    backend: Backend, anchors: list, objects: list, legacy: bool
) -> None:
    a, o = (
        on(backend, anchors, -1, 4),
        on(backend, objects, 1, -1, 4) if objects else torch.zeros(1, 0, 4, device=backend.device),
    )
    labels, matched = ops.assign_anchors(a, o, on(backend, [len(objects)], 1, dtype=torch.int64), legacy=legacy)
    iou = ops.box_iou(a, o[0], legacy=legacy).nan_to_num(0.0)
    assert torch.equal(labels == 1, matched >= 0), "exactly the positive anchors have an object"
    positive = labels[0] == 1
    for j in range(len(objects)):
        best = iou[:, j].max()
        assert best == 0 or positive[iou[:, j] == best].all(), f"object {j}: its best anchors are not positive"
    if objects:
        best = iou.max(1).values
        assert positive[best >= np.float32(0.7)].all()
        assert not (labels[0] == 0)[best >= np.float32(0.3)].any()
        assert (iou[positive, matched[0, positive].long()] == best[positive]).all(), "a positive's object is its best"


@given(
    values=st.lists(st.sampled_from([-1, 0, 1]), max_size=200),
    rng=st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40)),
    batch=st.integers(1, 64),
    share=st.floats(0.0, 1.0),
)
@relaxed
def test_a_sample_is_as_full_as_it_can_be(backend: Backend, values: list, rng: tuple, batch: int, share: float) -> None:
    labels = (
        on(backend, values, 1, -1, dtype=torch.int8)
        if values
        else torch.zeros(1, 0, dtype=torch.int8, device=backend.device)
    )
    most = int(batch * share)
    state = on(backend, rng, 2, dtype=torch.int64)
    indices, sampled, counts = ops.sample_anchors(labels, state, batch_size=batch, positive_fraction=share)
    positives, negatives = counts[0].tolist()
    assert positives == min(most, values.count(1))
    assert negatives == min(batch - positives, values.count(0))
    chosen = indices[0, : positives + negatives].tolist()
    assert [values[i] for i in chosen] == sampled[0, : len(chosen)].tolist() == [1] * positives + [0] * negatives
    assert chosen[:positives] == sorted(set(chosen[:positives]))
    assert chosen[positives:] == sorted(set(chosen[positives:]))
    assert (indices[0, len(chosen) :] == -1).all()


@given(seed=seeds, size=st.integers(1, 7), scale=st.sampled_from([1.0, 0.5, 0.25]))
@relaxed
def test_pooling_takes_cells_of_the_map(backend: Backend, seed: int, size: int, scale: float) -> None:
    """With distinct cell values every RoIPool output names its cell; RoIAlign of a constant map is that constant."""
    g = np.random.default_rng(seed)
    numbered = torch.arange(1.0, 1 + 12 * 15).reshape(1, 1, 12, 15).to(backend.device)
    corner = g.uniform(0.0, 0.6, (20, 2)) * [15, 12] / scale
    rois = np.concatenate(
        [np.zeros((20, 1)), corner, corner + g.uniform(0.0, 0.35, (20, 2)) * [15, 12] / scale], axis=1
    )
    boxes = on(backend, rois, -1, 5)
    pooled = ops.roi_pool(numbered, boxes, size, scale)
    assert torch.equal(pooled, pooled.round())
    assert ((pooled >= 1) & (pooled <= 12 * 15)).all()
    # Values grow along rows and down columns, so the maxima of later bins do not shrink.
    assert (pooled.diff(dim=2) >= 0).all()
    assert (pooled.diff(dim=3) >= 0).all()
    constant = torch.full_like(numbered, 3.0)
    torch.testing.assert_close(ops.roi_align(constant, boxes, size, scale, 2), torch.full_like(pooled, 3.0))


@given(seed=seeds, limit=threshold, low=st.sampled_from([0.0, 0.05, 0.4]))
@relaxed
def test_detections_are_sorted_apart_and_inside(backend: Backend, seed: int, limit: float, low: float) -> None:
    g = np.random.default_rng(seed)
    N, K = 25, 3
    corner = g.uniform(0.0, 60.0, (1, N, 2))
    proposals = np.concatenate([corner, corner + g.uniform(5.0, 40.0, corner.shape)], axis=-1)
    boxes, scores, labels, indices, counts = ops.detections(
        on(backend, g.normal(0.0, 2.0, (1, N, K + 1)), 1, N, K + 1),
        on(backend, g.normal(size=(1, N, 4 * K + 4)), 1, N, 4 * K + 4),
        on(backend, proposals, 1, N, 4),
        on(backend, [N], 1, dtype=torch.int64),
        on(backend, [80.0, 90.0], 1, 2),
        score_threshold=low,
        iou_threshold=limit,
        max_detections=40,
    )
    count = int(counts[0])
    boxes, scores, labels = boxes[0, :count], scores[0, :count], labels[0, :count]
    assert (scores.diff() <= 0).all()
    assert (scores > low).all()
    assert ((labels >= 1) & (labels <= K)).all()
    assert ((indices[0, :count] >= 0) & (indices[0, :count] < N)).all()
    assert (indices[0, count:] == -1).all()
    assert ((boxes >= 0) & (boxes <= on(backend, [90.0, 80.0] * 2, 4))).all()
    iou = ops.box_iou(boxes, boxes).triu(1)
    assert not ((iou > np.float32(limit)) & (labels[:, None] == labels[None])).any()
