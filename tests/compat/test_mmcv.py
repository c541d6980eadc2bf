"""mmcv's Python over our functions: what torchvision and mmcv itself serve, against loops of our own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import frcnn_fast

pytest.importorskip("mmcv", reason="mmcv (make test-compat)")
pytest.importorskip("torchvision", reason="torchvision (make test-compat)")


@pytest.fixture(scope="module", autouse=True)
def stand_in() -> Iterator[None]:
    with frcnn_fast.stand_in_for_mmcv():
        import mmcv._ext

        assert mmcv._ext.__spec__.origin == "frcnn_fast.mmcv", "mmcv has a compiled half here"
        yield


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=generator(seed))


def at(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear, [C], differentiable; cells outside are 0, and so is a point a cell or more outside."""
    C, H, W = image.shape
    if not (-1 < y.item() < H and -1 < x.item() < W):
        return image.new_zeros(C)
    top, left = math.floor(y.item()), math.floor(x.item())
    total = image.new_zeros(C)
    for i, j in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= i < H and 0 <= j < W:
            total = total + image[:, i, j] * (1 - (y - i).abs()) * (1 - (x - j).abs())
    return total


def deformed(
    image: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, stride: int, padding: int, dilation: int,
    groups: int, deform_groups: int,
) -> Tensor:  # fmt: skip
    K, per_group, kh, kw = weight.shape
    height = (image.shape[2] + 2 * padding - dilation * (kh - 1) - 1) // stride + 1
    width = (image.shape[3] + 2 * padding - dilation * (kw - 1) - 1) // stride + 1
    rows = []
    share = image.shape[1] // deform_groups
    for b, i, j in itertools.product(range(len(image)), range(height), range(width)):
        seen = []
        for g, u, v in itertools.product(range(deform_groups), range(kh), range(kw)):
            tap = (g * kh + u) * kw + v
            y = i * stride - padding + u * dilation + offset[b, 2 * tap, i, j]
            x = j * stride - padding + v * dilation + offset[b, 2 * tap + 1, i, j]
            value = at(image[b, g * share : (g + 1) * share], y, x)
            seen.append(value if mask is None else value * mask[b, tap, i, j])
        columns = torch.stack(seen).view(deform_groups, kh, kw, share).permute(0, 3, 1, 2).reshape(-1, kh, kw)
        parts = columns.view(groups, per_group, kh, kw)
        rows.append(
            torch.einsum("gkchw,gchw->gk", weight.view(groups, K // groups, per_group, kh, kw), parts).flatten()
        )
    return torch.stack(rows).view(len(image), height, width, K).permute(0, 3, 1, 2)


SHAPES = [(1, 1, 1, 1, 1), (2, 1, 1, 2, 1), (1, 2, 2, 1, 2)]  # stride, padding, dilation, groups, deform_groups


@pytest.mark.parametrize("unmoved", [False, True])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_deformable_convolutions(shape: tuple[int, ...], modulated: bool, unmoved: bool) -> None:
    """Offsets of 0, with which every convolution begins, put samples exactly a cell before the map."""
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    stride, padding, dilation, groups, deform_groups = shape
    image, weight = random(2, 4, 5, 6), random(4, 4 // groups, 3, 3, seed=1)
    height = (5 + 2 * padding - 2 * dilation - 1) // stride + 1
    width = (6 + 2 * padding - 2 * dilation - 1) // stride + 1
    offset = random(2, 18 * deform_groups, height, width, seed=2) * (0 if unmoved else 1.3)
    mask = random(2, 9 * deform_groups, height, width, seed=3).sigmoid()
    bias = random(4, seed=4)
    inputs = [t.requires_grad_() for t in (image, weight, offset, mask, bias)]
    wanted = deformed(image, weight, offset, mask if modulated else None, *shape)
    if modulated:
        wanted = wanted + bias[:, None, None]
        found = modulated_deform_conv2d(image, offset, mask, weight, bias, *shape)
    else:
        found = deform_conv2d(image, offset, weight, *shape)
        inputs = inputs[:3]
    grad = random(*wanted.shape, seed=5)
    torch.testing.assert_close(found, wanted)
    gradients = torch.autograd.grad(wanted, inputs, grad)
    for name, ours, theirs in zip(
        ("image", "weight", "offset", "mask", "bias"), torch.autograd.grad(found, inputs, grad), gradients
    ):
        if name == "offset" and unmoved:
            # At whole numbers there are two derivatives to choose from; at the edge mmcv has chosen.
            edge = unmoved_edge(ours.shape, shape)
            assert edge.any() == bool(padding)
            assert (ours[edge] == 0).all(), "a sample a cell before the map has no derivative"
        else:
            torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def unmoved_edge(size: torch.Size, shape: tuple[int, ...]) -> Tensor:
    """Which offsets along an axis belong to samples at -1 on it."""
    stride, padding, dilation = shape[:3]
    edge = torch.zeros(size, dtype=torch.bool).view(size[0], -1, 3, 3, 2, *size[2:])
    for u, v, i, j in itertools.product(range(3), range(3), range(size[2]), range(size[3])):
        edge[:, :, u, v, 0, i, j] = i * stride - padding + u * dilation == -1
        edge[:, :, u, v, 1, i, j] = j * stride - padding + v * dilation == -1
    return edge.view(size)


def test_offsets_of_another_level() -> None:
    """DyHead: mmcv reads as many numbers of an image as the output needs, in the order of memory."""
    from mmcv.ops import modulated_deform_conv2d

    image, weight = random(2, 2, 4, 4), random(2, 2, 3, 3, seed=1)
    offset, mask = random(2, 18, 8, 8, seed=2).requires_grad_(), random(2, 9, 8, 8, seed=3).sigmoid().requires_grad_()
    as_read = offset.flatten(1)[:, : 18 * 16].view(2, 18, 4, 4), mask.flatten(1)[:, : 9 * 16].view(2, 9, 4, 4)
    wanted = deformed(image, weight, *as_read, 1, 1, 1, 1, 1)
    found = modulated_deform_conv2d(image, offset, mask, weight, None, 1, 1, 1, 1, 1)
    torch.testing.assert_close(found, wanted)
    grad = random(*wanted.shape, seed=5)
    ours, theirs = (torch.autograd.grad(result, (offset, mask), grad) for result in (found, wanted))
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match=r"offset, mask: expected \[B, 18, 4, 4\]"):
        modulated_deform_conv2d(image, offset[:, :, :2, :2], mask, weight, None, 1, 1, 1, 1, 1)


def test_deformable_attention() -> None:
    """As on a GPU, where mmcv calls its compiled functions."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    shapes, heads, points, queries = [(4, 5), (2, 3)], 2, 2, 3
    cells = [height * width for height, width in shapes]
    value = random(2, sum(cells), heads, 4).requires_grad_()
    locations = torch.rand(
        2, queries, heads, 2, points, 2, dtype=torch.float64, generator=generator(1)
    ).requires_grad_()
    weights = random(2, queries, heads, 2, points, seed=2).sigmoid().requires_grad_()
    starts = torch.tensor([0, cells[0]])
    found = MultiScaleDeformableAttnFunction.apply(value, torch.tensor(shapes), starts, locations, weights, 64)
    rows = []
    for b, q, h in itertools.product(range(2), range(queries), range(heads)):
        total: Any = 0
        for level, (height, width) in enumerate(shapes):
            level_map = value[b, starts[level] : starts[level] + cells[level], h].T.view(4, height, width)
            for p in range(points):
                x, y = locations[b, q, h, level, p] * torch.tensor([width, height]) - 0.5
                total = total + weights[b, q, h, level, p] * at(level_map, y, x)
        rows.append(total)
    wanted = torch.stack(rows).view(2, queries, heads * 4)
    torch.testing.assert_close(found, wanted)
    grad = random(*wanted.shape, seed=3)
    ours, theirs = (torch.autograd.grad(result, (value, locations, weights), grad) for result in (found, wanted))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("pool_mode", ["avg", "max"])
def test_roi_align_has_gradients(pool_mode: str) -> None:
    from mmcv.ops import RoIAlign

    layer = RoIAlign(3, 0.5, 2, pool_mode, aligned=True)
    maps = random(2, 3, 8, 9).requires_grad_()
    rois = torch.tensor([[0, 1.3, 2.1, 12.7, 11.2], [1, 4.4, 0.2, 15.1, 9.9]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda maps: layer(maps, rois), (maps,))


def test_synchronised_batch_norm_is_batch_norm_in_one_process(request: pytest.FixtureRequest) -> None:
    from mmcv.ops import SyncBatchNorm

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    request.addfinalizer(torch.distributed.destroy_process_group)
    maps = torch.randn(3, 4, 5, 6, generator=generator()).requires_grad_()
    theirs, ours = torch.nn.BatchNorm2d(4), SyncBatchNorm(4)
    torch.nn.init.ones_(ours.weight)  # mmcv begins with random ones
    torch.testing.assert_close(ours(maps), theirs(maps))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    grad = torch.randn(3, 4, 5, 6, generator=generator(1))
    gradients = [torch.autograd.grad(m(maps), maps, grad)[0] for m in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
