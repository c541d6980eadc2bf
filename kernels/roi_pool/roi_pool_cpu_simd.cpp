// RoIPool's hot loop: running maxima of a bin over its cells, many channels at a time.
#include "lanes.h"
#include "roi_cpu.h"

namespace frcnn_fast::roi_pool {
namespace FF_ISA {
using namespace frcnn_fast::FF_ISA;
namespace {

FF_HD void store_index(int32_t* p, Vector<int32_t> index) { store_raw(p, index); }
FF_HD void store_index(int32_t* p, Vector<int64_t> index) { store_raw(p, __builtin_convertvector(index, NarrowInt)); }
FF_HD void load_index(const int32_t* p, Vector<int32_t>* index) { *index = load_raw<Vector<int32_t>>(p); }
FF_HD void load_index(const int32_t* p, Vector<int64_t>* index) {
  *index = __builtin_convertvector(load_raw<NarrowInt>(p), Vector<int64_t>);
}

// One bin, n vectors of channels. Returns the lanes that have nothing above -inf.
template <int n, bool kArgmax, class U>
FF_HD Mask<U> pool_bin(const Tile<const U>& tile, int32_t top, int32_t bottom, int32_t left, int32_t right, int64_t W,
                       int64_t lane, bool fresh, U* best, int32_t* argmax) {
  const Vector<U> lowest = Vector<U>{} - U(__builtin_inf());
  Vector<U> value[n];
  Mask<U> index[n];
#pragma GCC unroll 4
  for (int v = 0; v < n; ++v) {
    value[v] = fresh ? lowest : load_vec(best + v * kLanes<U>);
    index[v] = Mask<U>{} - 1;
    if (kArgmax && !fresh) load_index(argmax + v * kLanes<U>, &index[v]);
  }
  for (int32_t y = top; y < bottom; ++y) {
    const U* cell = tile.cell(y, left) + lane;
    for (int32_t x = left; x < right; ++x, cell += tile.cell_stride) {
      const Mask<U> here = Mask<U>{} + int32_t(y * W + x);
#pragma GCC unroll 4
      for (int v = 0; v < n; ++v) {
        const Vector<U> candidate = load_vec(cell + v * kLanes<U>);
        const Mask<U> better = FF_MUTANT(roi_first_max, candidate > value[v], candidate >= value[v]);
        value[v] = better ? candidate : value[v];
        if (kArgmax) index[v] = better ? here : index[v];
      }
    }
  }
  Mask<U> unset = {};
#pragma GCC unroll 4
  for (int v = 0; v < n; ++v) {
    unset |= value[v] == lowest;
    store_vec(best + v * kLanes<U>, value[v]);
    if (kArgmax) store_index(argmax + v * kLanes<U>, index[v]);
  }
  return unset;
}

template <bool kArgmax, class U>
bool pool_all(const Tile<const U>& tile, const BinEdges& edges, int64_t W, int64_t lanes, bool fresh, U* best,
              int32_t* argmax, int64_t stride) {
  constexpr int n = kLanes<U>;
  Mask<U> unset = {};
  for (int32_t p = 0; p < edges.PH; ++p) {
    const bool no_rows = edges.row_begin[p] >= edges.row_end[p];
    const int32_t top = edges.row_begin[p] > tile.row0 ? edges.row_begin[p] : tile.row0;
    const int32_t bottom = edges.row_end[p] < tile.row1 ? edges.row_end[p] : tile.row1;
    for (int32_t q = 0; q < edges.PW; ++q) {
      const int32_t left = edges.column_begin[q], right = edges.column_end[q];
      U* bin_best = best + (int64_t(p) * edges.PW + q) * stride;
      int32_t* bin_argmax = kArgmax ? argmax + (int64_t(p) * edges.PW + q) * stride : nullptr;
      if (no_rows || left >= right) {
        for (int64_t s = 0; s < lanes; s += n) {
          store_vec(bin_best + s, Vector<U>{});
          if (kArgmax) store_index(bin_argmax + s, Mask<U>{} - 1);
        }
        continue;
      }
      int64_t s = 0;
      for (; s + 4 * n <= lanes; s += 4 * n)
        unset |= pool_bin<4, kArgmax>(tile, top, bottom, left, right, W, s, fresh, bin_best + s, bin_argmax + s);
      for (; s + 2 * n <= lanes; s += 2 * n)
        unset |= pool_bin<2, kArgmax>(tile, top, bottom, left, right, W, s, fresh, bin_best + s, bin_argmax + s);
      for (; s < lanes; s += n)
        unset |= pool_bin<1, kArgmax>(tile, top, bottom, left, right, W, s, fresh, bin_best + s, bin_argmax + s);
    }
  }
  for (int i = 0; i < n; ++i)
    if (unset[i]) return true;
  return false;
}

}  // namespace

FF_POOL_BINS(float) {
  return argmax ? pool_all<true>(tile, edges, W, lanes, fresh, best, argmax, stride)
                : pool_all<false>(tile, edges, W, lanes, fresh, best, argmax, stride);
}
FF_POOL_BINS(double) {
  return argmax ? pool_all<true>(tile, edges, W, lanes, fresh, best, argmax, stride)
                : pool_all<false>(tile, edges, W, lanes, fresh, best, argmax, stride);
}

}  // namespace FF_ISA
}  // namespace frcnn_fast::roi_pool
