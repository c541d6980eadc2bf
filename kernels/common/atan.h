// atan as one sequence of separately rounded IEEE operations, as exp and log in numeric.h: the same bits everywhere,
// within 2 ulp of the true value. Coefficients: of the float one a minimax fit of our own of (atan(t) / t - 1) / t^2
// for t <= 1/2, of the double one the Cephes mathematical library (S. Moshier).
#pragma once
#include "dtype.h"

namespace frcnn_fast {

// u = |x|; t = -1 / u above tan(3 pi / 8), (u - 1) / (u + 1) above 1/2, else u, by one division without a branch;
// z = t * t; y = (p(z) * z) * t + t with p of degree 4 by Horner; middle + (y + rest), with middle = pi / 2, pi / 4, 0
// and rest what its rounding left over; then the sign of x. NaN stays NaN.
FF_HD float atan_(float x) {
  const float u = x < 0.0f ? -x : x;
  const bool far = u > 2.414213562373095f, near = u > 0.5f;
  const float t = (far ? -1.0f : (near ? u - 1.0f : u)) / (far ? u : (near ? u + 1.0f : 1.0f));
  const float z = t * t;
  float p = -5.1414069e-2f;
  p = p * z + 1.0165382e-1f;
  p = p * z + -1.4176138e-1f;
  p = p * z + 1.9994320e-1f;
  p = p * z + -3.3333236e-1f;
  float y = (p * z) * t + t;
  y = y + (far ? -4.37113883e-8f : (near ? -2.185569415e-8f : 0.0f));
  y = (far ? 1.57079632679489662f : (near ? 0.785398163397448310f : 0.0f)) + y;
  return x < 0.0f ? -y : y;
}

// As the float one, with (u - 1) / (u + 1) above 0.66 and y = t * ((z * P(z)) / Q(z)) + t, P of degree 4, Q of degree 5
// (leading coefficient 1).
FF_HD double atan_(double x) {
  const double u = x < 0.0 ? -x : x;
  const bool far = u > 2.414213562373095, near = u > 0.66;
  const double t = (far ? -1.0 : (near ? u - 1.0 : u)) / (far ? u : (near ? u + 1.0 : 1.0));
  const double z = t * t;
  double p = -8.750608600031904122785e-1;
  p = p * z + -1.615753718733365076637e1;
  p = p * z + -7.500855792314704667340e1;
  p = p * z + -1.228866684490136173410e2;
  p = p * z + -6.485021904942025371773e1;
  double q = z + 2.485846490142306297962e1;
  q = q * z + 1.650270098316988542046e2;
  q = q * z + 4.328810604912902668951e2;
  q = q * z + 4.853903996359136964868e2;
  q = q * z + 1.945506571482613964425e2;
  double y = t * ((z * p) / q) + t;
  y = y + (far ? 6.123233995736765886130e-17 : (near ? 3.061616997868382943065e-17 : 0.0));
  y = (far ? 1.57079632679489661923 : (near ? 0.785398163397448309616 : 0.0)) + y;
  return x < 0.0 ? -y : y;
}

}  // namespace frcnn_fast
