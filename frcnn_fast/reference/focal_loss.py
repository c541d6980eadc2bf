"""Sigmoid focal loss (Lin et al. 2017): of targets in [0, 1] for every element, and of a class for each row."""

from __future__ import annotations

import numpy as np

from .arithmetic import exp_, log_


def _terms(x: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, ...]:
    """(p, n, wrong, missed, ce): the sigmoids of x and -x, their shares where the target is the other one, and
    -t * log(p) - (1 - t) * log(n). With e = exp(-|x|), p and n are 1 / (1 + e) and e / (1 + e), and ce is |x| * (the
    target's share on the other side) + log(1 + e); what the sum 1 + e was rounded by is put back."""
    one, zero = x.dtype.type(1), x.dtype.type(0)
    below = x < 0
    distance, other = np.where(below, -x, x), one - t
    e = exp_(-distance)
    whole = one + e
    sure = one / whole
    rare = e * sure
    p, n = np.where(below, rare, sure), np.where(below, sure, rare)
    against = np.where(below, t, other)
    far = np.where(against == 0, zero, distance * against)  # an infinite logit on the right side costs nothing
    near = log_(whole) + (e - (whole - one)) * sure
    return p, n, p * other, n * t, far + near


def _balance(t: np.ndarray, alpha: float) -> np.ndarray:
    number = t.dtype.type
    if alpha < 0:
        return np.ones_like(t)
    return number(alpha) * t + number(1 - alpha) * (number(1) - t)


def _power(q: np.ndarray, gamma: float) -> np.ndarray:
    if gamma == 2:
        return q * q
    exponent = q.dtype.type(gamma)
    return np.ones_like(q) if exponent == 0 else exp_(exponent * log_(q))


def _element(x: np.ndarray, t: np.ndarray, alpha: float, gamma: float) -> np.ndarray:
    _, _, wrong, missed, ce = _terms(x, t)
    return _balance(t, alpha) * (_power(wrong + missed, gamma) * ce)


def _slope(x: np.ndarray, t: np.ndarray, alpha: float, gamma: float) -> np.ndarray:
    """d loss / dx, with dq / dx = (1 - 2t) * p * n and d ce / dx = p - t = wrong - missed."""
    number = x.dtype.type
    p, n, wrong, missed, ce = _terms(x, t)
    q, turn, both = wrong + missed, (number(1) - t) - t, p * n
    ce = np.where(ce > 1000, number(1000), ce)  # p * n is 0 long before
    if gamma == 2:
        slope = q * ((number(2) * turn) * (both * ce) + q * (wrong - missed))
    else:
        ratio = np.where(q > 0, both / q, number(0))
        slope = _power(q, gamma) * (number(gamma) * (turn * (ratio * ce)) + (wrong - missed))
    return _balance(t, alpha) * slope


def _classes(inputs: np.ndarray, targets: np.ndarray, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """[N, C] targets, 1 in the column of the row's class, and factors [N, 1]: the class's weight, of background 1."""
    C = inputs.shape[1]
    t = (np.arange(C) == targets[:, None]).astype(inputs.dtype)
    w = np.ones((len(inputs), 1), inputs.dtype)
    if weight is not None:
        objects = (targets >= 0) & (targets < C)
        w[objects, 0] = weight[targets[objects]]
    return t, w


def sigmoid_focal_loss(inputs: np.ndarray, targets: np.ndarray, *, alpha: float, gamma: float) -> np.ndarray:
    """alpha_t * (q^gamma * ce) of every element: q = p * (1 - t) + (1 - p) * t, alpha_t = alpha * t + (1 - alpha) *
    (1 - t), and 1 where alpha is below 0. q^2 is a product; any other power is exp(gamma * log(q)), and q^0 is 1."""
    with np.errstate(all="ignore"):
        return _element(inputs, targets, alpha, gamma)


def sigmoid_focal_loss_backward(
    grad: np.ndarray, inputs: np.ndarray, targets: np.ndarray, *, alpha: float, gamma: float
) -> np.ndarray:
    """Gradient of the inputs. grad: that of the loss, of the inputs' shape, or one number for all."""
    with np.errstate(all="ignore"):
        slope = _slope(inputs, targets, alpha, gamma)
        return slope * (grad.reshape(()) if grad.size == 1 else grad)


def class_focal_loss(
    inputs: np.ndarray, targets: np.ndarray, weight: np.ndarray | None, *, alpha: float, gamma: float
) -> np.ndarray:
    """The same of inputs [N, C], with targets [N]: t is 1 in the column of a row's class, else 0; any other number than
    a column's is background, all 0. weight [C]: a factor of the whole row by its class; of background 1."""
    with np.errstate(all="ignore"):
        t, w = _classes(inputs, targets, weight)
        return _element(inputs, t, alpha, gamma) * w


def class_focal_loss_backward(
    grad: np.ndarray,
    inputs: np.ndarray,
    targets: np.ndarray,
    weight: np.ndarray | None,
    *,
    alpha: float,
    gamma: float,
) -> np.ndarray:
    """Gradient of the inputs [N, C]; grad as in sigmoid_focal_loss_backward."""
    with np.errstate(all="ignore"):
        t, w = _classes(inputs, targets, weight)
        slope = _slope(inputs, t, alpha, gamma) * w
        return slope * (grad.reshape(()) if grad.size == 1 else grad)
