"""Sizes that only a GPU's memory and speed make sensible, and agreement with torchvision there. Needs a GPU."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from frcnn_fast import ops, use_backend
from tests.samples import boxes

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and "cuda" not in os.environ.get("FRCNN_REQUIRE", ""), reason="needs a CUDA device"
)
BACKENDS = ["cuda", "triton"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def many_boxes(N: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(11)
    return boxes(g, N, high=8000.0), torch.randn(N, generator=g)


def need_memory(gigabytes: float) -> None:
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes:g} GiB of free GPU memory, has {free:.1f}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_million_boxes(backend: str) -> None:
    box, scores = many_boxes(10**6)
    wanted = ops.nms_padded(box[None], scores[None], 0.5, 2000)
    with use_backend(backend):
        found = ops.nms_padded(box[None].cuda(), scores[None].cuda(), 0.5, 2000)
        values, order, _ = ops.top_n(scores[None].cuda(), 10**6)
    for got, want in zip(found, wanted):
        assert torch.equal(got.cpu(), want)
    by_sort = torch.sort(scores, descending=True, stable=True)
    assert torch.equal(order[0].cpu(), by_sort.indices)
    assert torch.equal(values[0].cpu(), by_sort.values)


@pytest.mark.parametrize("backend", BACKENDS)
def test_maps_of_more_than_two_to_the_31_elements(backend: str) -> None:
    """The last image of the batch lies beyond 32-bit offsets; alone it must give the same."""
    need_memory(24)
    B, C, H, W = 33, 256, 512, 512
    maps = torch.zeros(B, C, H, W, dtype=torch.bfloat16, device="cuda")
    assert maps.numel() > 2**31
    maps[-1].normal_(generator=torch.Generator("cuda").manual_seed(2))
    rois = torch.cat([torch.full((64, 1), B - 1.0), boxes(torch.Generator().manual_seed(3), 64, high=512.0)], 1).cuda()
    alone = rois - torch.tensor([B - 1.0, 0, 0, 0, 0], device="cuda")
    with use_backend(backend):
        for op in (ops.roi_pool, lambda m, r, s: ops.roi_align(m, r, s, sampling_ratio=2)):
            assert torch.equal(op(maps, rois, 7), op(maps[-1:].clone(), alone, 7))


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_of_more_than_two_to_the_31_elements(backend: str) -> None:
    need_memory(24)
    B, N = 2200, 10**6
    scores = torch.zeros(B, N, dtype=torch.bfloat16, device="cuda")
    assert scores.numel() > 2**31
    scores[-1].normal_(generator=torch.Generator("cuda").manual_seed(4))
    with use_backend(backend):
        values, indices, counts = ops.top_n(scores, 100)
        alone = ops.top_n(scores[-1:], 100)
    for whole, one in zip((values, indices, counts), alone):
        assert torch.equal(whole[-1:], one)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("N", [1, 100, 6000, 30000])
def test_torchvision_keeps_the_same_boxes(N: int, backend: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    box, scores = (t.cuda() for t in many_boxes(N))
    ids = torch.randint(0, 80, (N,), generator=torch.Generator().manual_seed(5)).cuda()
    with use_backend(backend):
        assert torch.equal(ops.nms(box, scores, 0.5), torchvision.ops.nms(box, scores, 0.5))
        by_class = ops.batched_nms(box, scores, ids, 0.5)
    # Class by class: torchvision's own batched_nms shifts the boxes, which rounds them.
    per_class = [torch.nonzero(ids == c)[:, 0] for c in range(80)]
    kept = torch.cat([rows[torchvision.ops.nms(box[rows], scores[rows], 0.5)] for rows in per_class])
    kept = kept[scores[kept].argsort(descending=True, stable=True)]
    assert torch.equal(by_class, kept)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["roi_pool", "roi_align"])
def test_torchvision_pools_alike(name: str, dtype: torch.dtype, backend: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    if dtype == torch.bfloat16:
        pytest.skip("torchvision pools no bfloat16")
    g = torch.Generator().manual_seed(6)
    image = torch.randn(2, 64, 38, 50, generator=g).to("cuda", dtype)
    rois = torch.cat([torch.arange(60).remainder(2)[:, None].float(), boxes(g, 60, high=600.0)], 1).to("cuda", dtype)
    options = {"sampling_ratio": 2, "aligned": True} if name == "roi_align" else {}
    grad = torch.randn(60, 64, 7, 7, generator=g).to("cuda", dtype)

    def run(function) -> tuple[Tensor, Tensor | None]:
        leaf = image.clone().requires_grad_()
        pooled = function(leaf, rois, (7, 7), 1 / 16, **options)
        pooled.backward(grad)
        return pooled.detach(), leaf.grad

    with use_backend(backend):
        ours = run(getattr(ops, name))
    theirs = run(getattr(torchvision.ops, name))
    for got, want in zip(ours, theirs):
        scale = float(want.abs().max())
        tolerance = 32 * torch.finfo(dtype).eps
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * scale)
