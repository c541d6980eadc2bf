// RoIAlign's hot loops: weighted sums of a bin's cells and their transpose, many channels at a time.
#include "lanes.h"
#include "roi_cpu.h"

namespace frcnn_fast::roi_pool {
namespace FF_ISA {
using namespace frcnn_fast::FF_ISA;
namespace {

// One bin, n vectors of channels.
template <int n, class U>
FF_HD void sum_bin(const Tile<const U>& tile, const AxisWeights<U>& rows, const AxisWeights<U>& columns, int32_t p,
                   int32_t q, int64_t lane, bool fresh, U* sums) {
  Vector<U> total[n];
#pragma GCC unroll 4
  for (int v = 0; v < n; ++v) total[v] = fresh ? Vector<U>{} : load_vec(sums + v * kLanes<U>);
  for (int32_t i = rows.begin[p]; i < rows.begin[p + 1]; ++i) {
    if (rows.cells[i] < tile.row0 || rows.cells[i] >= tile.row1) continue;
    const U* row = tile.cell(rows.cells[i], tile.column0) + lane;
    for (int32_t j = columns.begin[q]; j < columns.begin[q + 1]; ++j) {
      const U* cell = row + (columns.cells[j] - tile.column0) * tile.cell_stride;
      const U weight = rows.weights[i] * columns.weights[j];
#pragma GCC unroll 4
      for (int v = 0; v < n; ++v) total[v] += weight * load_vec(cell + v * kLanes<U>);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < n; ++v) store_vec(sums + v * kLanes<U>, total[v]);
}

template <class U>
FF_HD void sum_all(const Tile<const U>& tile, const AxisWeights<U>& rows, const AxisWeights<U>& columns, int32_t PH,
                   int32_t PW, int64_t lanes, bool fresh, U* sums, int64_t stride) {
  constexpr int n = kLanes<U>;
  for (int32_t p = 0; p < PH; ++p) {
    for (int32_t q = 0; q < PW; ++q, sums += stride) {
      int64_t s = 0;
      for (; s + 4 * n <= lanes; s += 4 * n) sum_bin<4>(tile, rows, columns, p, q, s, fresh, sums + s);
      for (; s + 2 * n <= lanes; s += 2 * n) sum_bin<2>(tile, rows, columns, p, q, s, fresh, sums + s);
      for (; s < lanes; s += n) sum_bin<1>(tile, rows, columns, p, q, s, fresh, sums + s);
    }
  }
}

template <int n, class U>
FF_HD void scatter_bin(const Tile<U>& tile, const AxisWeights<U>& rows, const AxisWeights<U>& columns, int32_t p,
                       int32_t q, int64_t lane, const U* grads) {
  Vector<U> grad[n];
#pragma GCC unroll 4
  for (int v = 0; v < n; ++v) grad[v] = load_vec(grads + v * kLanes<U>);
  for (int32_t i = rows.begin[p]; i < rows.begin[p + 1]; ++i) {
    if (rows.cells[i] < tile.row0 || rows.cells[i] >= tile.row1) continue;
    U* row = tile.cell(rows.cells[i], tile.column0) + lane;
    for (int32_t j = columns.begin[q]; j < columns.begin[q + 1]; ++j) {
      U* cell = row + (columns.cells[j] - tile.column0) * tile.cell_stride;
      const U weight = rows.weights[i] * columns.weights[j];
#pragma GCC unroll 4
      for (int v = 0; v < n; ++v) store_vec(cell + v * kLanes<U>, load_vec(cell + v * kLanes<U>) + weight * grad[v]);
    }
  }
}

template <class U>
FF_HD void scatter_all(const Tile<U>& tile, const AxisWeights<U>& rows, const AxisWeights<U>& columns, int32_t PH,
                       int32_t PW, int64_t lanes, const U* grads, int64_t stride, const Ahead& ahead) {
  constexpr int n = kLanes<U>;
  for (int32_t p = 0; p < PH; ++p) {
    for (int32_t q = 0; q < PW; ++q, grads += stride) {
      ahead.fetch(p * PW + q);
      int64_t s = 0;
      for (; s + 4 * n <= lanes; s += 4 * n) scatter_bin<4>(tile, rows, columns, p, q, s, grads + s);
      for (; s + 2 * n <= lanes; s += 2 * n) scatter_bin<2>(tile, rows, columns, p, q, s, grads + s);
      for (; s < lanes; s += n) scatter_bin<1>(tile, rows, columns, p, q, s, grads + s);
    }
  }
}

}  // namespace

FF_ALIGN_BINS(float) { sum_all(tile, rows, columns, PH, PW, lanes, fresh, sums, stride); }
FF_ALIGN_BINS(double) { sum_all(tile, rows, columns, PH, PW, lanes, fresh, sums, stride); }
FF_SCATTER_BINS(float) { scatter_all(tile, rows, columns, PH, PW, lanes, grads, stride, ahead); }
FF_SCATTER_BINS(double) { scatter_all(tile, rows, columns, PH, PW, lanes, grads, stride, ahead); }

}  // namespace FF_ISA
}  // namespace frcnn_fast::roi_pool
