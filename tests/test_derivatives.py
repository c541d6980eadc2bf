"""A derivative that does not exist is refused, and a saved tensor may come back in any layout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from frcnn_fast import ops
from frcnn_fast.model.losses import head_losses, rpn_losses
from frcnn_fast.ops._operator import Operator
from tests.samples import OPERATOR_OF, Sample, operator_of, samples

SAMPLES = samples()


def first_result(sample: Sample, x: Tensor) -> Tensor:
    """The first floating result, for x in the place of the first input."""
    result = sample(x, *sample.tensors[1:])
    return next(r for r in (result if isinstance(result, tuple) else (result,)) if r.is_floating_point())


def differentiable() -> list[str]:
    """The ops whose result follows their first input."""
    names = []
    for name, sample in SAMPLES.items():
        x = sample.tensors[0]
        if x.is_floating_point() and not sample.dynamic:
            with contextlib.suppress(StopIteration):
                if first_result(sample, x.clone().requires_grad_()).requires_grad:
                    names.append(name)
    return names


DIFFERENTIABLE = differentiable()
LINEAR = {
    "gather_anchors",
    "roi_align",
    "multiscale_roi_align",
    "prroi_pool",
    "roi_pool",
}  # in the map; the second derivative is in the gradient


class Watching(TorchDispatchMode):
    """Sends every op through the dispatcher."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_all_that_have_a_gradient_are_here() -> None:
    wanted = {"box_iou", "decode_clip", "gather_anchors", "multiscale_roi_align"}
    wanted |= {"prroi_pool", "roi_align", "roi_pool", "sigmoid_focal_loss", *OPERATOR_OF}
    assert set(DIFFERENTIABLE) == wanted


@pytest.mark.parametrize("watched", [False, True], ids=["eager", "dispatcher"])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_second_derivative_is_refused(name: str, watched: bool) -> None:
    sample = SAMPLES[name]
    x = sample.tensors[0].clone().requires_grad_()
    with Watching() if watched else contextlib.nullcontext():
        result = first_result(sample, x)
        weight = torch.ones_like(result).requires_grad_()
        (gradient,) = torch.autograd.grad(result, x, weight, create_graph=True)
        assert gradient.requires_grad
        for source in (weight,) if name in LINEAR else (weight, x):
            with pytest.raises(NotImplementedError, match=f"{operator_of(name)}: there is no second derivative"):
                torch.autograd.grad(gradient.sum(), source, retain_graph=True)


class Silent(torch.autograd.Function):
    """Lets nothing back, not even zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


@pytest.mark.parametrize("watched", [False, True], ids=["eager", "dispatcher"])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_no_gradient_is_filled_with_zeros(name: str, watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of a result that nobody differentiates, such as an argmax, nor of one whose gradient is absent."""
    sample, came = SAMPLES[name], list[tuple[Any, ...]]()
    gradients = Operator._gradients

    def watched_gradients(op: Operator, ctx: Any, grads: tuple[Any, ...]) -> dict[str, Any]:
        came.append(grads)
        return gradients(op, ctx, grads)

    monkeypatch.setattr(Operator, "_gradients", watched_gradients)
    x = sample.tensors[0].clone().requires_grad_()
    with Watching() if watched else contextlib.nullcontext():
        result = first_result(sample, x)
        (found,) = torch.autograd.grad(result.sum(), x, retain_graph=True)
        (absent,) = torch.autograd.grad(Silent.apply(result).sum(), x, allow_unused=True)
    assert torch.equal(found, gradient(name, sample.tensors[0]))
    assert absent is None
    assert [grads[0] is None for grads in came[:2]] == [False, True]
    assert all(g is None for grads in came for g in grads[1:])


@pytest.mark.parametrize("name", ["box_iou", "decode_clip", "sigmoid_focal_loss", *OPERATOR_OF])
def test_a_hessian_is_refused(name: str) -> None:
    sample = SAMPLES[name]
    with pytest.raises(NotImplementedError, match=f"{operator_of(name)}: there is no second derivative"):
        torch.autograd.functional.hessian(lambda x: first_result(sample, x).sum(), sample.tensors[0])


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_forward_mode_is_refused(name: str) -> None:
    sample = SAMPLES[name]
    x = sample.tensors[0]
    refused = f"{operator_of(name)}: there is no forward-mode derivative"
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=refused):
        first_result(sample, forward_ad.make_dual(x, torch.ones_like(x)))
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(lambda x: first_result(sample, x), (x,), (torch.ones_like(x),))


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_within_forward_mode_what_carries_no_tangent_is_computed(name: str) -> None:
    with forward_ad.dual_level():
        SAMPLES[name]()


def gradient(name: str, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(first_result(SAMPLES[name], leaf).sum(), leaf)[0]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_functorch_has_the_same_gradient(name: str) -> None:
    sample = SAMPLES[name]
    x = sample.tensors[0]

    def loss(x: Tensor) -> Tensor:
        return first_result(sample, x).sum()

    assert torch.equal(torch.func.grad(loss)(x), gradient(name, x))
    value, back = torch.func.vjp(loss, x)
    assert torch.equal(value, loss(x))
    assert torch.equal(back(torch.ones(()))[0], gradient(name, x))  # the transform has ended by now
    outer = torch.func.grad(lambda scale: (torch.func.grad(loss)(x) * scale).sum())(torch.ones(()))
    torch.testing.assert_close(outer, gradient(name, x).sum())


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_of_many_samples(name: str) -> None:
    sample = SAMPLES[name]
    xs = torch.stack([sample.tensors[0], sample.tensors[0] * 0.5])
    wanted = torch.stack([gradient(name, x) for x in xs])

    def loss(x: Tensor) -> Tensor:
        return first_result(sample, x).sum()

    assert torch.equal(torch.vmap(torch.func.grad(loss))(xs), wanted)
    assert torch.equal(torch.func.grad(lambda xs: torch.vmap(loss)(xs).sum())(xs), wanted)


@pytest.mark.parametrize("name", ["box_iou", "decode_clip", "sigmoid_focal_loss", *OPERATOR_OF])
def test_functorch_refuses_a_second_derivative(name: str) -> None:
    sample = SAMPLES[name]

    def slope(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: first_result(sample, x).sum())(x).sum()

    with pytest.raises(NotImplementedError, match=f"{operator_of(name)}: there is no second derivative"):
        torch.func.grad(slope)(sample.tensors[0])


@pytest.mark.filterwarnings("error")  # one is torch's word for a rule that it made up
@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_vmap_is_a_call_a_sample(name: str) -> None:
    sample = SAMPLES[name]
    second = [t.roll(1, -1) if t.is_floating_point() and t.shape[-1] != 4 else t for t in sample.tensors]
    second = [t if t.shape[-1] != 5 else sample.tensors[i] for i, t in enumerate(second)]
    stacked = [torch.stack(pair) for pair in zip(sample.tensors, second, strict=True)]
    if sample.dynamic:
        with pytest.raises(NotImplementedError, match=f"{name}: not under torch.vmap"):
            torch.vmap(sample)(*stacked)
        return
    found, first, other = torch.vmap(sample)(*stacked), sample(), sample(*second)
    if isinstance(found, Tensor):
        found, first, other = (found,), (first,), (other,)
    for f, a, b in zip(found, first, other, strict=True):
        assert torch.equal(f, torch.stack([a, b]))


class Kept:
    """A saved tensor as it may come back: its values and shape, in an order of memory of the hook's own."""

    @staticmethod
    def contiguous(t: Tensor) -> Tensor:
        return t.contiguous().clone()

    @staticmethod
    def transposed(t: Tensor) -> Tensor:
        return t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() > 1 else t


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("way", ["save_on_cpu", "contiguous", "transposed", "checkpoint", "reentrant"])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_saved_tensors_may_be_restored_in_any_layout(name: str, way: str, channels_last: bool) -> None:
    sample = SAMPLES[name]
    start = sample.tensors[0]
    if channels_last:
        if start.dim() != 4:
            pytest.skip("no map")
        start = start.contiguous(memory_format=torch.channels_last)

    def gradient(around: Callable[[], Any], call: Callable[..., Any]) -> Tensor:
        x = start.clone(memory_format=torch.preserve_format).requires_grad_()
        with around():
            result = call(x)
        weight = torch.linspace(-1, 1, result.numel()).reshape(result.shape)
        return torch.autograd.grad(result, x, weight)[0] if way != "reentrant" else backward(result, x, weight)

    def backward(result: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        result.backward(weight)
        assert x.grad is not None
        return x.grad

    def plain(x: Tensor) -> Tensor:
        return first_result(sample, x)

    wanted = gradient(contextlib.nullcontext, plain)
    if way == "save_on_cpu":
        found = gradient(torch.autograd.graph.save_on_cpu, plain)
    elif way in ("checkpoint", "reentrant"):
        found = gradient(contextlib.nullcontext, lambda x: checkpoint(plain, x, use_reentrant=way == "reentrant"))
    else:
        hook = getattr(Kept, way)
        found = gradient(lambda: torch.autograd.graph.saved_tensors_hooks(hook, lambda t: t), plain)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_does_not_count_makes_no_loss_nan(value: float) -> None:
    """Padded rows, and the boxes of background rows."""
    logits, deltas = torch.randn(1, 6).requires_grad_(), torch.randn(1, 6, 4).requires_grad_()
    indices = torch.tensor([[1, 4, -1]])
    labels = torch.tensor([[1, 0, -1]], dtype=torch.int8)
    targets = torch.zeros(1, 3, 4)
    with torch.no_grad():
        deltas[0, 4], deltas[0, 0], logits[0, 0] = value, value, value
    maps = [logits[:, :, None, None]], [deltas.reshape(1, 24, 1, 1)]
    loss = sum(rpn_losses(*maps, indices, labels, targets, n_cls=2, n_reg=2))
    assert isinstance(loss, Tensor)
    for gradient in torch.autograd.grad(loss, (logits, deltas)):
        assert gradient.isfinite().all()
    assert loss.isfinite()

    class_logits, box_deltas = torch.randn(1, 3, 3).requires_grad_(), torch.randn(1, 3, 12).requires_grad_()
    with torch.no_grad():
        box_deltas[0, 1], box_deltas[0, 2], class_logits[0, 2] = value, value, value
    loss = sum(head_losses(class_logits, box_deltas, torch.tensor([[2, 0, -1]]), targets))
    assert isinstance(loss, Tensor)
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, (class_logits, box_deltas)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bool, torch.uint8, torch.int16])
def test_class_ids_of_any_kind(kind: torch.dtype) -> None:
    boxes, scores = torch.rand(20, 4).cumsum(1), torch.rand(20)
    ids = torch.randint(0, 2, (20,))
    assert torch.equal(ops.batched_nms(boxes, scores, ids.to(kind), 0.3), ops.batched_nms(boxes, scores, ids, 0.3))


@pytest.mark.parametrize("odd", [0.5, float("nan"), float("inf")])
def test_class_ids_that_are_not_whole_are_refused(odd: float) -> None:
    with pytest.raises(ValueError, match="idxs: expected whole numbers"):
        ops.batched_nms(torch.zeros(2, 4), torch.zeros(2), torch.tensor([1.0, odd]), 0.3)
