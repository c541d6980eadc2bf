"""Gradients that pooling has for boxes: of prroi_pool, and of roi_align where they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from frcnn_fast import ops
from frcnn_fast.ops._operator import Operator

LAST = torch.channels_last


def align(
    features: Tensor, rois: Tensor | Sequence[Tensor], size: int | tuple[int, int] = (3, 4), scale: float = 0.25
) -> Tensor:
    return ops.roi_align(features, rois, size, scale, 2, box_gradients=True)


def precise(
    features: Tensor, rois: Tensor | Sequence[Tensor], size: int | tuple[int, int] = (3, 4), scale: float = 0.25
) -> Tensor:
    return ops.prroi_pool(features, rois, size, scale)


def example(K: int = 9, C: int = 5, side: int = 12, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Two maps, and boxes at a scale of 1/4, some of which reach beyond them."""
    g = torch.Generator().manual_seed(K + C + side)
    features = torch.randn(2, C, side, side + 3, generator=g, dtype=torch.float64)
    corner = (torch.rand(K, 2, generator=g, dtype=torch.float64) * 1.2 - 0.2) * side * 4
    size = torch.rand(K, 2, generator=g, dtype=torch.float64) * side * 2 + 6
    image = torch.arange(K, dtype=torch.float64)[:, None] % 2
    return features.to(dtype), torch.cat([image, corner, corner + size], 1).to(dtype)


def gradients(
    features: Tensor, rois: Tensor, pool: Callable[..., Tensor] = align, size: int | tuple[int, int] = (3, 4)
) -> tuple[Tensor, ...]:
    """(output, gradient of the features, of the rois)."""
    leaves = features.detach().requires_grad_(), rois.detach().requires_grad_()
    output = pool(*leaves, size)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output.dtype)
    return output.detach(), *torch.autograd.grad(output, leaves, grad)


of_both = pytest.mark.parametrize("pool", [align, precise])


@of_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("C", "K"), [(32, 40), (7, 3), (70, 60)])
def test_layouts_and_threads_agree_to_the_bit(pool: Callable[..., Tensor], dtype: torch.dtype, C: int, K: int) -> None:
    features, rois = example(K, C, dtype=dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = gradients(features, rois, pool)
        for count in (1, 3):
            torch.set_num_threads(count)
            for layout in (torch.contiguous_format, LAST):
                found = gradients(features.contiguous(memory_format=layout), rois, pool)
                assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
                assert found[0].is_contiguous(memory_format=layout)
    finally:
        torch.set_num_threads(before)


@of_both
def test_lists_of_boxes_and_other_dtypes_get_their_gradients(pool: Callable[..., Tensor]) -> None:
    features, rois = example(8)
    rois = rois[rois[:, 0].argsort(stable=True)]
    output, _, grad = gradients(features, rois, pool)
    lists = [rois[rois[:, 0] == image, 1:].clone().requires_grad_() for image in range(2)]
    again = pool(features, lists)
    assert torch.equal(again, output)
    again.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.cat([b.grad for b in lists if b.grad is not None]), grad[:, 1:])
    assert not grad[:, 0].any()
    wide = rois.double().requires_grad_()
    pool(features.half(), wide).float().sum().backward()
    assert wide.grad is not None
    assert wide.grad.dtype == torch.float64
    assert wide.grad[:, 1:].any()


@of_both
@pytest.mark.parametrize("name", ["features", "rois"])
def test_a_second_derivative_is_refused(pool: Callable[..., Tensor], name: str) -> None:
    features, rois = example()
    leaves = {"features": features.requires_grad_(), "rois": rois.requires_grad_()}
    (grad,) = torch.autograd.grad(pool(features, rois).square().sum(), leaves[name], create_graph=True)
    for leaf in leaves.values():
        with pytest.raises(NotImplementedError, match=r"(roi_align|prroi_pool): there is no second derivative"):
            torch.autograd.grad(grad.sum(), leaf, retain_graph=True)


@pytest.mark.parametrize(
    ("op", "scalars"), [("roi_align", (2, 2, 0.25, 2, False, False)), ("prroi_pool", (2, 2, 0.25))]
)
def test_opcheck(op: str, scalars: tuple[object, ...]) -> None:
    features, rois = example()
    for layout in (torch.contiguous_format, LAST):
        leaves = (features.contiguous(memory_format=layout).requires_grad_(), rois.clone().requires_grad_())
        torch.library.opcheck(getattr(torch.ops.frcnn_fast, op).default, (*leaves, *scalars, None))


@of_both
def test_a_compiled_step_has_the_same_gradients(pool: Callable[..., Tensor]) -> None:
    features, rois = example()
    torch._dynamo.reset()

    def loss(f: Tensor, r: Tensor) -> Tensor:
        return pool(f * 2, r + 1 - 1).square().sum()

    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = features.clone().requires_grad_(), rois.clone().requires_grad_()
        found.append(torch.autograd.grad(function(*leaves), leaves))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@of_both
def test_functorch_has_the_same_gradient(pool: Callable[..., Tensor]) -> None:
    features, rois = example()
    leaf = rois.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(pool(features, leaf).square().sum(), leaf)
    assert torch.equal(torch.func.grad(lambda r: pool(features, r).square().sum())(rois), wanted)


@of_both
def test_empty_inputs_have_empty_or_zero_gradients(pool: Callable[..., Tensor]) -> None:
    features, rois = example()
    for f, r in ((features, rois[:0]), (features[:, :0], rois), (features[:, :, :0], rois)):
        output, grad_features, grad_rois = gradients(f, r, pool)
        assert output.shape == (len(r), f.shape[1], 3, 4)
        assert not output.any()
        assert not grad_features.any()
        assert not grad_rois.any()
    none, padding = torch.empty(0, 3, 8, 8), torch.full((2, 5), -1.0)
    assert not any(t.any() for t in gradients(none, padding, pool))


@of_both
def test_boxes_learn_their_place(pool: Callable[..., Tensor]) -> None:
    """What it is for: a box is moved onto a bump by its features alone."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    bump = torch.exp(-((x - 14) ** 2 + (y - 9) ** 2) / 18)[None, None]
    box = torch.tensor([5.0, 12.0, 11.0, 18.0], requires_grad=True)
    optimizer = torch.optim.Adam([box], 0.3)
    for _ in range(80):
        optimizer.zero_grad()
        pooled = pool(bump, torch.cat([torch.zeros(1), box])[None], 1, 1.0)
        (-pooled.sum() + ((box[2:] - box[:2] - 6) ** 2).sum()).backward()
        optimizer.step()
    centre = (box[:2] + box[2:]).detach() / 2
    torch.testing.assert_close(centre, torch.tensor([14.0, 9.0]), rtol=0, atol=0.5)


def slope_in_x(x1: float, x2: float, width: int = 5, **scalars: bool) -> tuple[float, float]:
    """Of one sample of a box x1 ... x2 on a map whose value is x * x, in x1 and in x2."""
    features = torch.arange(float(width)).square().expand(1, 1, 4, width).contiguous()
    box = torch.tensor([[0.0, x1, 1.0, x2, 2.5]], requires_grad=True)
    ops.roi_align(features, box, 1, 1.0, 1, box_gradients=True, **scalars).backward()
    assert box.grad is not None
    assert box.grad[0, 0] == box.grad[0, 2] == box.grad[0, 4] == 0
    return box.grad[0, 1].item(), box.grad[0, 3].item()


class TestRoIAlign:
    @pytest.mark.parametrize("backend", [None, "reference"])
    @pytest.mark.parametrize("aligned", [False, True])
    @pytest.mark.parametrize("ratio", [-1, 1, 2])
    def test_gradcheck(self, ratio: int, aligned: bool, backend: str | None) -> None:
        """In features and boxes, whose samples lie anywhere but on kinks; small, inverted, and beyond the map, too."""
        features, rois = example(4, 2, 6, torch.float64)
        extra = [
            [0, 4.3, 8.7, 5.1, 9.9],
            [1, -7.3, -6.1, 40.3, 41.7],
            [0, 20.3, 17.9, 8.1, 6.7],
            [1, 30.3, 3.1, 60.9, 9.7],
        ]
        rois = torch.cat([rois, torch.tensor(extra, dtype=torch.float64)])
        images, boxes = rois[:, :1], rois[:, 1:].clone().requires_grad_()

        def pool(f: Tensor, b: Tensor) -> Tensor:
            rois = torch.cat([images, b], 1)
            return ops.roi_align(f, rois, (3, 4), 0.25, ratio, aligned, box_gradients=True)

        with ops.use_backend(backend):
            assert torch.autograd.gradcheck(pool, (features.requires_grad_(), boxes))

    def test_kinks_go_the_way_of_the_forward_pass(self) -> None:
        assert slope_in_x(0.5, 2.5) == (1.5, 1.5)  # at 1.5: 4 - 1, half of it to either end
        assert slope_in_x(1.0, 3.0) == (2.5, 2.5)  # on cell 2: what is to the right, 9 - 4
        assert slope_in_x(-1.0, 1.0) == (0.0, 0.0)  # on the first cell, and
        assert slope_in_x(-2.0, 1.0) == (0.0, 0.0)  # before it, where it is clamped
        assert slope_in_x(-4.0, 0.0) == (0.0, 0.0)  # beyond the map
        assert slope_in_x(3.0, 5.0) == (0.0, 0.0)  # on the last cell, and
        assert slope_in_x(3.5, 5.5) == (0.0, 0.0)  # behind it
        assert slope_in_x(2.5, 4.5) == (3.5, 3.5)  # before it: 16 - 9
        assert slope_in_x(1.25, 1.5) == (3.0, 0.0)  # held at one cell: the left end alone moves the sample, at 1.75
        assert slope_in_x(1.25, 1.5, aligned=True) == (0.5, 0.5)  # at 0.875
        assert slope_in_x(3.5, 1.5, aligned=True) == (2.5, 2.5)  # inverted, on cell 2: the slope to the right

    def test_none_unless_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        features, rois = example()
        _, *both = gradients(features, rois)
        ran: list[str] = []
        run = Operator.run

        def watched(self: Operator, *args: object) -> object:
            ran.append(self.name)
            return run(self, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(Operator, "run", watched)
        for asked in (False, True):
            for wanted in ((True, False), (False, True), (True, True)):
                ran.clear()
                leaves = [t.clone().requires_grad_(wants) for t, wants in zip((features, rois), wanted, strict=True)]
                output = ops.roi_align(*leaves, (3, 4), 0.25, 2, box_gradients=asked)
                assert output.requires_grad == (wanted[0] or asked)
                if output.requires_grad:
                    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(0)))
                found = [leaf.grad for leaf in leaves]
                expected = [wanted[0], wanted[1] and asked]
                assert [grad is not None for grad in found] == expected
                assert all(torch.equal(a, b) for a, b in zip(found, both, strict=True) if a is not None)
                names = ["roi_align_backward"] * expected[0] + ["roi_align_rois_backward"] * expected[1]
                assert ran == ["roi_align", *names]

    def test_maxima_have_none(self) -> None:
        features, rois = example()
        with pytest.raises(ValueError, match="box_gradients: there is no gradient of maxima to the boxes"):
            ops.roi_align(features, rois, 2, mode="max", box_gradients=True)

    def test_a_scripted_module_gives_boxes_none(self) -> None:
        features, rois = example()
        scripted = torch.jit.script(ops.RoIAlign(3, 0.25, 2))
        assert not scripted(features, rois.requires_grad_()).requires_grad
