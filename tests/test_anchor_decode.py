"""Anchors, decode and encode beyond the conformance suite: bad input, gradients, layouts, anchors by grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from frcnn_fast import ops

CELLS = ops.generate_anchors((32, 64), (0.5, 1.0, 2.0))
SIZES = [(100.0, 120.0), (90.0, 80.0)]


def boxes(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=g, dtype=torch.float64) * 80
    return torch.cat([corner, corner + torch.rand(*shape, 2, generator=g, dtype=torch.float64) * 40 + 1], -1).to(dtype)


def small_deltas(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(*shape, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.3).to(dtype)


def test_the_published_table() -> None:
    anchors = ops.generate_anchors((128, 256, 512), (0.5, 1, 2), convention="legacy")
    assert anchors.tolist() == [
        [-84, -40, 99, 55], [-176, -88, 191, 103], [-360, -184, 375, 199],
        [-56, -56, 71, 71], [-120, -120, 135, 135], [-248, -248, 263, 263],
        [-36, -80, 51, 95], [-80, -168, 95, 183], [-168, -344, 183, 359],
    ]  # fmt: skip


def test_grids_number_their_anchors_level_by_level() -> None:
    grids = ops.AnchorGrids([(CELLS[:2], (2, 3), 16), (CELLS[2:3], (1, 2), (32, 64))], offset=0.5)
    table = grids.materialize()
    assert (grids.num_anchors, grids.level_sizes, grids.grid) == (14, [12, 2], [2, 3, 2, 16, 16, 1, 2, 1, 32, 64])
    # Level 0, cell (y, x) = (1, 2), anchor 1; then level 1, cell (0, 1), anchor 0.
    assert torch.equal(table[(1 * 3 + 2) * 2 + 1], CELLS[1] + torch.tensor([40.0, 24.0, 40.0, 24.0]))
    assert torch.equal(table[13], CELLS[2] + torch.tensor([96.0, 16.0, 96.0, 16.0]))
    assert repr(grids) == "AnchorGrids(2x3x2 at stride (16, 16), 1x2x1 at stride (32, 64); offset 0.5)"


@pytest.mark.parametrize("k", [1, 3, 9, 15, 100, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grids_of_any_size_make_the_same_anchors_as_tables(k: int, dtype: torch.dtype) -> None:
    """Rows longer and shorter than what a kernel writes out at once, empty levels, starts within a row."""
    cells = boxes(k, dtype=dtype) - 50
    levels = [(cells, (3, 41), 8), (cells[:1], (0, 5), 16), (cells, (2, 1), (7, 16)), (cells[: k // 2 + 1], (1, 7), 32)]
    for parts in (levels, levels[:1], levels[1:3]):
        grids = ops.AnchorGrids(parts, offset=0.3)
        tables = [ops.grid_anchors(c, size, stride, offset=0.3, backend="reference") for c, size, stride in parts]
        assert torch.equal(grids.materialize(), torch.cat(tables))
        deltas = small_deltas(2, grids.num_anchors, dtype=dtype)
        for got, want in zip(ops.decode_clip(deltas, grids, SIZES), ops.decode_clip(deltas, torch.cat(tables), SIZES)):
            assert torch.equal(got, want)


def wrong_calls() -> list[Any]:
    deltas, anchors = small_deltas(2, 5), boxes(5)
    grids = ops.AnchorGrids([(CELLS, (1, 1), 16)])

    def decode(**changes: Any) -> Callable[[], Any]:
        arguments = {"deltas": deltas, "anchors": anchors, "image_sizes": SIZES} | changes
        return lambda: ops.decode_clip(**arguments)

    def level(cells: Any = CELLS, size: Any = (2, 2), stride: Any = 16) -> Callable[[], Any]:
        return lambda: ops.AnchorGrids([(cells, size, stride)])

    return [
        (decode(deltas=deltas[0]), ValueError, r"deltas: expected shape \[B, A, 4\], got float32\[5, 4\]"),
        (decode(deltas=deltas.int()), TypeError, "deltas: expected float16, bfloat16, float32 or float64"),
        (
            decode(anchors=anchors[:4]),
            ValueError,
            r"anchors: expected \[A, 4\] or \[B, A, 4\] with B = 2, A = 5, got .*\[4, 4\]",
        ),
        (decode(anchors=anchors.double()), TypeError, "anchors: expected float32 elements.*got float64"),
        (decode(anchors=grids), ValueError, "anchors: expected A = 5 of them in all, got 6: AnchorGrids"),
        (decode(anchors=[1, 2]), TypeError, "anchors: expected AnchorGrids or a tensor"),
        (decode(anchors=anchors.to("meta")), ValueError, "anchors: expected the device of the other inputs"),
        (decode(image_sizes=SIZES[:1]), ValueError, r"image_sizes: expected shape \[B, 2\] = \[2, 2\]"),
        (decode(weights=(1, 1, 1)), ValueError, "weights: expected four positive numbers"),
        (decode(weights=(1, 1, 0, 1)), ValueError, "weights: expected four positive numbers"),
        (decode(clamp=math.nan), ValueError, "clamp: expected a number, got nan"),
        (decode(min_size=-1), ValueError, "min_size: expected a number of at least 0"),
        (decode(image_scales=torch.ones(3)), ValueError, r"image_scales: expected shape \[B\] = \[2\]"),
        (
            lambda: ops.encode(boxes(5), boxes(4)),
            ValueError,
            r"anchors: expected a shape that broadcasts.*\[4, 4\]",
        ),
        (lambda: ops.encode(boxes(5), boxes(5).double()), TypeError, "anchors: expected the dtype of gt_boxes"),
        (lambda: ops.encode(boxes(5)[:, :3], boxes(5)), ValueError, r"gt_boxes: expected shape \[..., 4\]"),
        (lambda: ops.generate_anchors((0,), (1.0,)), ValueError, "sizes: expected positive numbers"),
        (
            lambda: ops.generate_anchors((8,), (1.0,), convention="x"),
            ValueError,
            "convention: expected one of",
        ),
        (lambda: ops.grid_anchors(CELLS, (2,), 16), ValueError, r"grid_size: expected \(height, width\)"),
        (lambda: ops.grid_anchors(CELLS.half(), (2, 2), 16), TypeError, "cell_anchors: expected float32 or float64"),
        (lambda: ops.AnchorGrids([]), ValueError, "levels: expected 1 to 8, got 0"),
        (level(size=(-1, 2)), ValueError, r"grid_size: expected \(height, width\) of at least 0"),
        (level(stride=0), ValueError, "stride: expected a positive whole number"),
        (level(stride=(8, 8.5)), ValueError, "stride: expected a positive whole number"),
        (level(cells=CELLS[:, :2]), ValueError, r"levels: expected shape \[k, 4\]"),
    ]


@pytest.mark.parametrize(("call", "error", "message"), wrong_calls())
def test_wrong_arguments_are_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("legacy", [False, True])
def test_gradient_of_decode(legacy: bool) -> None:
    grids = ops.AnchorGrids([(CELLS.double(), (2, 2), 16)])
    deltas = small_deltas(2, grids.num_anchors, dtype=torch.float64).requires_grad_()
    table = grids.materialize()

    def decode(anchors: Any) -> Callable[[Tensor], Tensor]:
        return lambda d: ops.decode_clip(d, anchors, SIZES, weights=(2, 3, 4, 5), clamp=0.1, legacy=legacy)[0]

    assert torch.autograd.gradcheck(decode(table), (deltas,))
    deltas.grad = None
    decode(grids)(deltas).sum().backward()
    by_grid, deltas.grad = deltas.grad, None
    decode(table)(deltas).sum().backward()
    assert torch.equal(by_grid, deltas.grad)


def test_the_gradient_passes_what_lies_exactly_on_the_edge() -> None:
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    deltas = torch.zeros(1, 1, 4, requires_grad=True)
    decoded, _ = ops.decode_clip(deltas, anchors, [(8.0, 8.0)], clamp=0.0)
    decoded[0, 0, 2].backward()  # the right edge is 8 in an image 8 wide, and the growth is at its clamp
    assert deltas.grad is not None
    assert deltas.grad.tolist() == [[[8.0, 0.0, 4.0, 0.0]]]


def test_what_the_gradient_does_not_reach() -> None:
    deltas = small_deltas(1, 5).requires_grad_()
    decoded, valid = ops.decode_clip(deltas, boxes(5), SIZES[:1])
    assert not valid.requires_grad
    (decoded * torch.ones(()).expand_as(decoded)).sum().backward()  # a gradient without strides of its own
    assert deltas.grad is not None
    assert deltas.grad.shape == deltas.shape
    assert not ops.encode(boxes(3).requires_grad_(), boxes(3)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_memory_that_starts_anywhere(dtype: torch.dtype) -> None:
    """A contiguous view need not be aligned to more than its elements."""
    deltas = small_deltas(2, 9, dtype=dtype)
    unaligned = torch.empty(deltas.numel() + 1, dtype=dtype)[1:].view_as(deltas).copy_(deltas)
    anchors = boxes(9, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for got, want in zip(ops.decode_clip(unaligned, anchors, SIZES), ops.decode_clip(deltas, anchors, SIZES)):
        assert torch.equal(got, want)


def test_the_number_of_threads_changes_nothing() -> None:
    grids = ops.AnchorGrids([(CELLS, (30, 41), 8), (CELLS, (15, 21), 16)])
    deltas = small_deltas(2, grids.num_anchors)
    gt = boxes(2, grids.num_anchors)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([*ops.decode_clip(deltas, grids, SIZES), ops.encode(gt, grids.materialize())])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_numpy_arrays_come_back_as_arrays() -> None:
    anchors = boxes(6).numpy()
    decoded, valid = ops.decode_clip(np.zeros((1, 6, 4), np.float32), anchors, [(200.0, 200.0)])
    assert isinstance(decoded, np.ndarray)
    assert valid.all()
    np.testing.assert_allclose(decoded[0], anchors, rtol=1e-6)
    assert not ops.encode(anchors, anchors).any()


def test_grids_compile_into_the_graph() -> None:
    def decode(deltas: Tensor, cells: Tensor) -> Tensor:
        grids = ops.AnchorGrids([(cells, (2, 3), (16, 16))])
        return ops.decode_clip(deltas * 2, grids, [(100.0, 120.0)])[0]

    deltas = small_deltas(1, 36)
    compiled = torch.compile(decode, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(deltas, CELLS), decode(deltas, CELLS))
