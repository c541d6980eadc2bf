// Precise RoI pooling (Jiang et al., Acquisition of Localization Confidence, ECCV 2018): the mean of the map over each
// bin as an integral, with gradients to the RoIs as well.
//
// Between its cells the map is interpolated bilinearly, beyond them it is 0: every cell stands under a hat, max(0, 1 -
// |t|) along each axis. So a bin's mean is separable as RoIAlign's is, and runs through the same kernels (roi_align.h,
// RoiAlignShape::precise), forward and backward, with the weights below and their slopes in the place of the samples'.
//
// Along each axis, in the compute type, every operation rounded by itself: start = low * scale, length = high * scale -
// start, size = length / bins; bin p reaches from start + p * size to start + (p + 1) * size. A RoI whose length is not
// positive and finite along both axes pools nothing.
#pragma once
#include "roi_align.h"

namespace frcnn_fast::roi_pool {

template <class U>
FF_HD U hat(U t) {
  const U below = U(1) - (t < U(0) ? -t : t);
  return below > U(0) ? below : FF_MUTANT(precise_hat, U(0), below);
}

// One bin along one axis: it touches the cells whose hats reach into it and that are on the map, first ... last; none:
// last < first.
template <class U>
struct PreciseBin {
  U low, high, side;
  int32_t first, last;
  int32_t p, bins;

  // Of the segment from that cell to the next the bin covers the fractions l ... r, whose mean is where the integral's
  // value lies: a part of (r - l) goes to the far cell, the rest to the near one.
  FF_HD U covered(U cell, bool far) const {
    const U before = low - cell, behind = high - cell;
    const U l = before > U(0) ? before : FF_MUTANT(precise_segment_start, U(0), before);
    const U r = behind < U(1) ? behind : FF_MUTANT(precise_segment_end, U(1), behind);
    if (FF_MUTANT(precise_disjoint, !(r > l), false)) return U(0);
    const U mean = (l + r) * U(0.5);
    return (r - l) * (far ? mean : U(1) - mean);
  }

  FF_HD U weight(int32_t cell) const {
    const U total = covered(U(cell) - U(1), true) + covered(U(cell), false);
    return FF_MUTANT(precise_no_side, side > U(0), true) ? total / side : U(0);
  }

  // In the bin's own ends the derivatives are at_low / side and at_high / side; the low end of the RoI moves these by
  // (bins - p) / bins and (bins - p - 1) / bins, the high end by the rest.
  FF_HD Slope<U> slope(int32_t cell, U weight) const {
    if (!FF_MUTANT(precise_flat_slope, side > U(0), true)) return {U(0), U(0)};
    const U at_low = weight - hat(low - U(cell)), at_high = hat(high - U(cell)) - weight, length = side * U(bins);
    return {(at_low * U(bins - p) + at_high * U(bins - p - 1)) / length, (at_low * U(p) + at_high * U(p + 1)) / length};
  }
};

// The bins along one axis of one RoI.
template <class U>
struct PreciseAxis {
  U start, size;
  int32_t bins;
  int32_t limit;  // cells; 0: it pools nothing

  FF_HD PreciseBin<U> bin(int32_t p) const {
    PreciseBin<U> bin;
    bin.low = start + U(p) * size;
    bin.high = start + U(p + 1) * size;
    bin.side = bin.high - bin.low;
    bin.p = p;
    bin.bins = bins;
    const U low = bin.low > U(0) ? bin.low : U(0), high = bin.high > U(-1) ? bin.high : U(-1);
    bin.first = low < U(limit) ? FF_MUTANT(precise_first_cell, int32_t(low), int32_t(ceil_(low))) : limit;
    bin.last = high < U(limit - 1) ? int32_t(FF_MUTANT(precise_last_cell, ceil_(high), floor_(high))) : limit - 1;
    return bin;
  }
};

template <class U>
FF_HD PreciseAxis<U> make_axis(U low, U high, U scale, int64_t bins, int64_t limit) {
  PreciseAxis<U> axis;
  axis.start = low * scale;
  const U length = high * scale - axis.start;
  const bool pools =
      FF_MUTANT(precise_length, length > U(0), length >= U(0)) && FF_MUTANT(precise_infinite, is_finite(length), true);
  axis.size = length / U(bins);
  axis.bins = int32_t(bins);
  axis.limit = pools ? int32_t(limit) : 0;
  return axis;
}

template <class U>
struct PreciseAxes {
  PreciseAxis<U> rows, columns;
};

// Both axes pool, or none does.
template <class U>
FF_HD PreciseAxes<U> make_axes(const U* roi, U scale, int64_t PH, int64_t PW, int64_t H, int64_t W) {
  PreciseAxes<U> axes = {make_axis(roi[2], roi[4], scale, PH, H), make_axis(roi[1], roi[3], scale, PW, W)};
  if (axes.rows.limit == 0 || axes.columns.limit == 0) axes.rows.limit = axes.columns.limit = 0;
  return axes;
}

}  // namespace frcnn_fast::roi_pool
