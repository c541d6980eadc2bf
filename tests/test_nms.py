"""What the conformance suite leaves of the nms family: bad input, gradients, sizes, threads."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from frcnn_fast import ops, reference, use_backend


def random_boxes(n: int, *, seed: int = 0, spread: float = 500.0, side: float = 80.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=g) * spread
    return torch.cat([corner, corner + 1 + torch.rand(n, 2, generator=g) * side], 1), torch.rand(n, generator=g)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


BOXES, SCORES = random_boxes(6)
IDS = torch.zeros(6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("error", "named", "call"),
    [
        (ValueError, "boxes", lambda: ops.nms(BOXES[:, :3], SCORES, 0.5)),
        (ValueError, "boxes", lambda: ops.nms(BOXES[None], SCORES, 0.5)),
        (TypeError, "boxes", lambda: ops.nms(BOXES.long(), SCORES, 0.5)),
        (TypeError, "boxes", lambda: ops.nms(BOXES.tolist(), SCORES, 0.5)),
        (ValueError, "scores", lambda: ops.nms(BOXES, SCORES[:5], 0.5)),
        (TypeError, "scores", lambda: ops.nms(BOXES, SCORES.double(), 0.5)),
        (ValueError, "scores", lambda: ops.nms(BOXES, SCORES.to("meta"), 0.5)),
        (ValueError, "iou_threshold", lambda: ops.nms(BOXES, SCORES, -0.1)),
        (ValueError, "iou_threshold", lambda: ops.nms(BOXES, SCORES, float("nan"))),
        (ValueError, "idxs", lambda: ops.batched_nms(BOXES, SCORES, IDS + 0.5, 0.5)),
        (TypeError, "idxs", lambda: ops.batched_nms(BOXES, SCORES, IDS.to(torch.complex64), 0.5)),
        (ValueError, "idxs", lambda: ops.batched_nms(BOXES, SCORES, IDS[:2], 0.5)),
        (ValueError, "boxes", lambda: ops.nms_padded(BOXES, SCORES, 0.5, 3)),
        (ValueError, "max_output", lambda: ops.nms_padded(BOXES[None], SCORES[None], 0.5, -1)),
        (TypeError, "max_output", lambda: ops.nms_padded(BOXES[None], SCORES[None], 0.5, 1.5)),
        (ValueError, "class_ids", lambda: ops.nms_padded(BOXES[None], SCORES[None], 0.5, 3, class_ids=IDS)),
        (TypeError, "counts", lambda: ops.nms_padded(BOXES[None], SCORES[None], 0.5, 3, counts=torch.ones(1))),
        (ValueError, "counts", lambda: ops.nms_padded(BOXES[None], SCORES[None], 0.5, 3, counts=IDS)),
        (ValueError, "boxes2", lambda: ops.box_iou(BOXES, BOXES[:, :2])),
        (TypeError, "boxes2", lambda: ops.box_iou(BOXES, BOXES.half())),
        (TypeError, "boxes2", lambda: ops.box_iou(BOXES.long(), BOXES)),
        (TypeError, "boxes1", lambda: ops.box_iou(BOXES > 3, BOXES > 3)),
        (ValueError, "backend", lambda: ops.nms(BOXES, SCORES, 0.5, backend="fast")),
    ],
)
def test_bad_input_is_named(error: type[Exception], named: str, call) -> None:
    with pytest.raises(error, match=named):
        call()


@pytest.mark.parametrize("count", [-1, 7])
def test_a_count_beyond_the_rows_is_named(count: int) -> None:
    with pytest.raises(ValueError, match=rf"counts\[1\] is {count}, expected 0 to the padded size 6"):
        ops.nms_padded(BOXES.expand(2, 6, 4), SCORES.expand(2, 6), 0.5, 3, counts=torch.tensor([6, count]))


@pytest.mark.parametrize("n", [300, 2500])
@pytest.mark.parametrize("limit", [0.0, 0.3, 0.7])
def test_threads_do_not_change_the_result(n: int, limit: float, threads: None) -> None:
    boxes, scores = random_boxes(n)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(ops.nms(boxes, scores, limit))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_many_threads_find_what_one_does(threads: None) -> None:
    """Enough boxes for the threaded path: boxes that hardly overlap, so that the list of kept ones is long."""
    boxes, scores = random_boxes(20000, spread=4000.0)
    boxes = torch.cat([boxes, boxes + 0.5])
    scores = torch.cat([scores, scores - 0.25])
    torch.set_num_threads(1)
    alone = ops.nms(boxes, scores, 0.6)
    torch.set_num_threads(3)
    assert torch.equal(ops.nms(boxes, scores, 0.6), alone)
    keep, count = ops.nms_padded(boxes[None], scores[None], 0.6, 5000)
    assert count.item() == 5000
    assert torch.equal(keep[0], alone[:5000])


@pytest.mark.parametrize("limit", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("stretched", [(1.0, 1.0), (30.0, 1.0), (1.0, 1e-3)])
def test_cells_do_not_change_the_result(stretched: tuple[float, float], limit: float) -> None:
    """A long list of boxes is kept in a grid of cells; that of a class, which here is the only one, is not."""
    boxes, scores = random_boxes(20000, spread=2000.0)
    boxes[::7] += 0.25 * boxes[::7].roll(1, 0)  # others, wider ones and inverted ones among them
    boxes[0] = torch.tensor([-1e6, -1e6, 1e6, 1e6])
    boxes[1] = torch.tensor([1e5, 3.0, 1e5 + 40.0, 80.0])
    boxes[2:4] = 7.0  # without area
    boxes *= torch.tensor(stretched * 2)
    whole = ops.batched_nms(boxes, scores, torch.zeros(len(boxes), dtype=torch.int64), limit)
    assert torch.equal(ops.nms(boxes, scores, limit), whole)


def test_a_million_boxes() -> None:
    """On a grid, each twice: the first of either pair stays."""
    x = torch.arange(707 * 707)
    corner = torch.stack([x % 707, x // 707], 1) * 10.0
    boxes = torch.cat([corner, corner + 9.0], 1).repeat(2, 1)
    scores = torch.linspace(1.0, 0.0, len(boxes))
    keep, count = ops.nms_padded(boxes[None], scores[None], 0.5, 3000)
    assert count.item() == 3000
    assert torch.equal(keep[0], torch.arange(3000))


def test_class_ids_may_be_anything() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(7, 1)
    scores = torch.linspace(1.0, 0.1, 7)
    huge = torch.tensor([2**63 - 1, -(2**63), 2**63 - 1, 5, -(2**63), 5, 2**62])
    assert ops.batched_nms(boxes, scores, huge, 0.5).tolist() == [0, 1, 3, 6]
    for dtype in (torch.int32, torch.int16, torch.uint8):
        ids = torch.tensor([3, 3, 200, 200, 3, 7, 7]).to(dtype)
        assert ops.batched_nms(boxes, scores, ids, 0.5).tolist() == [0, 2, 5]


def test_a_precision_decides_in_its_own_arithmetic() -> None:
    """6/20 rounds to the threshold 0.3 in either precision, and is not above it."""
    boxes = torch.tensor([[0.0, 0.0, 13.0, 1.0], [7.0, 0.0, 20.0, 1.0]])  # 6 of 20
    scores = torch.tensor([1.0, 0.5])
    assert ops.nms(boxes, scores, 0.3).tolist() == [0, 1]
    assert ops.nms(boxes.double(), scores.double(), 0.3).tolist() == [0, 1]
    assert ops.nms(boxes.double(), scores.double(), np.nextafter(0.3, 0.0)).tolist() == [0]
    assert ops.nms(boxes, scores, float(np.nextafter(np.float32(0.3), np.float32(0)))).tolist() == [0]


def test_numpy_in_numpy_out() -> None:
    boxes, scores = BOXES.numpy(), SCORES.numpy()
    scores.flags.writeable = False
    keep = ops.nms(boxes, scores, 0.5)
    assert isinstance(keep, np.ndarray)
    assert np.array_equal(keep, reference.nms(boxes, scores, 0.5))
    keep, count = ops.nms_padded(boxes[None], scores[None], 0.5, 10)
    assert keep.shape == (1, 10)
    assert isinstance(count, np.ndarray)
    assert isinstance(ops.box_iou(boxes, boxes), np.ndarray)


def test_integer_boxes_are_exact_beyond_float32() -> None:
    a = torch.tensor([[0, 0, 2**24 + 1, 1]])
    b = torch.tensor([[0, 0, 2**24 + 3, 1]])
    got = ops.box_iou(a, b)
    assert got.dtype == torch.float32
    assert got.item() == np.float32((2**24 + 1) / (2**24 + 3))


@pytest.mark.parametrize("legacy", [False, True])
def test_box_iou_gradient(legacy: bool) -> None:
    a, b = random_boxes(5, spread=60)[0].double(), random_boxes(7, seed=1, spread=60)[0].double()
    a.requires_grad_()
    b.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: ops.box_iou(a, b, legacy=legacy), (a, b))
    assert torch.autograd.gradcheck(lambda b: ops.box_iou(a.detach(), b, legacy=legacy), (b,))


def test_box_iou_gradient_of_the_formula() -> None:
    """Ties of max and min split evenly; identical, nested, touching and separate boxes; half precision."""
    a = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [30, 30, 40, 40]])
    b = torch.tensor([[0.0, 0, 10, 10], [2, 2, 12, 8]])
    weight = torch.arange(1.0, 9.0).reshape(4, 2)

    def formula(a: Tensor, b: Tensor) -> Tensor:
        low = torch.maximum(a[:, None, :2], b[None, :, :2])
        high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
        side = torch.relu(high - low)
        overlap = side[..., 0] * side[..., 1]
        area = [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b)]
        return overlap / (area[0][:, None] + area[1][None] - overlap)

    gradients = []
    for function in (ops.box_iou, formula):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        (function(x, y) * weight).sum().backward()
        gradients += [x.grad, y.grad]
    torch.testing.assert_close(gradients[0], gradients[2])
    torch.testing.assert_close(gradients[1], gradients[3])
    half = a.half().requires_grad_()
    (ops.box_iou(half, b.half()) * weight).sum().backward()
    torch.testing.assert_close(half.grad, gradients[0].half(), rtol=1e-3, atol=1e-3)


def test_results_carry_no_gradient() -> None:
    boxes = BOXES.clone().requires_grad_()
    keep, _ = ops.nms_padded(boxes[None], SCORES[None], 0.5, 4)
    assert not keep.requires_grad
    assert not ops.nms(boxes, SCORES, 0.5).requires_grad


def _in_child(queue) -> None:
    boxes, scores = random_boxes(3000)
    queue.put(ops.nms(boxes, scores, 0.7).tolist())


def test_works_in_a_forked_process() -> None:
    boxes, scores = random_boxes(3000)
    wanted = ops.nms(boxes, scores, 0.7).tolist()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=600) == wanted
    child.join()


def _soft_input(N: int = 200) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    corner = torch.rand(1, N, 2, generator=g) * 60
    return torch.cat([corner, corner + torch.rand(1, N, 2, generator=g) * 40 + 1], -1), torch.rand(1, N, generator=g)


def test_hard_soft_nms_is_nms() -> None:
    boxes, scores = _soft_input()
    keep = ops.nms(boxes[0], scores[0], 0.4)
    found = ops.soft_nms(boxes, scores, 200, method="hard", iou_threshold=0.4, score_threshold=0.0)
    assert found.keep[0, : len(keep)].tolist() == keep.tolist()
    assert found.num_keep.tolist() == [len(keep)]
    assert torch.equal(found.kept_scores[0, : len(keep)], scores[0, keep])


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_soft_nms_keeps_boxes_by_falling_score_and_never_raises_one(method: str) -> None:
    boxes, scores = _soft_input()
    found = ops.soft_nms(boxes, scores, 200, method=method, score_threshold=0.01)
    n = int(found.num_keep)
    assert 0 < n <= 200
    assert (found.kept_scores[0, : n - 1] >= found.kept_scores[0, 1:n]).all()
    assert (found.kept_scores[0, :n] <= scores[0, found.keep[0, :n]]).all()
    assert found.keep[0, :n].unique().numel() == n


def test_gaussian_with_a_small_sigma_drops_every_overlap() -> None:
    boxes, scores = _soft_input()
    soft = ops.soft_nms(boxes, scores, 200, method="gaussian", sigma=1e-12, score_threshold=0.0)
    keep = ops.nms(boxes[0], scores[0], 0.0)
    assert soft.keep[0, : int(soft.num_keep)].tolist() == keep.tolist()


@pytest.mark.parametrize(
    ("error", "named", "wrong"),
    [
        (ValueError, "method", {"method": "soft"}),
        (ValueError, "sigma", {"sigma": 0.0}),
        (ValueError, "score_threshold", {"score_threshold": -0.1}),
        (ValueError, "iou_threshold", {"iou_threshold": float("nan")}),
        (ValueError, "counts", {"counts": torch.tensor([201])}),
        (TypeError, "max_output", {"max_output": 1.5}),
    ],
)
def test_soft_nms_refuses(error: type[Exception], named: str, wrong: dict[str, Any]) -> None:
    boxes, scores = _soft_input()
    with pytest.raises(error, match=named):
        ops.soft_nms(boxes, scores, **{"max_output": 5, **wrong})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("N", [0, 1, 40, 128, 129])
def test_few_boxes_take_the_short_way_to_the_same_answer(N: int, dtype: torch.dtype) -> None:
    """The usual way is the one that a named backend goes."""
    box, scores = (t.to(dtype) for t in random_boxes(N, seed=N))
    short = sys.modules["frcnn_fast.ops.nms"]._nms_of_few(box, scores, 0.3)
    assert (short is None) == (N > 128)
    wanted = ops.nms(box, scores, 0.3, backend="cpu")
    assert torch.equal(ops.nms(box, scores, 0.3), wanted)
    assert torch.equal(ops.nms(box.t().contiguous().t(), scores, 0.3), wanted)


def test_few_boxes_take_the_usual_way_where_somebody_watches() -> None:
    box, scores = random_boxes(20)
    few = sys.modules["frcnn_fast.ops.nms"]._nms_of_few
    assert few(box, scores, 0.3) is not None
    with use_backend("reference"):
        assert few(box, scores, 0.3) is None
    with FlopCounterMode(display=False):
        assert few(box, scores, 0.3) is None
    for wrong in (scores[:5], scores.double(), scores[None], scores.to("meta"), scores.long()):
        assert few(box, wrong, 0.3) is None
    for threshold in (-0.1, float("nan"), 1):
        assert few(box, scores, threshold) is None
