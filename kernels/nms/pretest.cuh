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
// overlap > sure_factor * share implies that it would, if the threshold is in [0, 1] and the overlap far from the
// subnormals: the factor lifts the share by 3e-5 above what the rule asks for, and roundings are a few units of 6e-8.
// (An overlap above 0 means that both boxes have area.) With other thresholds no pair is sure.
template <class U>
U sure_factor(U threshold) {
  return threshold >= U(0) && threshold <= U(1) ? FF_MUTANT(nms_sure, U(1 + 4e-5), U(1)) : U(bits_float(0x7f800000u));
}
template <class U>
FF_HD bool must_exceed(U overlap, U share, U sure_factor) {
  return overlap > U(1e-30) && overlap > share * sure_factor;
}

}  // namespace frcnn_fast::nms
