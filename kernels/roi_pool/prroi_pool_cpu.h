// The hot loop of the gradient of a precisely pooled RoI.
#pragma once
#include "prroi_pool.h"
#include "roi_cpu.h"

namespace frcnn_fast::roi_pool {

// The columns that a RoI's bins touch: bin q has weights[i] and slopes[i], i from begin[q] to begin[q + 1], for the
// cells from first[q] on.
template <class U>
struct ColumnSlopes {
  int32_t *first, *begin;
  U* weights;
  Slope<U>* slopes;
};

// One touched row of the map, [cells][lanes] from column0 on, goes into the derivatives of a row of bins in x1, y1, x2
// and y2: bin q's lanes are at (q * 4 + corner) * lanes.
#define FF_ADD_ROW(U)                                                                                               \
  void add_row(const U* row, int32_t column0, const ColumnSlopes<U>& columns, int32_t PW, U weight, Slope<U> slope, \
               int64_t lanes, U* derivatives)
// Adds up derivative * gradient along a row of bins: sums[corner * lanes + lane]. grads: [PW][lanes].
#define FF_ADD_BINS(U) void add_bins(const U* derivatives, const U* grads, int32_t PW, int64_t lanes, U* sums)
FF_ISA_DECLARE(FF_ADD_ROW(float); FF_ADD_ROW(double); FF_ADD_BINS(float); FF_ADD_BINS(double))

}  // namespace frcnn_fast::roi_pool
