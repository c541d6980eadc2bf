// exp and log as one sequence of separately rounded IEEE operations, so that C++, CUDA and Triton give the same
// bits. Build with -ffp-contract=off / --fmad=false: a fused multiply-add would change them. Both stay within 2 ulp
// of the true value. Coefficients: Cephes mathematical library (S. Moshier).
#pragma once
#include "dtype.h"

namespace frcnn_fast {

template <class U>
FF_HD U maximum(U a, U b) {
  return a > b ? a : b;
}
template <class U>
FF_HD U minimum(U a, U b) {
  return a < b ? a : b;
}

FF_HD float power_of_two(float, int32_t n) { return bits_float(uint32_t(n + 127) << 23); }
FF_HD double power_of_two(double, int32_t n) { return bits_double(uint64_t(n + 1023) << 52); }

FF_HD bool is_finite(float x) { return (float_bits(x) & 0x7f800000u) != 0x7f800000u; }
FF_HD bool is_finite(double x) { return (double_bits(x) & 0x7ff0000000000000ull) != 0x7ff0000000000000ull; }

// y * 2^n in two exact halves (n1 = n >> 1 arithmetic, n2 = n - n1), so that results down to the smallest subnormal
// are rounded once.
template <class U>
FF_HD U scale_by_power_of_two(U y, int32_t n) {
  const int32_t half = n >> 1;
  return y * power_of_two(U(0), half) * power_of_two(U(0), n - half);
}

// c = clamp(x, -103.972081, 88.722839); n = rint(c * 1.44269504); r = (c - n * 0.693359375) - n * -2.12194440e-4;
// y = (p(r) * (r * r) + r) + 1 with p of degree 5 by Horner; y * 2^n. Above the range inf, below 0, NaN stays NaN.
FF_HD float exp_(float x) {
  const float low = -103.972081f, high = 88.722839f, rint_magic = 12582912.0f;  // 1.5 * 2^23
  const float c = x < low ? low : (x > high ? high : x);
  const float shifted = c * 1.44269504f + rint_magic;
  const float n = shifted - rint_magic;
  const float r = (c - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float y = (p * (r * r) + r) + 1.0f;
  // n's bits are the last of shifted's: cheaper than a conversion. (NaN: y is NaN, whatever it is scaled by.)
  const float result = scale_by_power_of_two(y, int32_t(float_bits(shifted) - float_bits(rint_magic)));
  return x > high ? bits_float(0x7f800000u) : (x < low ? 0.0f : result);
}

// c = clamp(x, -745.13321910194122, 709.78271289338397); n = rint(c * 1.4426950408889634);
// r = (c - n * 0.693145751953125) - n * 1.42860682030941723212e-6; z = r * r; px = r * P(z), P of degree 2;
// q = Q(z), Q of degree 3; y = 1 + 2 * (px / (q - px)); y * 2^n.
FF_HD double exp_(double x) {
  const double low = -745.13321910194122, high = 709.78271289338397, rint_magic = 6755399441055744.0;  // 1.5 * 2^52
  const double c = x < low ? low : (x > high ? high : x);
  const double shifted = c * 1.4426950408889634 + rint_magic;
  const double n = shifted - rint_magic;
  const double r = (c - n * 0.693145751953125) - n * 1.42860682030941723212e-6;
  const double z = r * r;
  double p = 1.26177193074810590878e-4;
  p = p * z + 3.02994407707441961300e-2;
  p = p * z + 9.99999999999999999910e-1;
  double q = 3.00198505138664455042e-6;
  q = q * z + 2.52448340349684104192e-3;
  q = q * z + 2.27265548208155028766e-1;
  q = q * z + 2.00000000000000000005e0;
  const double px = r * p;
  const double y = 1.0 + 2.0 * (px / (q - px));
  const double result = scale_by_power_of_two(y, int32_t(uint32_t(double_bits(shifted) - double_bits(rint_magic))));
  return x > high ? bits_double(0x7ff0000000000000ull) : (x < low ? 0.0 : result);
}

// x = m * 2^e with m in [sqrt(1/2), sqrt(2)) (subnormals are first multiplied by 2^25); f = m - 1; z = f * f;
// y = (p(f) * f) * z with p of degree 8 by Horner; y = y + e * -2.12194440e-4; y = y - 0.5 * z;
// (f + y) + e * 0.693359375. log(0) = -inf, log(negative) = NaN, log(inf) = inf, NaN stays NaN.
FF_HD float log_(float x) {
  const bool subnormal = x < 1.17549435e-38f;
  const uint32_t bits = float_bits(subnormal ? x * 33554432.0f : x);
  int32_t exponent = int32_t(bits >> 23 & 0xffu) - 126 - (subnormal ? 25 : 0);
  float m = bits_float((bits & 0x007fffffu) | 0x3f000000u);  // [0.5, 1)
  const bool low_half = m < 0.707106781186547524f;
  exponent -= low_half ? 1 : 0;
  m = low_half ? m + m : m;
  const float e = float(exponent), f = m - 1.0f, z = f * f;
  float p = 7.0376836292e-2f;
  p = p * f + -1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f + -1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f + -1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f + -2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  float y = (p * f) * z;
  y = y + e * -2.12194440e-4f;
  y = y - 0.5f * z;
  const float result = (f + y) + e * 0.693359375f;
  const float other = x == 0.0f ? bits_float(0xff800000u) : (x < 0.0f ? bits_float(0x7fc00000u) : x);
  return (x > 0.0f) & (x < bits_float(0x7f800000u)) ? result : other;
}

// As the float one, with y = f * ((z * P(f)) / Q(f)), P of degree 5, Q of degree 5 (leading coefficient 1); then
// y = y - e * 2.121944400546905827679e-4; y = y - 0.5 * z; (f + y) + e * 0.693359375. Subnormals are first multiplied
// by 2^54.
FF_HD double log_(double x) {
  const bool subnormal = x < 2.2250738585072014e-308;
  const uint64_t bits = double_bits(subnormal ? x * 18014398509481984.0 : x);
  int32_t exponent = int32_t(bits >> 52 & 0x7ffu) - 1022 - (subnormal ? 54 : 0);
  double m = bits_double((bits & 0x000fffffffffffffull) | 0x3fe0000000000000ull);
  const bool low_half = m < 0.70710678118654752440;
  exponent -= low_half ? 1 : 0;
  m = low_half ? m + m : m;
  const double e = double(exponent), f = m - 1.0, z = f * f;
  double p = 1.01875663804580931796e-4;
  p = p * f + 4.97494994976747001425e-1;
  p = p * f + 4.70579119878881725854e0;
  p = p * f + 1.44989225341610930846e1;
  p = p * f + 1.79368678507819816313e1;
  p = p * f + 7.70838733755885391666e0;
  double q = f + 1.12873587189167450590e1;
  q = q * f + 4.52279145837532221105e1;
  q = q * f + 8.29875266912776603211e1;
  q = q * f + 7.11544750618563894466e1;
  q = q * f + 2.31251620126765340583e1;
  double y = f * ((z * p) / q);
  y = y - e * 2.121944400546905827679e-4;
  y = y - 0.5 * z;
  const double result = (f + y) + e * 0.693359375;
  const double other =
      x == 0.0 ? bits_double(0xfff0000000000000ull) : (x < 0.0 ? bits_double(0x7ff8000000000000ull) : x);
  return (x > 0.0) & (x < bits_double(0x7ff0000000000000ull)) ? result : other;
}

}  // namespace frcnn_fast
