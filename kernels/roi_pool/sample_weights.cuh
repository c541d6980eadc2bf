// The weights of RoIAlign's samples along both axes, cell by cell; see roi_align.h.
#pragma once
#include "roi_weights.cuh"

namespace frcnn_fast::roi_pool {

// Walks through the cells that a bin touches along one axis, ascending. The weights grow in registers: a sample lies
// between two cells, and no later one reaches below the first of them.
template <class U>
class SampleWalk {
 public:
  __device__ __forceinline__ SampleWalk(const SampleAxis<U>& axis, int32_t bin, U factor)
      : axis_(axis), factor_(factor), bin_(bin), index_(axis.first(bin)) {
    more_ = index_ < axis_.count && axis_.at(bin_, index_, &sample_);
  }

  // The next cell and its weight; false where there is none.
  __device__ __forceinline__ bool next(int32_t* cell, U* weight) {
    const bool carried = touched_;
    if (!carried && !more_) return false;
    cell_ = carried ? cell_ + 1 : sample_.low;
    U sum = carried ? carry_ : U(0);
    carry_ = U(0), touched_ = false;
    for (; more_ && sample_.low == cell_; more_ = ++index_ < axis_.count && axis_.at(bin_, index_, &sample_)) {
      sum += U(1) - sample_.fraction;
      if (sample_.high == cell_) continue;  // the last cell: nothing is left for another
      carry_ += sample_.fraction;
      touched_ = true;
    }
    *cell = cell_;
    *weight = sum * factor_;
    return true;
  }

 private:
  SampleAxis<U> axis_;
  U factor_;
  int32_t bin_, index_;
  Sample<U> sample_;
  bool more_;             // sample_ has yet to be added
  int32_t cell_ = 0;      // the last one
  U carry_ = U(0);        // of the cell after it
  bool touched_ = false;  // which is touched
};

// Both axes of one RoI; without samples where it pools nothing.
template <class U>
struct SampleWalks {
  using Walk = SampleWalk<U>;

  SampleAxis<U> rows, columns;

  __device__ __forceinline__ SampleWalks(const DeviceShape<U>& s, const U* roi, const DeviceLevel<U>& level)
      : rows(make_samples(roi[2], roi[4], level.scale, s.aligned, int64_t(s.PH), s.sampling_ratio, int64_t(level.H))),
        columns(
            make_samples(roi[1], roi[3], level.scale, s.aligned, int64_t(s.PW), s.sampling_ratio, int64_t(level.W))) {
    const bool pools = roi_image(roi, s.B) >= 0 && roi_is_finite(roi) && level.H > 0 && level.W > 0;
    if (!pools) rows.count = columns.count = 0;
  }
  __device__ __forceinline__ Walk walk(bool of_rows, int32_t bin) const {
    return Walk(of_rows ? rows : columns, bin, of_rows ? sample_share(rows, columns) : U(1));
  }
};

// One bin's weights (and slopes), by one thread; the row of weights is filled with -1. Returns the touched span.
template <class U, bool kSlopes>
__device__ __forceinline__ void add_samples(const SampleAxis<U>& axis, int32_t bin, U factor, U* weights,
                                            Slope<U>* slopes, int32_t* low, int32_t* high) {
  int32_t least = axis.limit, most = -1;
  Sample<U> sample;
  for (int32_t i = axis.first(bin); i < axis.count && axis.at(bin, i, &sample); ++i) {
    const Slope<U> slope = kSlopes ? axis.slope(bin, i, sample) : Slope<U>{};
    const auto add = [&](int32_t cell, U weight, Slope<U> more) {
      const U before = weights[cell];
      weights[cell] = (before < U(0) ? U(0) : before) + weight;
      if (!kSlopes) return;
      const Slope<U> known = before < U(0) ? Slope<U>{U(0), U(0)} : slopes[cell];
      slopes[cell] = {known.low + more.low, known.high + more.high};
    };
    add(sample.low, U(1) - sample.fraction, {-slope.low, -slope.high});
    add(sample.high, sample.fraction, slope);  // it may be the same cell
    least = minimum(least, sample.low);
    most = maximum(most, sample.high);
  }
  for (int32_t cell = least; cell <= most; ++cell) {
    if (weights[cell] < U(0)) continue;
    weights[cell] *= factor;
    if (kSlopes) slopes[cell] = {slopes[cell].low * factor, slopes[cell].high * factor};
  }
  *low = most < 0 ? 0 : least;
  *high = most;
}

// With kGather the first L * B blocks list the RoIs of each image and level. Then each warp has one axis of one RoI:
// the lanes clear the weights, then take a bin each, and (kGather) then a cell each. With kSlopes: left alone the
// compiler wants to have eight blocks, and spills.
template <class U, Weighs kFor>
__global__ void __launch_bounds__(128, kFor == Weighs::kSlopes ? 6 : 0)
    sample_weights_kernel(DeviceShape<U> s, const U* __restrict__ rois, Weights<U> out, Slopes<U> slopes,
                          RoiTables tables) {
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
  const auto rows =
      make_samples(roi[2], roi[4], level.scale, s.aligned, int64_t(s.PH), s.sampling_ratio, int64_t(level.H));
  const auto columns =
      make_samples(roi[1], roi[3], level.scale, s.aligned, int64_t(s.PW), s.sampling_ratio, int64_t(level.W));
  SampleAxis<U> axis = of_rows ? rows : columns;
  const U factor = of_rows ? sample_share(rows, columns) : U(1);
  if (roi_image(roi, s.B) < 0 || !roi_is_finite(roi) || level.H == 0 || level.W == 0) axis.count = 0;
  const AxisTable<U> table = of_rows ? out.rows : out.columns;  // a copy: a reference would put both into local memory
  Slope<U>* const sloping = of_rows ? slopes.rows : slopes.columns;

  if (axis.count > 0)
    for (int32_t bin = 0; bin < table.bins; ++bin)
      for (int32_t cell = lane_id(); cell < axis.limit; cell += kWarp) table.of(k, bin)[cell] = U(-1);
  __syncwarp();  // cleared before they grow
  int32_t least = axis.limit, most = -1;
  for (int32_t bin = lane_id(); bin < table.bins; bin += kWarp) {
    int32_t* span = table.span(k, bin);
    U* weights = table.of(k, bin);
    Slope<U>* own = kFor == Weighs::kSlopes ? sloping + (weights - table.weights) : nullptr;
    add_samples<U, kFor == Weighs::kSlopes>(axis, bin, factor, weights, own, &span[0], &span[1]);
    if (span[1] >= 0) {
      least = minimum(least, span[0]);
      most = maximum(most, span[1]);
    }
  }
  if (kFor != Weighs::kGather) return;
  __syncwarp();  // weights complete before the cells look
  least = warp_reduce(least, Smaller());
  most = warp_reduce(most, Larger());
  write_window(tables, k, of_rows, least, most, table.bins,
               [&](int32_t bin, int32_t cell) { return table.of(k, bin)[cell] >= U(0); });
}

}  // namespace frcnn_fast::roi_pool
