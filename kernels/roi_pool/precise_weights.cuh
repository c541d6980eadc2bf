// The weights of precise RoI pooling along both axes, cell by cell; see prroi_pool.h.
#pragma once
#include "prroi_pool.h"
#include "roi_weights.cuh"

namespace frcnn_fast::roi_pool {

// Walks through the cells that a bin touches along one axis, ascending.
template <class U>
class PreciseWalk {
 public:
  __device__ __forceinline__ explicit PreciseWalk(const PreciseBin<U>& bin) : bin_(bin), cell_(bin.first) {}

  // The next cell and its weight; false where there is none.
  __device__ __forceinline__ bool next(int32_t* cell, U* weight) {
    if (cell_ > bin_.last) return false;
    *weight = bin_.weight(cell_);
    *cell = cell_++;
    return true;
  }

 private:
  PreciseBin<U> bin_;
  int32_t cell_;
};

// Both axes of one RoI; without cells where it pools nothing.
template <class U>
struct PreciseWalks {
  using Walk = PreciseWalk<U>;

  PreciseAxes<U> axes;

  __device__ __forceinline__ PreciseWalks(const DeviceShape<U>& s, const U* roi, const DeviceLevel<U>& level)
      : axes(make_axes(roi, level.scale, int64_t(s.PH), int64_t(s.PW), int64_t(level.H), int64_t(level.W))) {
    if (roi_image(roi, s.B) < 0) axes.rows.limit = axes.columns.limit = 0;
  }
  __device__ __forceinline__ Walk walk(bool of_rows, int32_t bin) const {
    const PreciseAxis<U> axis = of_rows ? axes.rows : axes.columns;
    return Walk(axis.bin(bin));
  }
};

// With kGather the first L * B blocks list the RoIs of each image and level. Then each warp has one axis of one RoI and
// takes its bins one after the other, a lane a cell; with kGather then a lane a cell of all that the RoI touches. No
// thread reads what another one writes.
template <class U, Weighs kFor>
__global__ void __launch_bounds__(128) precise_weights_kernel(DeviceShape<U> s, const U* __restrict__ rois,
                                                              Weights<U> out, Slopes<U> slopes, RoiTables tables) {
  const int64_t groups = kFor == Weighs::kGather ? s.L * s.B : 0;
  if (kFor == Weighs::kGather && blockIdx.x < groups) {
    list_group(s, rois, int64_t(blockIdx.x), tables);
    return;
  }
  const int64_t item = (int64_t(blockIdx.x) - groups) * warps_per_block() + warp_id();
  const int64_t k = item / 2;
  if (k >= s.R) return;  // the whole warp
  const bool of_rows = item % 2 == 0;
  const U* roi = rois + k * kRoiFields;
  const DeviceLevel<U>& level = s.levels[s.level(roi)];
  const auto axes = make_axes(roi, level.scale, int64_t(s.PH), int64_t(s.PW), int64_t(level.H), int64_t(level.W));
  PreciseAxis<U> axis = of_rows ? axes.rows : axes.columns;
  if (roi_image(roi, s.B) < 0) axis.limit = 0;
  const AxisTable<U> table = of_rows ? out.rows : out.columns;
  Slope<U>* const sloping = of_rows ? slopes.rows : slopes.columns;

  int32_t least = axis.limit, most = -1;
  for (int32_t p = 0; p < axis.bins; ++p) {
    const PreciseBin<U> bin = axis.bin(p);
    U* weights = table.of(k, p);
    for (int32_t cell = bin.first + lane_id(); cell <= bin.last; cell += kWarp) weights[cell] = bin.weight(cell);
    // Apart: divisions in float64 are calls with much to save.
    if (kFor == Weighs::kSlopes)
      for (int32_t cell = bin.first + lane_id(); cell <= bin.last; cell += kWarp)
        sloping[weights - table.weights + cell] = bin.slope(cell, weights[cell]);
    if (bin.first <= bin.last) {
      least = minimum(least, bin.first);
      most = maximum(most, bin.last);
    }
    if (lane_id() == 0) {
      table.span(k, p)[0] = bin.first;
      table.span(k, p)[1] = bin.last;
    }
  }
  if (kFor != Weighs::kGather) return;
  write_window(tables, k, of_rows, least, most, axis.bins, [&](int32_t p, int32_t cell) {
    const PreciseBin<U> bin = axis.bin(p);
    return bin.first <= cell && cell <= bin.last;
  });
}

}  // namespace frcnn_fast::roi_pool
