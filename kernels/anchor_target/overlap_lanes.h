// Box overlap on vectors. For *_cpu_simd.cpp files only.
#pragma once
#include "../common/box.h"
#include "lanes.h"

namespace frcnn_fast {
namespace FF_ISA {

// The shared part of two intervals, at least 0, in every lane.
template <bool kLegacy, class U>
FF_INLINE Lanes<U> shared_lanes(Lanes<U> low, Lanes<U> high, U other_low, U other_high) {
  const Lanes<U> from = maximum(low, splat(other_low)), to = minimum(high, splat(other_high));
  return maximum(Lanes<U>{}, kLegacy ? (to - from) + U(1) : to - from);
}

}  // namespace FF_ISA
}  // namespace frcnn_fast
