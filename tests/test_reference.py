"""The oracle against exact rationals, torch's own operators, finite differences and published vectors."""

from __future__ import annotations

import ast
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from frcnn_fast import reference

from .conformance.build import clustered_boxes, generator, integer_boxes, random_boxes, tied_scores

FLOATS = (np.float32, np.float64)


def test_it_shares_no_code_with_the_kernels() -> None:
    for path in Path(reference.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            roots = {name.split(".")[0] for name in names}
            allowed = {"__future__", "collections", "dataclasses", "functools", "itertools", "math", "numpy"}
            assert roots <= allowed, f"{path.name} imports {roots}"


# Arithmetic


def ulps(got: np.ndarray, exact: np.ndarray) -> float:
    """Largest distance in units in the last place of the exact value rounded to the type of `got`."""
    return float(np.max(np.abs(got - exact) / np.spacing(np.abs(exact.astype(got.dtype)))))


@pytest.mark.parametrize("dtype", FLOATS)
def test_exp_is_within_two_ulp(dtype: type) -> None:
    high = 88.0 if dtype == np.float32 else 709.0
    low = -87.0 if dtype == np.float32 else -708.0
    x = np.concatenate([generator(1).uniform(low, high, 200_000), generator(2).uniform(-1.0, 1.0, 200_000)]).astype(
        dtype
    )
    assert ulps(reference.exp_(x), np.exp(x.astype(np.longdouble))) <= 2


@pytest.mark.parametrize("dtype", FLOATS)
def test_log_is_within_two_ulp(dtype: type) -> None:
    exponent = np.concatenate([generator(3).uniform(-87.0, 88.0, 200_000), generator(4).uniform(-1.0, 1.0, 200_000)])
    x = np.exp(exponent).astype(dtype)
    x = x[x != 1]
    assert ulps(reference.log_(x), np.log(x.astype(np.longdouble))) <= 2


@pytest.mark.parametrize("dtype", FLOATS)
def test_atan_is_within_two_ulp(dtype: type) -> None:
    """Everywhere, and around the ends of its ranges: 1/2, 0.66 and tan(3 pi / 8)."""
    everywhere = np.exp(generator(5).uniform(-60.0, 60.0, 200_000))
    x = np.concatenate([everywhere, -everywhere[:1000], generator(6).uniform(0.3, 3.0, 300_000)]).astype(dtype)
    assert ulps(reference.atan_(x), np.arctan(x.astype(np.longdouble))) <= 2
    ends = np.asarray([math.inf, -math.inf, 0, 1, math.nan], dtype)
    np.testing.assert_array_equal(reference.atan_(ends), np.arctan(ends.astype(np.float64)).astype(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_exp_and_log_at_the_ends(dtype: type) -> None:
    inf, nan = math.inf, math.nan
    np.testing.assert_array_equal(
        reference.exp_(np.asarray([0, -0.0, inf, -inf, nan, 1e4, -1e4], dtype)), [1, 1, inf, 0, nan, inf, 0]
    )
    np.testing.assert_array_equal(
        reference.log_(np.asarray([1, 0, -0.0, -1, inf, nan], dtype)), [0, -inf, -inf, nan, inf, nan]
    )
    subnormal = np.finfo(dtype).smallest_subnormal
    assert reference.log_(np.asarray([subnormal]))[0] == pytest.approx(math.log(float(subnormal)), rel=1e-6)
    assert reference.exp_(reference.log_(np.asarray([subnormal * 8])))[0] == pytest.approx(
        float(subnormal) * 8, rel=0.2
    )


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0,) * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_words(counter: tuple, key: tuple, words: str) -> None:
    assert " ".join(f"{int(word):08x}" for word in reference.philox4x32(counter, key)) == words


def test_sampling_keys_use_every_part_of_the_counter() -> None:
    base = reference.sample_keys(np.arange(4), 0, np.asarray([5, 6]), 0)
    for image, rng, stream in ((1, (5, 6), 0), (0, (5, 7), 0), (0, (5 + (1 << 32), 6), 0), (0, (5, 6), 1)):
        assert (reference.sample_keys(np.arange(4), image, np.asarray(rng), stream) != base).all()


# Boxes, by exact rational arithmetic


def rational_iou(a: np.ndarray, b: np.ndarray, offset: int) -> Fraction | None:
    """IoU of integer boxes; None for 0/0."""
    ax, ay, aX, aY = (int(v) for v in a)
    bx, by, bX, bY = (int(v) for v in b)
    width = max(0, min(aX, bX) - max(ax, bx) + offset)
    height = max(0, min(aY, bY) - max(ay, by) + offset)
    area_a = (aX - ax + offset) * (aY - ay + offset)
    union = area_a + (bX - bx + offset) * (bY - by + offset) - width * height
    return Fraction(width * height, union) if union else None


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_iou_is_the_rounded_quotient(dtype: type, legacy: bool) -> None:
    a, b = (integer_boxes(generator(i), (40,)).astype(dtype) for i in (5, 6))
    a[:3, 2:] = a[:3, :2]
    b[:3] = a[:3]
    got = reference.box_iou(a, b, legacy=legacy)
    for i in range(40):
        for j in range(40):
            exact = rational_iou(a[i], b[j], int(legacy))
            want = math.nan if exact is None else dtype(float(exact))
            np.testing.assert_array_equal(got[i, j], dtype(want))


@pytest.mark.parametrize("threshold", [Fraction(0), Fraction(1, 4), Fraction(1, 2), Fraction(3, 4)])
@pytest.mark.parametrize("legacy", [False, True])
def test_nms_equals_rational_greedy(threshold: Fraction, legacy: bool) -> None:
    g = generator(7)
    boxes, scores, classes = integer_boxes(g, (120,)), tied_scores(g, (120,)), g.integers(0, 3, 120)
    kept: list[int] = []
    for i in sorted(range(120), key=lambda i: (-scores[i], i)):
        rivals = (rational_iou(boxes[k], boxes[i], int(legacy)) for k in kept if classes[k] == classes[i])
        if not any(iou is not None and iou > threshold for iou in rivals):
            kept.append(i)
    keep, count = reference.nms_padded(
        boxes[None], scores[None], classes[None], iou_threshold=float(threshold), max_output=120, legacy=legacy
    )
    assert keep[0, : count[0]].tolist() == kept


def test_assignment_equals_rational_rules() -> None:
    g = generator(8)
    anchors, objects = integer_boxes(g, (150,)), integer_boxes(g, (7,))
    labels, matched = reference.assign_anchors(
        anchors, objects[None], np.asarray([7]), positive_iou=0.5, negative_iou=0.25
    )
    table = [[rational_iou(a, o, 0) or Fraction(0) for o in objects] for a in anchors]
    peaks = [max(row[j] for row in table) for j in range(7)]
    for i, row in enumerate(table):
        best = max(row)
        positive = best >= Fraction(1, 2) or any(row[j] == peaks[j] > 0 for j in range(7))
        assert labels[0, i] == (1 if positive else 0 if best < Fraction(1, 4) else -1)
        assert matched[0, i] == (row.index(best) if positive else -1)


def test_samples_are_the_smallest_keys() -> None:
    labels = generator(9).choice(np.asarray([-1, 0, 1], np.int8), (2, 200))
    rng = np.asarray([11, 22])
    indices, sampled, counts = reference.sample_anchors(labels, rng, batch_size=40, positive_fraction=0.375)
    for image in range(2):
        chosen = []
        for label, room in ((1, 15), (0, 25)):
            candidates = np.flatnonzero(labels[image] == label).tolist()
            keys = {i: int(reference.sample_keys(np.asarray([i]), image, rng, 0)[0]) for i in candidates}
            chosen += sorted(sorted(candidates, key=lambda i: (keys[i], i))[:room])
        assert indices[image].tolist() == chosen
        assert sampled[image].tolist() == [1] * 15 + [0] * 25
        assert counts[image].tolist() == [15, 25]


def test_samples_are_fair() -> None:
    """Each of 40 candidates is drawn 10 times in 40 on average: over 2,000 steps within five standard deviations."""
    hits = np.zeros(40)
    for step in range(2000):
        indices, _, _ = reference.sample_anchors(np.zeros((1, 40), np.int8), np.asarray([1, step]), batch_size=10)
        hits[indices[0]] += 1
    assert np.abs(hits - 500).max() < 5 * math.sqrt(2000 * 0.25 * 0.75)


# Decoding


def plain_decode(delta: np.ndarray, anchor: np.ndarray, weights: tuple, clamp: float) -> list[float]:
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    cx = anchor[0] + width / 2 + delta[0] / weights[0] * width
    cy = anchor[1] + height / 2 + delta[1] / weights[1] * height
    w = width * math.exp(min(delta[2] / weights[2], clamp))
    h = height * math.exp(min(delta[3] / weights[3], clamp))
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def test_decode_equals_the_formula() -> None:
    g = generator(10)
    anchors, deltas = random_boxes(g, (200,)), g.normal(0.0, 2.0, (200, 4))
    weights = (10.0, 9.0, 5.0, 4.0)
    got = reference.decode(deltas, anchors, weights=weights, clamp=0.5)
    np.testing.assert_allclose(
        got, [plain_decode(d, a, weights, 0.5) for d, a in zip(deltas, anchors)], rtol=1e-13, atol=1e-11
    )


@pytest.mark.parametrize("legacy", [False, True])
def test_decode_gradient_equals_differences(legacy: bool) -> None:
    g = generator(11)
    anchors, deltas, grad = random_boxes(g, (60,)), g.normal(0.0, 0.5, (1, 60, 4)), g.normal(size=(1, 60, 4))
    sizes = np.asarray([[300.0, 310.0]])
    got = reference.decode_clip_backward(
        grad, deltas, anchors, sizes, clamp=0.6, weights=(2.0, 3.0, 4.0, 5.0), legacy=legacy
    )
    step = 1e-6
    for k in range(4):
        shift = np.zeros(4)
        shift[k] = step
        ends = [
            reference.decode_clip(d, anchors, sizes, clamp=0.6, weights=(2.0, 3.0, 4.0, 5.0), legacy=legacy)[0]
            for d in (deltas + shift, deltas - shift)
        ]
        np.testing.assert_allclose(got[..., k], (grad * (ends[0] - ends[1])).sum(-1) / (2 * step), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("legacy", [False, True])
def test_box_iou_gradient_equals_differences(legacy: bool) -> None:
    g = generator(12)
    boxes, others, grad = random_boxes(g, (20,)), random_boxes(g, (15,)), g.normal(size=(20, 15))
    got = reference.box_iou_backward(grad, boxes, others, legacy=legacy)
    for k in range(4):
        shift = np.zeros(4)
        shift[k] = 1e-5
        ends = [reference.box_iou(b, others, legacy=legacy) for b in (boxes + shift, boxes - shift)]
        np.testing.assert_allclose(got[:, k], (grad * (ends[0] - ends[1])).sum(1) / 2e-5, rtol=1e-4, atol=1e-8)


# Pooling, by torch's operators


def test_roi_pool_equals_adaptive_max_pooling() -> None:
    """For RoIs with integer corners inside the map the bins are those of adaptive pooling."""
    g = generator(13)
    feature = g.normal(size=(2, 3, 20, 30))
    for _ in range(40):
        x1, y1 = int(g.integers(0, 25)), int(g.integers(0, 15))
        x2, y2 = int(g.integers(x1, 30)), int(g.integers(y1, 20))
        image, size = int(g.integers(0, 2)), (int(g.integers(1, 8)), int(g.integers(1, 8)))
        crop = torch.from_numpy(feature[image, :, y1 : y2 + 1, x1 : x2 + 1])
        want, where = F.adaptive_max_pool2d(crop[None], size, return_indices=True)
        row, column = np.divmod(where.numpy()[0], x2 - x1 + 1)
        output, argmax = reference.roi_pool(feature, np.asarray([[image, x1, y1, x2, y2]], np.float64), *size)
        np.testing.assert_array_equal(output[0], want.numpy()[0])
        np.testing.assert_array_equal(argmax[0], (row + y1) * 30 + column + x1)


def sampled_mean(
    feature: np.ndarray, roi: np.ndarray, size: int, scale: float, ratio: int, aligned: bool
) -> np.ndarray:
    """RoIAlign of one RoI by torch's grid_sample."""
    height, width = feature.shape[2:]
    x1, y1, x2, y2 = roi[1:] * scale - (0.5 if aligned else 0.0)
    w, h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
    rows, columns = (ratio if ratio > 0 else math.ceil(side / size) for side in (h, w))
    ys = y1 + (np.arange(size * rows) + 0.5) * h / (size * rows)
    xs = x1 + (np.arange(size * columns) + 0.5) * w / (size * columns)
    grid = np.stack(np.meshgrid(2 * xs / (width - 1) - 1, 2 * ys / (height - 1) - 1), axis=-1)[None]
    image = torch.from_numpy(feature[int(roi[0])][None])
    samples = F.grid_sample(image, torch.from_numpy(grid), padding_mode="border", align_corners=True).numpy()[0]
    inside = ((ys >= -1) & (ys <= height))[:, None] & ((xs >= -1) & (xs <= width))[None, :]
    return (samples * inside).reshape(-1, size, rows, size, columns).mean(axis=(2, 4))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [-1, 1, 2, 3])
def test_roi_align_equals_grid_sample(ratio: int, aligned: bool) -> None:
    g = generator(14)
    feature = g.normal(size=(2, 4, 15, 21))
    rois = np.concatenate([g.integers(0, 2, (30, 1)), random_boxes(g, (30,), 90.0, 50.0)], axis=1)
    got = reference.roi_align(feature, rois, 3, 3, 0.25, ratio, aligned)
    want = [sampled_mean(feature, roi, 3, 0.25, ratio, aligned) for roi in rois]
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_roi_align_backward_is_the_transpose() -> None:
    g = generator(15)
    feature, grad = g.normal(size=(2, 4, 15, 21)), g.normal(size=(30, 4, 3, 3))
    rois = np.concatenate([g.integers(-1, 2, (30, 1)), random_boxes(g, (30,), 90.0, 50.0)], axis=1)
    back = reference.roi_align_backward(grad, rois, feature.shape, False, 0.25)
    assert (back * feature).sum() == pytest.approx(
        (grad * reference.roi_align(feature, rois, 3, 3, 0.25)).sum(), rel=1e-11
    )


def test_roi_pool_backward_is_the_gradient() -> None:
    g = generator(16)
    feature, grad = g.normal(size=(2, 3, 15, 21)), g.normal(size=(30, 3, 3, 3))
    rois = np.concatenate([g.integers(-1, 2, (30, 1)), random_boxes(g, (30,), 90.0, 50.0)], axis=1)
    output, argmax = reference.roi_pool(feature, rois, 3, 3, 0.25)
    back = reference.roi_pool_backward(grad, argmax, rois, feature.shape)
    # The maximum scales with the map: its derivative along the map itself is the output.
    assert (back * feature).sum() == pytest.approx((grad * output).sum(), rel=1e-11)


def test_pyramid_levels_equal_the_logarithm() -> None:
    g = generator(17)
    rois = np.concatenate([np.zeros((2000, 1)), random_boxes(g, (2000,), 500.0, 900.0)], axis=1)
    side = np.sqrt((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2]))
    want = np.clip(np.floor(4 + np.log2(side / 224) + 1e-6), 2, 5) - 2
    np.testing.assert_array_equal(reference.roi_levels(rois, [1 / 4, 1 / 8, 1 / 16, 1 / 32]), want)
    exact = np.asarray([[0, 0, 0, s, s] for s in (111, 112, 224, 448, 1e9)], np.float32)
    assert reference.roi_levels(exact, [1 / 4, 1 / 8, 1 / 16, 1 / 32]).tolist() == [0, 1, 2, 3, 3]


# The composed steps, by their parts


@pytest.mark.parametrize("classes", [2, 33, 91])
def test_softmax_sums_to_one(classes: int) -> None:
    logits = generator(18).normal(0.0, 4.0, (50, classes))
    got = reference.softmax(logits)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(got, powers / powers.sum(axis=1, keepdims=True), rtol=1e-13)
    assert reference.softmax(logits.astype(np.float32)).dtype == np.float32


def test_detections_equal_their_parts() -> None:
    g = generator(19)
    N, K = 50, 4
    proposals, logits = clustered_boxes(g, (1, N)), g.normal(0.0, 2.0, (1, N, K + 1))
    deltas, sizes = g.normal(size=(1, N, 4 * (K + 1))), np.asarray([[400.0, 380.0]])
    boxes, scores, labels, indices, counts = reference.detections(
        logits, deltas, proposals, np.asarray([N]), sizes, max_detections=30, min_size=3.0
    )
    found = []
    probabilities = reference.softmax(logits[0])
    for c in range(1, K + 1):
        decoded, valid = reference.decode_clip(
            deltas[:, :, 4 * c : 4 * c + 4], proposals, sizes, weights=(10.0, 10.0, 5.0, 5.0), min_size=3.0
        )
        rows = np.flatnonzero(valid[0] & (probabilities[:, c] > 0.05))
        for i in reference.nms(decoded[0, rows], probabilities[rows, c], 0.3):
            found.append((-probabilities[rows[i], c], rows[i], c, decoded[0, rows[i]]))
    found.sort(key=lambda row: row[:3])
    assert counts[0] == min(len(found), 30)
    assert labels[0, : counts[0]].tolist() == [row[2] for row in found[:30]]
    assert indices[0, : counts[0]].tolist() == [row[1] for row in found[:30]]
    np.testing.assert_array_equal(scores[0, : counts[0]], [-row[0] for row in found[:30]])
    np.testing.assert_array_equal(boxes[0, : counts[0]], [row[3] for row in found[:30]])


def test_proposals_equal_their_parts() -> None:
    g = generator(20)
    anchors, deltas, scores = random_boxes(g, (300,)), g.normal(0.0, 0.3, (1, 300, 4)), tied_scores(g, (1, 300), 20)
    sizes, levels = np.asarray([[400.0, 380.0]]), ((0, 200), (200, 300))
    decoded, valid = reference.decode_clip(deltas, anchors, sizes, min_size=20.0)
    kept: list[int] = []
    for start, stop in levels:
        order = [i for i in reference.top_n(scores[:, start:stop], 80)[1][0] + start if valid[0, i]]
        # Ranks as scores: ties are already resolved.
        kept += [order[i] for i in reference.nms(decoded[0, order], -np.arange(len(order), dtype=np.float64), 0.6)]
    kept.sort(key=lambda i: (-scores[0, i], i))
    boxes, values, indices, counts = reference.rpn_proposals(
        scores, deltas, anchors, sizes, pre_nms_top_n=80, post_nms_top_n=50, iou_threshold=0.6, min_size=20.0,
        level_sizes=[200, 100],
    )  # fmt: skip
    assert counts[0] == min(len(kept), 50)
    assert indices[0].tolist() == kept[:50]
    np.testing.assert_array_equal(boxes[0], decoded[0, kept[:50]])
    np.testing.assert_array_equal(values[0], scores[0, kept[:50]])
