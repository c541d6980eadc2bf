"""Precise RoI pooling: what it means, its gradients in features and boxes, layouts, threads, lists, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from frcnn_fast import ops
from frcnn_fast.ops._operator import Operator
from tests.test_box_gradients import LAST, example, gradients
from tests.test_box_gradients import precise as call


def test_it_is_the_mean_of_the_interpolated_map() -> None:
    """Against the mean of very many bilinear samples."""
    features, rois = example(dtype=torch.float64)
    padded = torch.nn.functional.pad(features, (1, 1, 1, 1))  # beyond the map all is 0
    n, shift = 60, torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64)
    moved = rois + 4 * (1 - shift)
    # RoIAlign reads the border where the padded map has zeros already; beyond it its samples add 0, as here.
    sampled = ops.roi_align(padded, moved, (3 * n, 4 * n), 0.25, 1)
    small = ((rois[:, 3:] - rois[:, 1:3]) * 0.25 < 1).any(1)  # RoIAlign would enlarge those
    wanted = sampled.reshape(len(rois), 5, 3, n, 4, n).mean((3, 5))
    torch.testing.assert_close(call(features, rois)[~small], wanted[~small], rtol=0, atol=2e-3)
    assert (~small).sum() > 5


def test_a_plane_gives_its_value_at_the_centre_of_each_bin() -> None:
    y, x = torch.meshgrid(torch.arange(20).double(), torch.arange(20).double(), indexing="ij")
    features = (2 * x - 3 * y + 1)[None, None]
    box = torch.tensor([[0, 2.3, 1.7, 17.9, 18.2]], dtype=torch.float64)
    output = ops.prroi_pool(features, box, (4, 5), 1.0)[0, 0]
    columns = 2.3 + 15.6 * (torch.arange(5).double() + 0.5) / 5
    rows = 1.7 + 16.5 * (torch.arange(4).double() + 0.5) / 4
    torch.testing.assert_close(output, 2 * columns[None] - 3 * rows[:, None] + 1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("size", [(3, 2), (1, 1), (2, 7)])
def test_gradcheck(layout: torch.memory_format, size: tuple[int, int]) -> None:
    """In features and boxes, whose corners lie anywhere, on cells too, on the map and beyond it."""
    features, rois = example(4, 2, 6, torch.float64)
    features = features.contiguous(memory_format=layout)
    extra = [[0, 4, 8, 12, 16], [1, 9, 9, 10, 10.5], [0, -6, -6, 40, 40], [1, -2, 20, 3, 30]]
    rois = torch.cat([rois, torch.tensor(extra, dtype=torch.float64)])
    images, boxes = rois[:, :1], rois[:, 1:].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, b: call(f, torch.cat([images, b], 1), size), (features.requires_grad_(), boxes)
    )


@pytest.mark.parametrize("wanted", ["features", "rois"])
def test_only_what_is_asked_for_is_computed(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, rois = example()
    _, *both = gradients(features, rois, call)
    ran: list[str] = []
    run = Operator.run

    def watched(self: Operator, *args: object) -> object:
        ran.append(self.name)
        return run(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Operator, "run", watched)
    leaf = (features if wanted == "features" else rois).requires_grad_()
    output = call(features, rois)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    (found,) = torch.autograd.grad(output, leaf, grad)
    assert torch.equal(found, both[wanted == "rois"])
    assert ran == ["prroi_pool", "prroi_pool_backward" if wanted == "features" else "prroi_pool_rois_backward"]


def test_arrays_give_arrays() -> None:
    features, rois = example(8)
    got = ops.prroi_pool(features.numpy(), rois.numpy(), (3, 4), 0.25)  # type: ignore[arg-type]
    assert isinstance(got, np.ndarray)
    assert np.array_equal(got, call(features, rois).numpy())


def test_maps_larger_than_a_tile() -> None:
    g = torch.Generator().manual_seed(1)
    features = torch.randn(1, 3, 300, 900, generator=g)
    rois = torch.tensor([[0, 12.0, 40.0, 3500.0, 1100.0], [0, -36.0, 80.0, 16.0, 990.0]])
    fast = gradients(features, rois, call, 2)
    with ops.use_backend("reference"):
        wanted = gradients(features, rois, call, 2)
    assert all(torch.equal(a, b) for a, b in zip(fast, wanted, strict=True))


def test_module() -> None:
    features, rois = example()
    module = ops.PrRoIPool((3, 4), 0.25)
    assert torch.equal(module(features, rois), call(features, rois))
    assert repr(module) == "PrRoIPool(output_size=(3, 4), spatial_scale=0.25)"


def test_bad_input_is_named() -> None:
    features, rois = example()
    bad = rois.clone()
    for index in (2.0, -2.0, 0.5, float("nan")):
        bad[5, 0] = index
        with pytest.raises(ValueError, match=r"rois\[5\] names image .*, expected 0 to 1"):
            call(features, bad)
    backward = torch.ops.frcnn_fast.prroi_pool_rois_backward.default
    with pytest.raises(ValueError, match=r"rois\[5\] names image nan, expected 0 to 1"):
        backward(torch.ones(9, 5, 2, 2), features, bad, 0.25, None)
    with pytest.raises(ValueError, match=r"rois: .*\[R, 5\]"):
        call(features, rois[:, 1:])
    with pytest.raises(TypeError, match="rois: "):
        call(features, rois.long())
    with pytest.raises(TypeError, match="features: "):
        call(features.long(), rois)
    with pytest.raises(ValueError, match="features: "):
        call(features[0], rois)
    with pytest.raises(ValueError, match="rois: expected a list of 2 tensors"):
        ops.prroi_pool(features, [rois[:, 1:]], 2)
    with pytest.raises(ValueError, match=r"rois\[1\]: expected shape \[L, 4\]"):
        ops.prroi_pool(features, [rois[:, 1:], rois], 2)
    with pytest.raises(ValueError, match="output_size"):
        call(features, rois, 0)
