#include "lanes.h"
#include "roi_align_rois_cpu.h"

namespace frcnn_fast::roi_pool {
namespace FF_ISA {
using namespace frcnn_fast::FF_ISA;
namespace {

// n vectors of channels of one bin.
template <int n, class U>
FF_HD void add_bin_row(const U* row, const AxisWeights<U>& columns, int32_t q, U weight, Slope<U> slope, int64_t lanes,
                       U* derivatives) {
  Vector<U> mean[n], low[n], high[n];
#pragma GCC unroll 2
  for (int v = 0; v < n; ++v) mean[v] = low[v] = high[v] = Vector<U>{};
  for (int32_t i = columns.begin[q]; i < columns.begin[q + 1]; ++i) {
    const U* cell = row + columns.cells[i] * lanes;
#pragma GCC unroll 2
    for (int v = 0; v < n; ++v) {
      const Vector<U> value = load_vec(cell + v * kLanes<U>);
      mean[v] += columns.weights[i] * value;
      low[v] += columns.slopes[i].low * value;
      high[v] += columns.slopes[i].high * value;
    }
  }
  const auto add = [&](int corner, U factor, const Vector<U>* sums) {
    for (int v = 0; v < n; ++v) {
      U* target = derivatives + corner * lanes + v * kLanes<U>;
      store_vec(target, load_vec(target) + factor * sums[v]);
    }
  };
  add(0, weight, low);
  add(1, slope.low, mean);
  add(2, weight, high);
  add(3, slope.high, mean);
}

template <class U>
FF_HD void add_whole_row(const U* row, const AxisWeights<U>& columns, int32_t PW, U weight, Slope<U> slope,
                         int64_t lanes, U* derivatives) {
  constexpr int n = kLanes<U>;
  for (int32_t q = 0; q < PW; ++q, derivatives += 4 * lanes) {
    int64_t s = 0;
    for (; s + 2 * n <= lanes; s += 2 * n) add_bin_row<2>(row + s, columns, q, weight, slope, lanes, derivatives + s);
    for (; s < lanes; s += n) add_bin_row<1>(row + s, columns, q, weight, slope, lanes, derivatives + s);
  }
}

template <class U>
FF_HD void add_all_bins(const U* derivatives, const U* grads, int32_t PW, int64_t lanes, U* sums) {
  for (int32_t q = 0; q < PW; ++q, derivatives += 4 * lanes, grads += lanes)
    for (int corner = 0; corner < 4; ++corner)
      for (int64_t s = 0; s < lanes; s += kLanes<U>) {
        U* target = sums + corner * lanes + s;
        store_vec(target, load_vec(target) + load_vec(grads + s) * load_vec(derivatives + corner * lanes + s));
      }
}

}  // namespace

FF_ADD_ROW(float) { add_whole_row(row, columns, PW, weight, slope, lanes, derivatives); }
FF_ADD_ROW(double) { add_whole_row(row, columns, PW, weight, slope, lanes, derivatives); }
FF_ADD_BINS(float) { add_all_bins(derivatives, grads, PW, lanes, sums); }
FF_ADD_BINS(double) { add_all_bins(derivatives, grads, PW, lanes, sums); }

}  // namespace FF_ISA
}  // namespace frcnn_fast::roi_pool
