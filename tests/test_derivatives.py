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
from tests.samples import Sample, samples

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
    wanted = {"box_iou", "decode_clip", "multiscale_roi_align", "prroi_pool", "roi_align", "roi_pool"}
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
            with pytest.raises(NotImplementedError, match=f"{name}: there is no second derivative"):
                torch.autograd.grad(gradient.sum(), source, retain_graph=True)


@pytest.mark.parametrize("name", ["box_iou", "decode_clip"])
def test_a_hessian_is_refused(name: str) -> None:
    sample = SAMPLES[name]
    with pytest.raises(NotImplementedError, match=f"{name}: there is no second derivative"):
        torch.autograd.functional.hessian(lambda x: first_result(sample, x).sum(), sample.tensors[0])


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_forward_mode_is_refused(name: str) -> None:
    sample = SAMPLES[name]
    x = sample.tensors[0]
    refused = f"{name}: there is no forward-mode derivative"
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=refused):
        first_result(sample, forward_ad.make_dual(x, torch.ones_like(x)))
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(lambda x: first_result(sample, x), (x,), (torch.ones_like(x),))


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_within_forward_mode_what_carries_no_tangent_is_computed(name: str) -> None:
    with forward_ad.dual_level():
        SAMPLES[name]()


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_func_grad_is_the_gradient_or_refused(name: str) -> None:
    sample = SAMPLES[name]
    x = sample.tensors[0]
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(first_result(sample, leaf).sum(), leaf)
    try:
        found = torch.func.grad(lambda x: first_result(sample, x).sum())(x)
    except RuntimeError:
        return
    assert torch.equal(found, wanted)


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
