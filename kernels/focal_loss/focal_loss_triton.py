"""focal_loss.h and focal_loss.cu in Triton: sigmoid focal loss and its gradient, of targets of every element and of a
class a row."""

import triton
import triton.language as tl
from torch import Tensor

from ..common.launch_triton import blocks_for, double_bits, launch
from ..common.mutant_triton import mutant
from ..common.numeric_triton import compute_type, divide, exp_, log_, narrow, scalar, widen

BLOCK = 256 if triton.knobs.runtime.interpret else 1024  # small cases have several programs


@triton.jit
def focal_terms(x, t):
    """(sigmoid of x; of -x; their shares where the target is the other one; cross entropy)."""
    below = x < 0.0
    distance = tl.where(below, -x, x)
    other = 1.0 - t
    e = exp_(-distance)
    whole = 1.0 + e
    sure = divide(tl.zeros_like(whole) + 1.0, whole)
    rare = e * sure
    p, n = tl.where(below, rare, sure), tl.where(below, sure, rare)
    against = tl.where(below, t, other)
    # An infinite logit on the right side costs nothing.
    far = distance * against
    far = tl.where(against == 0.0, 0.0, far) if not mutant("focal_certain") else far
    near = log_(whole) + (e - (whole - 1.0)) * sure  # log(1 + e): what rounding took from the sum is put back
    return p, n, p * other, n * t, far + near


@triton.jit
def weighted(value, t, alpha, rest, WEIGHTED: tl.constexpr):
    return (alpha * t + rest * (1.0 - t)) * value if WEIGHTED else value


@triton.jit
def focal_power(q, gamma, SQUARE: tl.constexpr):
    """q^gamma; 0^0 is 1."""
    if SQUARE:
        return q * q
    else:
        power = exp_(gamma * log_(q))
        return tl.where(gamma == 0.0, 1.0, power) if not mutant("focal_power_0") else power


@triton.jit
def focal_element(x, t, alpha, rest, gamma, SQUARE: tl.constexpr, WEIGHTED: tl.constexpr):
    _, _, wrong, missed, ce = focal_terms(x, t)
    return weighted(focal_power(wrong + missed, gamma, SQUARE) * ce, t, alpha, rest, WEIGHTED)


@triton.jit
def focal_slope(x, t, alpha, rest, gamma, SQUARE: tl.constexpr, WEIGHTED: tl.constexpr):
    """d loss / dx: dq / dx = (1 - 2t) * p * n, d ce / dx = p - t."""
    p, n, wrong, missed, ce = focal_terms(x, t)
    q, turn, both = wrong + missed, (1.0 - t) - t, p * n
    # p * n is 0 long before: it shall not meet an infinity.
    ce = tl.where(ce > 1000.0, 1000.0, ce) if not mutant("focal_slope_far") else ce
    if SQUARE:
        slope = q * ((2.0 * turn) * (both * ce) + q * (wrong - missed))
    else:
        ratio = divide(both, q)
        ratio = tl.where(q > 0.0, ratio, 0.0) if not mutant("focal_slope_0") else ratio
        slope = focal_power(q, gamma, SQUARE) * (gamma * (turn * (ratio * ce)) + (wrong - missed))
    return weighted(slope, t, alpha, rest, WEIGHTED)


@triton.jit
def load_gradients(grad, i, mask, EACH: tl.constexpr):
    """A gradient for each element, or one for all."""
    return tl.load(grad + i, mask=mask, other=0.0) if EACH else tl.load(grad)


@triton.jit
def load_classes(targets, weight, i, mask, C, U: tl.constexpr):
    """(1 in the column of the row's class, else 0; the row's factor) of elements of [N, C]."""
    row = i // C
    target = tl.load(targets + row, mask=mask, other=-1)
    t = (i - row * C == target).to(U)
    if weight is None:
        return t, tl.zeros_like(t) + 1.0
    else:
        last = C if not mutant("focal_background") else C + 1
        own = (target >= 0) & (target < last) if not mutant("focal_negative") else target < last
        return t, tl.load(weight + target, mask=mask & own, other=1.0)


@triton.jit(do_not_specialize=["N", "alpha", "rest", "gamma"])
def sigmoid_focal_loss_kernel(
    inputs, targets, N, alpha, rest, gamma, loss,
    SQUARE: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK elements."""
    U: tl.constexpr = loss.dtype.element_ty
    alpha, rest, gamma = scalar(alpha, U), scalar(rest, U), scalar(gamma, U)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = widen(tl.load(inputs + i, mask=i < N, other=0.0))
    t = widen(tl.load(targets + i, mask=i < N, other=0.0))
    tl.store(loss + i, focal_element(x, t, alpha, rest, gamma, SQUARE, WEIGHTED), mask=i < N)


@triton.jit(do_not_specialize=["N", "alpha", "rest", "gamma"])
def sigmoid_focal_loss_backward_kernel(
    grad, inputs, targets, N, alpha, rest, gamma, grad_inputs,
    EACH: tl.constexpr, SQUARE: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK elements."""
    T: tl.constexpr = inputs.dtype.element_ty
    U: tl.constexpr = compute_type(T)
    alpha, rest, gamma = scalar(alpha, U), scalar(rest, U), scalar(gamma, U)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = widen(tl.load(inputs + i, mask=i < N, other=0.0))
    t = widen(tl.load(targets + i, mask=i < N, other=0.0))
    slope = focal_slope(x, t, alpha, rest, gamma, SQUARE, WEIGHTED) * load_gradients(grad, i, i < N, EACH)
    tl.store(grad_inputs + i, narrow(slope, T), mask=i < N)


@triton.jit(do_not_specialize=["N", "C", "alpha", "rest", "gamma"])
def class_focal_loss_kernel(
    inputs, targets, weight, N, C, alpha, rest, gamma, loss,
    SQUARE: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK elements of [N, C]; N: how many there are in all."""
    U: tl.constexpr = loss.dtype.element_ty
    alpha, rest, gamma = scalar(alpha, U), scalar(rest, U), scalar(gamma, U)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = widen(tl.load(inputs + i, mask=i < N, other=0.0))
    t, w = load_classes(targets, weight, i, i < N, C, U)
    tl.store(loss + i, focal_element(x, t, alpha, rest, gamma, SQUARE, WEIGHTED) * w, mask=i < N)


@triton.jit(do_not_specialize=["N", "C", "alpha", "rest", "gamma"])
def class_focal_loss_backward_kernel(
    grad, inputs, targets, weight, N, C, alpha, rest, gamma, grad_inputs,
    EACH: tl.constexpr, SQUARE: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK elements of [N, C]; N: how many there are in all."""
    T: tl.constexpr = inputs.dtype.element_ty
    U: tl.constexpr = compute_type(T)
    alpha, rest, gamma = scalar(alpha, U), scalar(rest, U), scalar(gamma, U)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = widen(tl.load(inputs + i, mask=i < N, other=0.0))
    t, w = load_classes(targets, weight, i, i < N, C, U)
    slope = focal_slope(x, t, alpha, rest, gamma, SQUARE, WEIGHTED) * w * load_gradients(grad, i, i < N, EACH)
    tl.store(grad_inputs + i, narrow(slope, T), mask=i < N)


def _rule(alpha: float, gamma: float) -> tuple[tuple[int, int, int], dict[str, bool]]:
    """The kernels' scalars and forms; alpha counts from 0 on."""
    weighs = alpha >= 0 if not mutant("focal_alpha") else alpha > 0
    return (double_bits(alpha), double_bits(1 - alpha), double_bits(gamma)), {"SQUARE": gamma == 2, "WEIGHTED": weighs}


def sigmoid_focal_loss(inputs: Tensor, targets: Tensor, alpha: float, gamma: float, loss: Tensor) -> None:
    N = inputs.numel()
    scalars, forms = _rule(alpha, gamma)
    if N:
        launch(
            sigmoid_focal_loss_kernel, (blocks_for(N, BLOCK),), inputs, targets, N, *scalars, loss,
            like=loss, BLOCK=BLOCK, **forms,
        )  # fmt: skip


def sigmoid_focal_loss_backward(
    grad: Tensor, inputs: Tensor, targets: Tensor, alpha: float, gamma: float, grad_inputs: Tensor
) -> None:
    N = inputs.numel()
    scalars, forms = _rule(alpha, gamma)
    if N:
        launch(
            sigmoid_focal_loss_backward_kernel, (blocks_for(N, BLOCK),), grad, inputs, targets, N, *scalars,
            grad_inputs, like=inputs, EACH=grad.numel() != 1, BLOCK=BLOCK, **forms,
        )  # fmt: skip


def class_focal_loss(
    inputs: Tensor, targets: Tensor, weight: Tensor | None, alpha: float, gamma: float, loss: Tensor
) -> None:
    N, C = inputs.numel(), inputs.shape[1]
    scalars, forms = _rule(alpha, gamma)
    if N:
        launch(
            class_focal_loss_kernel, (blocks_for(N, BLOCK),), inputs, targets, weight, N, C, *scalars, loss,
            like=loss, BLOCK=BLOCK, **forms,
        )  # fmt: skip


def class_focal_loss_backward(
    grad: Tensor, inputs: Tensor, targets: Tensor, weight: Tensor | None, alpha: float, gamma: float,
    grad_inputs: Tensor,
) -> None:  # fmt: skip
    N, C = inputs.numel(), inputs.shape[1]
    scalars, forms = _rule(alpha, gamma)
    if N:
        launch(
            class_focal_loss_backward_kernel, (blocks_for(N, BLOCK),), grad, inputs, targets, weight, N, C, *scalars,
            grad_inputs, like=inputs, EACH=grad.numel() != 1, BLOCK=BLOCK, **forms,
        )  # fmt: skip
