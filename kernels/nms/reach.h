// How far apart along an axis two boxes can lie of which one suppresses the other.
//
// Let the IoU of two boxes be above t. Then so is that of their horizontal extents, and that of their vertical ones:
// the union is at least as wide and as high as either pair. Two intervals with v in common and a union of u have
// doubled centres at most u - v apart, which is less than (1 - t) / t times the length of either. Floating point adds
// errors that are relative as long as no area underflows: the reach is generous about them, boxes with an area that
// small but positive reach everything, and those without area suppress nothing anyway.
#pragma once
#include "nms.h"

namespace frcnn_fast::nms {

// In lengths of a box; 0 where the threshold is so low that boxes reach too far for it to be of use.
template <class U>
FF_HD U reach_in_lengths(U threshold) {
  const U t = threshold < U(1) ? threshold : U(1);
  return threshold >= U(0.2) ? (U(1) - t) / t * U(1.0001) + U(1e-4) : U(0);
}

// Of a box with that doubled centre and length; infinite, or NaN, where a coordinate is close to overflow.
template <class U>
FF_HD U reach_of(U reach_in_lengths, U centre, U length) {
  const U size = centre < U(0) ? -centre : centre;
  return reach_in_lengths * length + U(1e-6) * (size + length);
}

// Whether that holds for a box of this area.
template <class U>
FF_HD bool has_reach(U area) {
  return area > U(1e-25);
}

}  // namespace frcnn_fast::nms
