// Box arithmetic in the one order of operations that every backend follows.
//
// kLegacy: inclusive pixels, every extent is (high - low) + 1; otherwise half-open, high - low.
#pragma once
#include "numeric.h"

namespace frcnn_fast {

// Pixels: left, top, right, bottom.
template <class U>
struct alignas(4 * sizeof(U) > 16 ? 16 : 4 * sizeof(U)) Box {
  U x1, y1, x2, y2;
};

template <class T>
FF_HD Box<Compute<T>> load_box(const T* p) {
  return {load(p), load(p + 1), load(p + 2), load(p + 3)};
}
template <class U>
FF_HD void store_box(U* p, const Box<U>& box) {
  p[0] = box.x1, p[1] = box.y1, p[2] = box.x2, p[3] = box.y2;
}

template <class U>
FF_HD bool is_finite(const Box<U>& b) {
  return is_finite(b.x1) & is_finite(b.y1) & is_finite(b.x2) & is_finite(b.y2);  // no branches: loops vectorise
}

template <bool kLegacy, class U>
FF_HD U extent(U low, U high) {
  return kLegacy ? (high - low) + U(1) : high - low;
}

template <bool kLegacy, class U>
FF_HD U area(const Box<U>& b) {
  return extent<kLegacy>(b.x1, b.x2) * extent<kLegacy>(b.y1, b.y2);
}

template <bool kLegacy, class U>
FF_HD U intersection(const Box<U>& a, const Box<U>& b) {
  const U w = maximum(U(0), extent<kLegacy>(maximum(a.x1, b.x1), minimum(a.x2, b.x2)));
  const U h = maximum(U(0), extent<kLegacy>(maximum(a.y1, b.y1), minimum(a.y2, b.y2)));
  return w * h;
}

// 0/0 is NaN.
template <bool kLegacy, class U>
FF_HD U iou(const Box<U>& a, const Box<U>& b) {
  const U overlap = intersection<kLegacy>(a, b);
  return overlap / ((area<kLegacy>(a) + area<kLegacy>(b)) - overlap);
}

}  // namespace frcnn_fast
