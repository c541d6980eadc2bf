"""exp, log and atan as fixed sequences of separately rounded operations, in the argument's own precision.

The range reductions and the coefficients are those of the Cephes library (S. Moshier), where nothing else is said.
NumPy never fuses a multiply with an add, so every operator below is one IEEE operation. Every backend must return these
bits.
"""

from __future__ import annotations

import numpy as np

_EXP_RANGE = {np.float32: (-103.972081, 88.722839), np.float64: (-745.13321910194122, 709.78271289338397)}
_EXP_SINGLE = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
_EXP_DOUBLE_P = (1.26177193074810590878e-4, 3.02994407707441961300e-2, 9.99999999999999999910e-1)
_EXP_DOUBLE_Q = (
    3.00198505138664455042e-6,
    2.52448340349684104192e-3,
    2.27265548208155028766e-1,
    2.00000000000000000005e0,
)
_LOG_SINGLE = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_LOG_DOUBLE_P = (
    1.01875663804580931796e-4,
    4.97494994976747001425e-1,
    4.70579119878881725854e0,
    1.44989225341610930846e1,
    1.79368678507819816313e1,
    7.70838733755885391666e0,
)
_LOG_DOUBLE_Q = (
    1.0,
    1.12873587189167450590e1,
    4.52279145837532221105e1,
    8.29875266912776603211e1,
    7.11544750618563894466e1,
    2.31251620126765340583e1,
)

# A minimax fit of our own of (atan(t) / t - 1) / t^2, t <= 1/2.
_ATAN_SINGLE = (-5.1414069e-2, 1.0165382e-1, -1.4176138e-1, 1.9994320e-1, -3.3333236e-1)
_ATAN_DOUBLE_P = (
    -8.750608600031904122785e-1,
    -1.615753718733365076637e1,
    -7.500855792314704667340e1,
    -1.228866684490136173410e2,
    -6.485021904942025371773e1,
)
_ATAN_DOUBLE_Q = (
    1.0,
    2.485846490142306297962e1,
    1.650270098316988542046e2,
    4.328810604912902668951e2,
    4.853903996359136964868e2,
    1.945506571482613964425e2,
)


def _horner(coefficients: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    dtype = x.dtype.type
    value = np.full_like(x, dtype(coefficients[0]))
    for coefficient in coefficients[1:]:
        value = value * x + dtype(coefficient)
    return value


def exp_(x: np.ndarray) -> np.ndarray:
    """e**x, within 2 ulp; inf and 0 beyond the range, NaN stays NaN."""
    x = np.asarray(x)
    dtype = x.dtype.type
    low, high = (dtype(edge) for edge in _EXP_RANGE[dtype])
    single = dtype is np.float32
    with np.errstate(all="ignore"):
        inside = (x >= low) & (x <= high)
        c = np.where(inside, x, dtype(0))
        n = np.rint(c * dtype(1.44269504 if single else 1.4426950408889634))
        if single:
            r = (c - n * dtype(0.693359375)) - n * dtype(-2.12194440e-4)
            y = (_horner(_EXP_SINGLE, r) * (r * r) + r) + dtype(1)
        else:
            r = (c - n * dtype(0.693145751953125)) - n * dtype(1.42860682030941723212e-6)
            z = r * r
            px = r * _horner(_EXP_DOUBLE_P, z)
            y = dtype(1) + dtype(2) * (px / (_horner(_EXP_DOUBLE_Q, z) - px))
        half = n.astype(np.int32) >> 1
        y = np.ldexp(np.ldexp(y, half), n.astype(np.int32) - half)
        beyond = np.where(x > high, dtype(np.inf), np.where(x < low, dtype(0), dtype(np.nan)))
        return np.where(inside, y, beyond)


def log_(x: np.ndarray) -> np.ndarray:
    """Natural logarithm, within 2 ulp; log(0) = -inf, log(negative) = NaN, log(inf) = inf, NaN stays NaN."""
    x = np.asarray(x)
    dtype = x.dtype.type
    with np.errstate(all="ignore"):
        inside = (x > 0) & (x < np.inf)
        m, exponent = np.frexp(np.where(inside, x, dtype(1)))
        below = m < dtype(0.70710678118654752440)
        m = np.where(below, m + m, m)
        e = (exponent - below).astype(dtype)
        f = m - dtype(1)
        z = f * f
        if dtype is np.float32:
            y = (_horner(_LOG_SINGLE, f) * f) * z
            y = y + e * dtype(-2.12194440e-4)
        else:
            y = f * ((z * _horner(_LOG_DOUBLE_P, f)) / _horner(_LOG_DOUBLE_Q, f))
            y = y - e * dtype(2.121944400546905827679e-4)
        y = y - dtype(0.5) * z
        result = (f + y) + e * dtype(0.693359375)
        beyond = np.where(x == 0, dtype(-np.inf), np.where(x > 0, x, dtype(np.nan)))
        return np.where(inside, result, beyond)


def atan_(x: np.ndarray) -> np.ndarray:
    """Arc tangent, within 2 ulp: (middle of the range + polynomial of the rest) for |x|, with the sign put back."""
    x = np.asarray(x)
    dtype = x.dtype.type
    single = dtype is np.float32
    one = dtype(1)
    with np.errstate(all="ignore"):
        negative = x < 0
        u = np.where(negative, -x, x)
        far, near = u > dtype(2.414213562373095), u > dtype(0.5 if single else 0.66)
        t = np.where(far, -one, np.where(near, u - one, u)) / np.where(far, u, np.where(near, u + one, one))
        middle = np.where(far, dtype(np.pi / 2), np.where(near, dtype(np.pi / 4), dtype(0)))
        z = t * t
        if single:
            y = (_horner(_ATAN_SINGLE, z) * z) * t + t
        else:
            y = t * ((z * _horner(_ATAN_DOUBLE_P, z)) / _horner(_ATAN_DOUBLE_Q, z)) + t
        rest = -4.37113883e-8 if single else 6.123233995736765886130e-17  # of pi / 2, after its rounding
        y = y + np.where(far, dtype(rest), np.where(near, dtype(rest / 2), dtype(0)))
        y = middle + y
        return np.where(negative, -y, y)
