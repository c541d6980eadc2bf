// The memory of kept boxes: blocks of lanes, laid out alike for every instruction set.
#pragma once
#include "../common/workspace.h"
#include "nms.h"

namespace frcnn_fast::nms {

// Sixteen floats or eight doubles of each coordinate, and the boxes' parts of the division-free test.
template <class U>
struct alignas(64) KeptBlock {
  static constexpr int kLanes = 64 / int(sizeof(U));
  U x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes], share[kLanes];

  // Every lane empty: an infinite share that no overlap reaches.
  FF_HD void clear() {
    for (int l = 0; l < kLanes; ++l) {
      x1[l] = y1[l] = x2[l] = y2[l] = U(0);
      share[l] = U(__builtin_inf());
    }
  }
  FF_HD void set(int lane, const PretestBox<U>& pretest) {
    x1[lane] = pretest.box.x1, y1[lane] = pretest.box.y1, x2[lane] = pretest.box.x2, y2[lane] = pretest.box.y2;
    share[lane] = pretest.share;
  }
};

}  // namespace frcnn_fast::nms
