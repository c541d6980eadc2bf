// The hot loop of RoIAlign's maxima: a bin's samples, many channels at a time.
#include "lanes.h"
#include "roi_align_max_cpu.h"

namespace frcnn_fast::roi_pool {
namespace FF_ISA {
using namespace frcnn_fast::FF_ISA;
namespace {

// One bin, n vectors of channels.
template <int n, class U>
FF_HD void find_largest(const U* cells, int64_t W, int64_t lanes, const BinSamples<U>& bin, U* best, Mask<U>* at_y,
                        Mask<U>* at_x) {
  Vector<U> value[n];
#pragma GCC unroll 4
  for (int v = 0; v < n; ++v) {
    value[v] = Vector<U>{};
    at_y[v] = at_x[v] = Mask<U>{} - 1;
  }
  for (int32_t y = bin.grid.y.begin; y < bin.grid.y.end; ++y) {
    Sample<U> row;
    sample_at(bin.rows.place(bin.p, y), bin.rows.limit, &row);
    const U *top = cells + row.low * W * lanes, *bottom = cells + row.high * W * lanes;
    for (int32_t x = bin.grid.x.begin; x < bin.grid.x.end; ++x) {
      Sample<U> column;
      sample_at(bin.columns.place(bin.q, x), bin.columns.limit, &column);
      const U above = U(1) - row.fraction, before = U(1) - column.fraction;
      const U upper_left = above * before, upper_right = above * column.fraction;
      const U lower_left = row.fraction * before, lower_right = row.fraction * column.fraction;
      const int64_t left = column.low * lanes, right = column.high * lanes;
#pragma GCC unroll 4
      for (int v = 0; v < n; ++v) {
        const int64_t lane = v * kLanes<U>;
        const Vector<U> found =
            ((upper_left * load_vec(top + left + lane) + upper_right * load_vec(top + right + lane)) +
             lower_left * load_vec(bottom + left + lane)) +
            lower_right * load_vec(bottom + right + lane);
        const Mask<U> larger = FF_MUTANT(align_max_first, found > value[v], found >= value[v]);
        const Mask<U> first = (at_y[v] < 0) & FF_MUTANT(align_max_nan, found == found, found != found);
        const Mask<U> better = larger | first;
        value[v] = better ? found : value[v];
        at_y[v] = better ? Mask<U>{} + y : at_y[v];
        at_x[v] = better ? Mask<U>{} + x : at_x[v];
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < n; ++v) store_vec(best + v * kLanes<U>, value[v]);
}

template <int n, class U>
void find_block(const U* cells, int64_t W, int64_t lanes, const BinSamples<U>& bin, U* best, int32_t* at_y,
                int32_t* at_x) {
  Mask<U> y[n], x[n];
  find_largest<n>(cells, W, lanes, bin, best, y, x);
  for (int v = 0; v < n; ++v)
    for (int i = 0; i < kLanes<U>; ++i) {
      at_y[v * kLanes<U> + i] = int32_t(y[v][i]);
      at_x[v * kLanes<U> + i] = int32_t(x[v][i]);
    }
}

template <class U>
void find_all(const U* cells, int64_t W, int64_t lanes, const BinSamples<U>& bin, U* best, int32_t* at_y,
              int32_t* at_x) {
  constexpr int n = kLanes<U>;
  int64_t s = 0;
  for (; s + 2 * n <= lanes; s += 2 * n) find_block<2>(cells + s, W, lanes, bin, best + s, at_y + s, at_x + s);
  for (; s < lanes; s += n) find_block<1>(cells + s, W, lanes, bin, best + s, at_y + s, at_x + s);
}

}  // namespace

FF_LARGEST_SAMPLES(float) { find_all(cells, W, lanes, bin, best, at_y, at_x); }
FF_LARGEST_SAMPLES(double) { find_all(cells, W, lanes, bin, best, at_y, at_x); }

}  // namespace FF_ISA
}  // namespace frcnn_fast::roi_pool
