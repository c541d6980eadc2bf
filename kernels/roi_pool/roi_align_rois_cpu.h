// The hot loop of the gradient of a RoI.
#pragma once
#include "roi_cpu.h"

namespace frcnn_fast::roi_pool {

// One touched row of the map, [places][lanes], goes into the derivatives of a row of bins in x1, y1, x2 and y2: bin q's
// lanes are at (q * 4 + corner) * lanes. columns: their cells are places in the row. weight, slope: the row's.
#define FF_ADD_ROW(U)                                                                                            \
  void add_row(const U* row, const AxisWeights<U>& columns, int32_t PW, U weight, Slope<U> slope, int64_t lanes, \
               U* derivatives)
// Adds up derivative * gradient along a row of bins: sums[corner * lanes + lane]. grads: [PW][lanes].
#define FF_ADD_BINS(U) void add_bins(const U* derivatives, const U* grads, int32_t PW, int64_t lanes, U* sums)
FF_ISA_DECLARE(FF_ADD_ROW(float); FF_ADD_ROW(double); FF_ADD_BINS(float); FF_ADD_BINS(double))

}  // namespace frcnn_fast::roi_pool
