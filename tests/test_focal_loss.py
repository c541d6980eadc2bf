"""The sigmoid focal loss: its definition, gradients, certain scores, classes, reductions, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from frcnn_fast import ops

LOGITS = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.0, -3.0]])
HARD = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
CLASSES = torch.tensor([0, 2])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def definition(x: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    """In torch, of logits that are not extreme."""
    p = x.sigmoid()
    right = p * t + (1 - p) * (1 - t)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(x, t, reduction="none") * (1 - right) ** gamma
    return loss if alpha < 0 else (alpha * t + (1 - alpha) * (1 - t)) * loss


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.25, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.3])
def test_values_and_gradients_are_the_definitions(gamma: float, alpha: float, soft: bool) -> None:
    x = torch.randn(20, 30, generator=generator(), dtype=torch.float64).mul(3).requires_grad_()
    t = torch.rand(20, 30, generator=generator(1), dtype=torch.float64)
    t = t if soft else t.round()
    weight = torch.rand(20, 30, generator=generator(2), dtype=torch.float64)
    ours, wanted = (
        (loss, *torch.autograd.grad((loss * weight).sum(), x))
        for loss in (ops.sigmoid_focal_loss(x, t, alpha, gamma), definition(x, t, alpha, gamma))
    )
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_gradients_equal_differences(gamma: float) -> None:
    x = torch.randn(5, 4, generator=generator(), dtype=torch.float64).requires_grad_()
    t = torch.rand(5, 4, generator=generator(1), dtype=torch.float64)
    for reduction in ("none", "sum", "mean"):
        assert torch.autograd.gradcheck(lambda x, r=reduction: ops.sigmoid_focal_loss(x, t, 0.3, gamma, r), (x,))
    weight = torch.rand(4, generator=generator(2), dtype=torch.float64)
    classes = torch.tensor([3, 0, 4, -1, 2])
    assert torch.autograd.gradcheck(lambda x: ops.sigmoid_focal_loss(x, classes, 0.3, gamma, weight=weight), (x,))


@pytest.mark.parametrize("gamma", [1.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_scores_lose_nothing(dtype: torch.dtype, gamma: float) -> None:
    """Within rounding of the true value, relative to it, where p or 1 - p would be rounded to 1 or 0."""
    x = torch.linspace(-30, 30, 4001, dtype=dtype).requires_grad_()
    units = 400 * torch.finfo(dtype).eps  # gamma * |log q| of them are the power's
    for t in (0.0, 1.0):
        z = (-x if t else x).detach().numpy().astype(np.longdouble)  # of being wrong
        p, n, ce = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z)), np.logaddexp(0, z)
        wanted = p**gamma * ce, (1 - 2 * t) * p**gamma * (gamma * n * ce + p)
        loss = ops.sigmoid_focal_loss(x, torch.full_like(x, t), -1, gamma)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        for ours, true in zip((loss.detach(), gradient), wanted):
            assert (np.abs(ours.numpy() - true) <= units * np.abs(true)).all()


def test_log_of_one_and_a_little_is_within_two_units() -> None:
    """gamma 0 and alpha off: the loss of a right score is log(1 + exp(-x))."""
    for dtype, wide in ((np.float32, np.float64), (np.float64, np.longdouble)):
        x = np.linspace(0, 80, 200_001).astype(dtype)
        e = ops.sigmoid_focal_loss(torch.from_numpy(x), torch.ones(len(x), dtype=torch.from_numpy(x).dtype), -1, 0)
        true = np.log1p(np.exp(-x.astype(wide)))
        # Two units are exp's, whose argument is exact.
        assert (np.abs(e.numpy() - true) <= 4 * np.finfo(dtype).eps * true).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_gradient_of_a_certain_score_is_nan(dtype: torch.dtype, gamma: float) -> None:
    far = [88.0, 104.0, 110.0, 700.0, 750.0, 1000.0, 3e4, float("inf")]
    x = torch.tensor([*far, *(-f for f in far)], dtype=dtype).requires_grad_()
    for t in (0.0, 1.0, 0.3):
        losses = ops.sigmoid_focal_loss(x, torch.full_like(x, t), 0.25, gamma)
        assert not losses.isnan().any()
        losses.sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("weighted", [False, True])
def test_classes_are_a_table_of_zeros_and_ones(weighted: bool) -> None:
    x = torch.randn(50, 7, generator=generator()).mul(4).requires_grad_()
    classes = torch.arange(50) % 9 - 1  # -1 and 7 are background
    table = (classes[:, None] == torch.arange(7)).float()
    weight = torch.rand(7, generator=generator(1)) if weighted else None
    factors = torch.ones(50)
    if weight is not None:
        objects = (classes >= 0) & (classes < 7)
        factors[objects] = weight[classes[objects]]
    ours = ops.sigmoid_focal_loss(x, classes, weight=weight)
    wanted = ops.sigmoid_focal_loss(x, table) * factors[:, None]
    assert torch.equal(ours, wanted)
    (gradient,), (slopes,) = (torch.autograd.grad(loss.sum(), x) for loss in (ours, ops.sigmoid_focal_loss(x, table)))
    assert torch.equal(gradient, slopes * factors[:, None])


def test_reductions() -> None:
    losses = ops.sigmoid_focal_loss(LOGITS, HARD)
    assert torch.equal(ops.sigmoid_focal_loss(LOGITS, HARD, reduction="sum"), losses.sum())
    assert torch.equal(ops.sigmoid_focal_loss(LOGITS, HARD, reduction="mean"), losses.sum() / 6)
    none = LOGITS[:0].clone().requires_grad_()
    for reduction in ("sum", "mean"):
        total = ops.sigmoid_focal_loss(none, HARD[:0], reduction=reduction)
        assert total.item() == 0
        total.backward()
    assert none.grad is not None
    assert none.grad.shape == (0, 3)


def test_one_number_is_the_gradient_of_all() -> None:
    x = torch.randn(40, 30, generator=generator()).requires_grad_()
    t = torch.rand(40, 30, generator=generator(1)).round()
    (each,) = torch.autograd.grad(ops.sigmoid_focal_loss(x, t), x, torch.full((40, 30), 1.7))
    (same,) = torch.autograd.grad(ops.sigmoid_focal_loss(x, t, reduction="sum") * 1.7, x)
    assert torch.equal(each, same)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(30, 5, generator=generator()).to(dtype).requires_grad_()
    t = torch.rand(30, 5, generator=generator(1)).to(dtype)
    wide = x.detach().float().requires_grad_()
    losses, wanted = ops.sigmoid_focal_loss(x, t), ops.sigmoid_focal_loss(wide, t.float())
    assert losses.dtype == torch.float32
    assert torch.equal(losses, wanted)
    losses.sum().backward()
    wanted.sum().backward()
    assert x.grad is not None
    assert wide.grad is not None
    assert torch.equal(x.grad, wide.grad.to(dtype))


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (TypeError, "inputs", lambda: ops.sigmoid_focal_loss(LOGITS.long(), HARD)),
        (TypeError, "targets", lambda: ops.sigmoid_focal_loss(LOGITS, HARD.double())),
        (ValueError, "targets: expected shape of the inputs", lambda: ops.sigmoid_focal_loss(LOGITS, HARD[:1])),
        (TypeError, "targets: expected int64", lambda: ops.sigmoid_focal_loss(LOGITS, CLASSES.int())),
        (ValueError, r"targets: expected shape \[N\]", lambda: ops.sigmoid_focal_loss(LOGITS, CLASSES[:1])),
        (ValueError, "inputs", lambda: ops.sigmoid_focal_loss(LOGITS[0], CLASSES)),
        (ValueError, "weight", lambda: ops.sigmoid_focal_loss(LOGITS, HARD, weight=torch.ones(3))),
        (ValueError, "weight", lambda: ops.sigmoid_focal_loss(LOGITS, CLASSES, weight=torch.ones(2))),
        (TypeError, "weight", lambda: ops.sigmoid_focal_loss(LOGITS, CLASSES, weight=CLASSES)),
        (ValueError, "alpha", lambda: ops.sigmoid_focal_loss(LOGITS, HARD, 1.5)),
        (ValueError, "alpha", lambda: ops.sigmoid_focal_loss(LOGITS, HARD, float("nan"))),
        (ValueError, "gamma", lambda: ops.sigmoid_focal_loss(LOGITS, HARD, gamma=-1)),
        (ValueError, "gamma", lambda: ops.sigmoid_focal_loss(LOGITS, HARD, gamma=float("inf"))),
        (ValueError, "reduction: expected one of none, mean, sum, got 'all'", lambda: ops.sigmoid_focal_loss(
            LOGITS, HARD, reduction="all"
        )),
        (ValueError, "targets: no gradient", lambda: ops.sigmoid_focal_loss(LOGITS, HARD.clone().requires_grad_())),
    ],
)  # fmt: skip
def test_errors_name_the_argument(error: type[Exception], match: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=match):
        call()


def test_arrays_come_out_as_arrays() -> None:
    logits: Any = LOGITS.numpy()
    for targets in (HARD.numpy(), CLASSES.numpy()):
        losses: Any = ops.sigmoid_focal_loss(logits, targets)
        assert isinstance(losses, np.ndarray)
        assert losses.shape == (2, 3)
