// Boxes of one class, put into vertical strips of the image by their centres, so that a candidate meets a long list of
// kept boxes only in part. Exact.
//
// Let the IoU of two boxes be above t. Then so is that of their horizontal extents, and two intervals with v in common
// and a union of u have doubled centres at most u - v apart, which is less than (1 - t) / t times the width of either.
// Floating point adds errors that are relative as long as no area underflows: the reach below is generous about them,
// boxes with an area that small but positive meet every strip, and those without area suppress nothing anyway.
//
// For *_cpu_simd.cpp files, as kept_chains.h.
#pragma once
#include "kept_chains.h"

namespace frcnn_fast::nms {
namespace FF_ISA {
using namespace frcnn_fast::FF_ISA;

template <bool kLegacy, class U>
class Strips {
 public:
  // Strips at most, for a list of that many kept boxes; 1: a list so short is met whole.
  FF_HD static int64_t most(int64_t capacity) {
    const int64_t wanted = capacity / kStripBoxes;
    return wanted < 1 ? 1 : (wanted < kMost ? wanted : kMost);
  }

  // Settles the strips for boxes like these: they may be few of all. Returns how many.
  int64_t start(int64_t capacity, U threshold, const Candidate<U>* candidates, int64_t n) {
    if (n == 0) return start(capacity, threshold, U(0), U(0), U(0));
    U low = doubled_centre(candidates[0].pretest.box), high = low, widths = U(0);
    for (int64_t i = 0; i < n; ++i) {
      const U c = doubled_centre(candidates[i].pretest.box);
      low = c < low ? c : low;
      high = c > high ? c : high;
      widths += width(candidates[i].pretest.box);
    }
    return start(capacity, threshold, low, high, widths / U(n));
  }

  // The same for doubled centres from low to high (most of them) and about that mean width.
  int64_t start(int64_t capacity, U threshold, U low, U high, U mean_width) {
    low_ = low;
    per_pixel_ = last_ = reach_ = U(0);
    if (most(capacity) == 1 || !(threshold >= U(0.2))) return 1;
    const U t = threshold < U(1) ? threshold : U(1), range = high - low;
    reach_ = (U(1) - t) / t * U(1.0001) + U(1e-4);
    // Strips much narrower than boxes reach would only be more of them.
    const U wanted = range / (reach_ * mean_width);
    if (!(range < U(1e30)) || !(wanted >= U(2))) return 1;
    const int64_t count = wanted < U(most(capacity)) ? int64_t(wanted) : most(capacity);
    last_ = U(count - 1);
    per_pixel_ = U(count) / range;
    return count;
  }

  FF_HD void place(Candidate<U>* c) const {
    c->chain = c->first = 0;
    c->last = c->area > U(0) ? int32_t(last_) : -1;
    if (last_ == U(0)) return;
    const U centre = doubled_centre(c->pretest.box);
    c->chain = strip(centre);
    if (c->area > U(1e-25)) {
      const U w = width(c->pretest.box), size = centre < U(0) ? -centre : centre;
      const U reach = reach_ * w + U(1e-6) * (size + w);
      c->first = strip(centre - reach);
      c->last = strip(centre + reach);
    }
  }

 private:
  static constexpr int64_t kStripBoxes = 64, kMost = 1024;

  FF_HD static U doubled_centre(const Box<U>& box) { return box.x1 + box.x2; }
  FF_HD static U width(const Box<U>& box) { return extent<kLegacy>(box.x1, box.x2); }
  // Never falls as the centre grows, which is all that matters: strips at the ends take what lies beyond.
  FF_HD int32_t strip(U centre) const {
    const U at = (centre - low_) * per_pixel_;
    return int32_t(at > U(0) ? (at < last_ ? at : last_) : U(0));
  }

  U low_ = U(0), per_pixel_ = U(0), last_ = U(0), reach_ = U(0);
};

}  // namespace FF_ISA
}  // namespace frcnn_fast::nms
