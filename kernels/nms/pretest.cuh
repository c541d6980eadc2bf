// NMS' division-free test (nms.h: Suppression) as GPUs have it: without a branch a pair, and in both directions, so
// that next to no pair is divided.
#pragma once
#include "nms.h"

namespace frcnn_fast::nms {

// Of numbers, or of a NaN and a number: the number; or of boxes that take part in nothing. Either zero will do. One
// instruction of a GPU, where maximum() and minimum() are two.
template <class U>
FF_HD U larger(U a, U b) {
  return maximum(a, b);
}
template <class U>
FF_HD U smaller(U a, U b) {
  return minimum(a, b);
}
#if defined(__CUDA_ARCH__)
FF_HD float larger(float a, float b) { return fmaxf(a, b); }
FF_HD float smaller(float a, float b) { return fminf(a, b); }
#endif

// As may_exceed() has it: where a pair lies apart this is not above 0.
template <bool kLegacy, class U>
FF_HD U pretest_overlap(const Box<U>& a, const Box<U>& b) {
  const U w = larger(U(0), extent<kLegacy>(larger(a.x1, b.x1), smaller(a.x2, b.x2)));
  return w * extent<kLegacy>(larger(a.y1, b.y1), smaller(a.y2, b.y2));
}

// A pair that exceeds() would accept has overlap >= share, where share is the two boxes' together. The other way round,
// overlap > lifted_share(share, sure_factor) implies that it would, if the threshold is in [0, 1]: the factor lifts the
// share by 3e-5 above what the rule asks for, and roundings are a few units of 6e-8; an overlap above 1e-30 is far from
// the subnormals. (An overlap above 0 means that both boxes have area.) share must not be negative, as that of a box
// turned inside out would be: sure_share(). With other thresholds no pair is sure.
template <class U>
U sure_factor(U threshold) {
  return threshold >= U(0) && threshold <= U(1) ? FF_MUTANT(nms_sure, U(1 + 4e-5), U(1)) : U(0);
}
template <class U>
FF_HD bool pairs_are_sure(U sure_factor) {
  return sure_factor > U(0);
}
// Of a box's share, which the pairs of a box without area, which never exceeds() such a threshold, may as well have.
template <class U>
FF_HD U sure_share(U share, U sure_factor) {
  return pairs_are_sure(sure_factor) ? larger(share, U(0)) : share;
}
template <class U>
FF_HD U lifted_share(U share, U sure_factor) {
  return share * sure_factor + U(1e-30);
}

// bits, one to the left, with the number's sign as the lowest bit. Whether one number is below another is the sign of
// their difference: two instructions where a comparison and a selected bit are three. Infinities that are equal give a
// NaN, whose sign is the machine's choice.
FF_HD unsigned shift_in_sign(unsigned bits, float x) { return bits << 1 | float_bits(x) >> 31; }
FF_HD unsigned shift_in_sign(unsigned bits, double x) { return bits << 1 | unsigned(double_bits(x) >> 63); }

}  // namespace frcnn_fast::nms
