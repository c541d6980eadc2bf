// What RoIAlign's kernels for channels_last maps share: vectors of channels, and the inner loop of both passes, which
// adds up weighted vectors over rows and columns: the cells that a bin touches, or the bins that touch a cell.
#pragma once
#include "../common/launch.cuh"
#include "roi.h"

namespace frcnn_fast::roi_pool {

constexpr int kCellLanes = 16;  // of a bin or a cell: half a warp

template <class T>
struct alignas(16) LaneChannels {
  static constexpr int kCount = 16 / int(sizeof(T));
  T v[kCount];
};

// A row or column that takes part. at: how far it is from the first, in what loads count in.
template <class U>
struct alignas(2 * sizeof(U)) Touched {
  U weight;
  int32_t at;
};

// Adds to the sums of n channels, whose values load_cell() gives, row by row. The loads of kAtOnce
// columns do not wait for each other. kAll: there are so many, neither more nor less.
template <int kAtOnce, bool kAll, int n, class U, class Load>
__device__ __forceinline__ void add_cells(const Touched<U>* rows, int32_t height, const Touched<U>* columns,
                                          int32_t width, const Load& load_cell, U (&sum)[n]) {
  Touched<U> column[kAtOnce];
  const auto look_up = [&](int32_t c) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) column[i] = columns[kAll ? i : minimum(c + i, width - 1)];
  };
  if (kAll) look_up(0);
#pragma unroll 2
  for (int32_t r = 0; r < height; ++r) {
    const Touched<U> row = rows[r];
    for (int32_t c = 0; c < (kAll ? 1 : width); c += kAtOnce) {
      if (!kAll) look_up(c);
      U values[kAtOnce][n];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) load_cell(row.at + column[i].at, values[i]);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (!kAll && FF_MUTANT(align_columns, c + i >= width, false)) continue;
        const U weight = row.weight * column[i].weight;
#pragma unroll
        for (int j = 0; j < n; ++j) sum[j] += weight * values[i][j];
      }
    }
  }
}

template <int n, class U>
__device__ __forceinline__ void clear(U (&sum)[n]) {
#pragma unroll
  for (int j = 0; j < n; ++j) sum[j] = U(0);
}

// Values of a lane's channels, counted in vectors from its first.
template <class T>
struct VectorLoad {
  const LaneChannels<T>* map;

  __device__ __forceinline__ void operator()(int32_t at, Compute<T> (&values)[LaneChannels<T>::kCount]) const {
    const uint4 bits = __ldg(reinterpret_cast<const uint4*>(map + at));  // it lies in global memory
    LaneChannels<T> loaded;
    memcpy(&loaded, &bits, sizeof loaded);
#pragma unroll
    for (int j = 0; j < LaneChannels<T>::kCount; ++j) values[j] = load(loaded.v + j);
  }
};
}  // namespace frcnn_fast::roi_pool
