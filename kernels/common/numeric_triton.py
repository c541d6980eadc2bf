"""numeric.h and dtype.h in Triton: the same operations in the same order, each rounded by itself, so the same bits.

Launch by launch_triton.launch, which forbids fused multiply-adds. Half types exist only in memory: `widen` what was
loaded, `narrow` what is stored. `divide` is IEEE division; Triton's own `/` on float32 is not. A constant that is
assigned to a name becomes float32: write it within the expression.
"""

import triton
import triton.language as tl

from .mutant_triton import mutant


@triton.jit
def widen(x):
    """The value in the type it is computed in: float32, for float64 float64."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif x.dtype == tl.float16:
        return x.to(tl.float32)
    else:
        return x


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """The value as it is stored in that type: rounded to the nearest, ties to even; NaN stays NaN."""
    if dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        quiet = (bits >> 16) | 0x40
        return tl.where(x == x, rounded, quiet).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.constexpr_function
def compute_type(dtype):
    """float64 for float64, else float32."""
    return tl.float64 if dtype == tl.float64 else tl.float32


@triton.jit
def scalar(bits, dtype: tl.constexpr):
    """A Python float that came as launch_triton.double_bits: Triton hands floats over in float32."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(dtype)


@triton.jit
def divide(a, b):
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def maximum(a, b):
    """The second where either is NaN, as a comparison gives it; tl.maximum leaves that open."""
    return tl.where(a > b, a, b)


@triton.jit
def minimum(a, b):
    return tl.where(a < b, a, b)


@triton.jit
def is_finite(x):
    if mutant("infinite_is_finite"):
        return x == x
    elif x.dtype == tl.float64:
        return (x.to(tl.int64, bitcast=True) & 0x7FF0000000000000) != 0x7FF0000000000000
    else:
        return (x.to(tl.int32, bitcast=True) & 0x7F800000) != 0x7F800000


@triton.jit
def folded(sums, LANES: tl.constexpr):
    """[R, LANES] as [R]: the upper half of the lanes added to the lower one until one is left."""
    rows: tl.constexpr = sums.shape[0]
    half: tl.constexpr = LANES // 2
    pairs = sums.reshape(rows, 2, half).permute(0, 2, 1) if not mutant("detect_fold") else sums.reshape(rows, half, 2)
    low, high = tl.split(pairs)
    if half == 1:
        return (low + high).reshape(rows)
    else:
        return folded(low + high, half)


@triton.jit
def power_of_two(n, dtype: tl.constexpr):
    if dtype == tl.float64:
        return ((n.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        return ((n + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def scale_by_power_of_two(y, n):
    half = n >> 1
    return y * power_of_two(half, y.dtype) * power_of_two(n - half, y.dtype)


@triton.jit
def exp_(x):
    if x.dtype == tl.float64:
        low = x < -745.13321910194122
        high = x > 709.78271289338397
        c = tl.where(low | high, 0.0, x)  # what comes of it is replaced below
        n = (c * 1.4426950408889634 + 6755399441055744.0) - 6755399441055744.0
        r = (c - n * 0.693145751953125) - n * 1.42860682030941723212e-6
        z = r * r
        p = 1.26177193074810590878e-4 * z + 3.02994407707441961300e-2
        p = p * z + 9.99999999999999999910e-1
        q = 3.00198505138664455042e-6 * z + 2.52448340349684104192e-3
        q = q * z + 2.27265548208155028766e-1
        q = q * z + 2.00000000000000000005e0
        px = r * p
        y = 1.0 + 2.0 * (px / (q - px))
    else:
        low = x < -103.972081
        high = x > 88.722839
        c = tl.where(low | high, 0.0, x)  # what comes of it is replaced below
        n = (c * 1.44269504 + 12582912.0) - 12582912.0
        r = (c - n * 0.693359375) - n * -2.12194440e-4
        p = 1.9875691500e-4 * r + 1.3981999507e-3
        p = p * r + 8.3334519073e-3
        p = p * r + 4.1665795894e-2
        p = p * r + 1.6666665459e-1
        p = p * r + 5.0000001201e-1
        y = (p * (r * r) + r) + 1.0
    result = scale_by_power_of_two(y, tl.where(n == n, n, 0.0).to(tl.int32))
    result = tl.where(low, 0.0 if not mutant("exp_low") else result, result)
    return tl.where(high, float("inf") if not mutant("exp_high") else result, result)


@triton.jit
def log_(x):
    if x.dtype == tl.float64:
        subnormal = x < 2.2250738585072014e-308
        bits = tl.where(subnormal, x * 18014398509481984.0, x).to(tl.int64, bitcast=True)
        exponent = ((bits >> 52) & 0x7FF).to(tl.int32) - 1022 - tl.where(subnormal, 54, 0)
        m = ((bits & 0x000FFFFFFFFFFFFF) | 0x3FE0000000000000).to(tl.float64, bitcast=True)
        low_half = m < 0.70710678118654752440
        e = (exponent - tl.where(low_half, 1, 0)).to(tl.float64)
        f = tl.where(low_half, m + m, m) - 1.0
        z = f * f
        p = 1.01875663804580931796e-4 * f + 4.97494994976747001425e-1
        p = p * f + 4.70579119878881725854e0
        p = p * f + 1.44989225341610930846e1
        p = p * f + 1.79368678507819816313e1
        p = p * f + 7.70838733755885391666e0
        q = f + 1.12873587189167450590e1
        q = q * f + 4.52279145837532221105e1
        q = q * f + 8.29875266912776603211e1
        q = q * f + 7.11544750618563894466e1
        q = q * f + 2.31251620126765340583e1
        y = f * ((z * p) / q)
        y = y - e * 2.121944400546905827679e-4
    else:
        subnormal = x < 1.17549435e-38
        bits = tl.where(subnormal, x * 33554432.0, x).to(tl.int32, bitcast=True)
        exponent = ((bits >> 23) & 0xFF) - 126 - tl.where(subnormal, 25, 0)
        m = ((bits & 0x007FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
        low_half = m < 0.707106781186547524
        e = (exponent - tl.where(low_half, 1, 0)).to(tl.float32)
        f = tl.where(low_half, m + m, m) - 1.0
        z = f * f
        p = 7.0376836292e-2 * f + -1.1514610310e-1
        p = p * f + 1.1676998740e-1
        p = p * f + -1.2420140846e-1
        p = p * f + 1.4249322787e-1
        p = p * f + -1.6668057665e-1
        p = p * f + 2.0000714765e-1
        p = p * f + -2.4999993993e-1
        p = p * f + 3.3333331174e-1
        y = (p * f) * z
        y = y + e * -2.12194440e-4
    y = y - 0.5 * z
    result = (f + y) + e * 0.693359375
    other = tl.where(x == 0.0, float("-inf"), tl.where(x < 0.0, float("nan"), x))
    return tl.where((x > 0.0) & (x < float("inf")), result, other)


@triton.jit
def atan_(x):
    u = tl.where(x < 0.0, -x, x)
    if x.dtype == tl.float64:
        far, near = u > 2.414213562373095, u > 0.66
    else:
        far, near = u > 2.414213562373095, u > 0.5
    above = tl.where(far, -1.0, tl.where(near, u - 1.0, u))
    t = divide(above, tl.where(far, u, tl.where(near, u + 1.0, 1.0)))
    z = t * t
    if x.dtype == tl.float64:
        p = -8.750608600031904122785e-1 * z + -1.615753718733365076637e1
        p = p * z + -7.500855792314704667340e1
        p = p * z + -1.228866684490136173410e2
        p = p * z + -6.485021904942025371773e1
        q = z + 2.485846490142306297962e1
        q = q * z + 1.650270098316988542046e2
        q = q * z + 4.328810604912902668951e2
        q = q * z + 4.853903996359136964868e2
        q = q * z + 1.945506571482613964425e2
        y = t * ((z * p) / q) + t
        y = tl.where(far, y + 6.123233995736765886130e-17, tl.where(near, y + 3.061616997868382943065e-17, y + 0.0))
        y = tl.where(far, y + 1.57079632679489661923, tl.where(near, y + 0.785398163397448309616, y + 0.0))
    else:
        p = -5.1414069e-2 * z + 1.0165382e-1
        p = p * z + -1.4176138e-1
        p = p * z + 1.9994320e-1
        p = p * z + -3.3333236e-1
        y = (p * z) * t + t
        y = tl.where(far, y + -4.37113883e-8, tl.where(near, y + -2.185569415e-8, y + 0.0))
        y = tl.where(far, y + 1.57079632679489662, tl.where(near, y + 0.785398163397448310, y + 0.0))
    return tl.where(x < 0.0, -y, y)
