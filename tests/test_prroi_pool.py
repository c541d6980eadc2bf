"""Precise RoI pooling: what it means, its gradients in features and boxes, layouts, threads, lists, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from frcnn_fast import ops
from frcnn_fast.ops._operator import Operator

LAST = torch.channels_last


def example(K: int = 9, C: int = 5, side: int = 12, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Two maps, and boxes at a scale of 1/4, some of which reach beyond them."""
    g = torch.Generator().manual_seed(K + C + side)
    features = torch.randn(2, C, side, side + 3, generator=g, dtype=torch.float64)
    corner = (torch.rand(K, 2, generator=g, dtype=torch.float64) * 1.2 - 0.2) * side * 4
    size = torch.rand(K, 2, generator=g, dtype=torch.float64) * side * 2 + 1
    image = torch.arange(K, dtype=torch.float64)[:, None] % 2
    return features.to(dtype), torch.cat([image, corner, corner + size], 1).to(dtype)


def call(features: Tensor, rois: Tensor, size: int | tuple[int, int] = (3, 4)) -> Tensor:
    return ops.prroi_pool(features, rois, size, 0.25)


def gradients(features: Tensor, rois: Tensor, size: int | tuple[int, int] = (3, 4)) -> tuple[Tensor, ...]:
    """(output, gradient of the features, of the rois)."""
    leaves = features.detach().requires_grad_(), rois.detach().requires_grad_()
    output = call(*leaves, size)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output.dtype)
    return output.detach(), *torch.autograd.grad(output, leaves, grad)


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
    _, *both = gradients(features, rois)
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


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("C", "K"), [(32, 40), (7, 3), (70, 60)])
def test_layouts_and_threads_agree_to_the_bit(
    dtype: torch.dtype, C: int, K: int, threads: Callable[[int], None]
) -> None:
    features, rois = example(K, C, dtype=dtype)
    threads(1)
    wanted = gradients(features, rois)
    for count in (1, 3):
        threads(count)
        for layout in (torch.contiguous_format, LAST):
            found = gradients(features.contiguous(memory_format=layout), rois)
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
            assert found[0].is_contiguous(memory_format=layout)


def test_lists_of_boxes_get_their_gradients() -> None:
    features, rois = example(8)
    rois = rois[rois[:, 0].argsort(stable=True)]
    output, _, grad = gradients(features, rois)
    lists = [rois[rois[:, 0] == image, 1:].clone().requires_grad_() for image in range(2)]
    again = ops.prroi_pool(features, lists, (3, 4), 0.25)
    assert torch.equal(again, output)
    again.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.cat([b.grad for b in lists if b.grad is not None]), grad[:, 1:])
    assert not grad[:, 0].any()
    got = ops.prroi_pool(features.numpy(), rois.numpy(), (3, 4), 0.25)  # type: ignore[arg-type]
    assert isinstance(got, np.ndarray)
    assert np.array_equal(got, output.numpy())


def test_boxes_of_another_dtype_get_gradients_of_their_own() -> None:
    features, rois = example(dtype=torch.float16)
    boxes = rois.double().requires_grad_()
    call(features, boxes).float().sum().backward()
    assert boxes.grad is not None
    assert boxes.grad.dtype == torch.float64
    assert boxes.grad[:, 1:].any()


def test_boxes_learn_their_place() -> None:
    """What it is for: a box is moved onto a bump by its features alone."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    bump = torch.exp(-((x - 14) ** 2 + (y - 9) ** 2) / 18)[None, None]
    box = torch.tensor([5.0, 12.0, 11.0, 18.0], requires_grad=True)
    optimizer = torch.optim.Adam([box], 0.3)
    for _ in range(80):
        optimizer.zero_grad()
        pooled = ops.prroi_pool(bump, torch.cat([torch.zeros(1), box])[None], 1, 1.0)
        (-pooled.sum() + ((box[2:] - box[:2] - 6) ** 2).sum()).backward()
        optimizer.step()
    centre = (box[:2] + box[2:]).detach() / 2
    torch.testing.assert_close(centre, torch.tensor([14.0, 9.0]), rtol=0, atol=0.5)


@pytest.mark.parametrize("name", ["features", "rois"])
def test_a_second_derivative_is_refused(name: str) -> None:
    features, rois = example()
    leaves = {"features": features.requires_grad_(), "rois": rois.requires_grad_()}
    (grad,) = torch.autograd.grad(call(features, rois).square().sum(), leaves[name], create_graph=True)
    for leaf in leaves.values():
        with pytest.raises(NotImplementedError, match="prroi_pool: there is no second derivative"):
            torch.autograd.grad(grad.sum(), leaf, retain_graph=True)


def test_opcheck_with_gradients() -> None:
    features, rois = example()
    for layout in (torch.contiguous_format, LAST):
        arguments = (features.contiguous(memory_format=layout).requires_grad_(), rois.clone().requires_grad_())
        torch.library.opcheck(torch.ops.frcnn_fast.prroi_pool.default, (*arguments, 2, 2, 0.25, None))


def test_compiled_training_step() -> None:
    features, rois = example()
    torch._dynamo.reset()

    def loss(f: Tensor, r: Tensor) -> Tensor:
        return call(f * 2, r + 1 - 1, 3).square().sum()

    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = features.clone().requires_grad_(), rois.clone().requires_grad_()
        found.append(torch.autograd.grad(function(*leaves), leaves))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_empty_inputs_have_empty_or_zero_gradients() -> None:
    features, rois = example()
    for f, r in ((features, rois[:0]), (features[:, :0], rois), (features[:, :, :0], rois)):
        output, grad_features, grad_rois = gradients(f, r)
        assert output.shape == (len(r), f.shape[1], 3, 4)
        assert not output.any()
        assert not grad_features.any()
        assert not grad_rois.any()
    none, padding = torch.empty(0, 3, 8, 8), torch.full((2, 5), -1.0)
    assert not any(t.any() for t in gradients(none, padding))


def test_maps_larger_than_a_tile() -> None:
    g = torch.Generator().manual_seed(1)
    features = torch.randn(1, 3, 300, 900, generator=g)
    rois = torch.tensor([[0, 12.0, 40.0, 3500.0, 1100.0], [0, -36.0, 80.0, 16.0, 990.0]])
    fast = gradients(features, rois, 2)
    with ops.use_backend("reference"):
        wanted = gradients(features, rois, 2)
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
