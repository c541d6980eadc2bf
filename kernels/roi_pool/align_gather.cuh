// The gradient of a channels_last map, RoIAlign's backward pass: the sums of roi_gather.cuh, tile by tile.
//
// A block has a tile of cells and a slice of the channels, half a warp a cell of them, 16 bytes of channels a lane; the
// two cells of a warp lie one above the other. The block goes through the list of its image's RoIs: each thread tests
// one against the tile, and those that touch are noted in order. A batch of them at a time, a thread takes a row or
// column of the tile for one of them and writes the bins that touch it, with their weights, into shared memory; one
// barrier, and the table is complete; the cells add up, RoI by RoI; one barrier, and it may be written again. The same
// two stand around the notes.
#pragma once
#include "bin_cells.cuh"
#include "roi_weights.cuh"

namespace frcnn_fast::roi_pool {

constexpr int kTileSide = 4, kTileThreads = kTileSide * kTileSide * kCellLanes;
#if defined(FF_TEST_BUILD)  // small cases fill a batch, and have cells in too many bins
constexpr int kTileBatch = 2, kTileRoom = 2;
#else
constexpr int kTileBatch = 16, kTileRoom = 4;
#endif

template <class T>
struct TileGather {
  static constexpr int n = LaneChannels<T>::kCount;
  using U = Compute<T>;

  int32_t C, H, W, PH, PW;
  int64_t group0;                  // of the level's first image
  int32_t columns, tiles, slices;  // tiles side by side, of an image, and blocks of one
  RoiTables tables;
  Weights<U> weights;
  const T* grads;  // channels_last
  T* grad_input;

  // What RoI k owes the cell, from the tables of the first launch.
  __device__ __forceinline__ void add(int64_t k, int32_t y, int32_t x, const VectorLoad<T>& load_bin,
                                      U (&sum)[n]) const {
    const uint32_t rows = tables.row_bins[k * tables.H + y], across = tables.column_bins[k * tables.W + x];
    for (uint32_t p = rows & 0xffffu; p <= rows >> 16; ++p) {
      const U row_weight = weights.rows.of(k, int32_t(p))[y];
      for (uint32_t q = across & 0xffffu; q <= across >> 16; ++q) {
        const U column_weight = weights.columns.of(k, int32_t(q))[x];
        if (row_weight < U(0) || column_weight < U(0)) continue;
        U values[n];
        load_bin((int32_t(p) * PW + int32_t(q)) * (C / n), values);
        const U weight = row_weight * column_weight;
#pragma unroll
        for (int j = 0; j < n; ++j) sum[j] += weight * values[j];
      }
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kTileThreads, sizeof(T) == 4 ? 3 : 2) tile_gather_kernel(TileGather<T> g) {
  using U = Compute<T>;
  constexpr int n = LaneChannels<T>::kCount, sides = 2 * kTileSide;
  FF_SHARED(int, scratch, [32]);
  FF_SHARED(int32_t, touching, [kTileThreads]);
  FF_SHARED(Touched<U>, bins, [kTileBatch * sides][kTileRoom]);
  FF_SHARED(int32_t, counts, [kTileBatch * sides]);
  const int32_t slice = int32_t(blockIdx.x % unsigned(g.slices)), block = int32_t(blockIdx.x / unsigned(g.slices));
  const int64_t image = block / g.tiles;
  const int32_t tile = block % g.tiles, top = tile / g.columns * kTileSide, left = tile % g.columns * kTileSide;
  const int32_t row = warp_id() / kTileSide * 2 + lane_id() / kCellLanes, column = warp_id() % kTileSide;
  const int32_t y = top + row, x = left + column, channel0 = (slice * kCellLanes + lane_id() % kCellLanes) * n;
  const bool mine = y < g.H && x < g.W && channel0 < g.C;
  const int32_t count = g.tables.counts[g.group0 + image];
  const int32_t* const members = g.tables.members + (g.group0 + image) * g.tables.R;
  const int64_t of_roi = int64_t(g.PH) * g.PW * g.C;

  U sum[n];
  clear(sum);
  for (int32_t base = 0; base < count; base += kTileThreads) {
    const int32_t at = base + int32_t(threadIdx.x), k = at < count ? members[at] : -1;
    bool touches = false;
    if (k >= 0) {
      const int32_t* window = g.tables.windows + 4 * int64_t(k);
      touches = window[0] < top + kTileSide && window[1] > top && window[2] < left + kTileSide && window[3] > left;
    }
    int found = 0;
    const int before = block_exclusive_count(touches, scratch, &found);
    if (touches) touching[before] = k;
    __syncthreads();  // all are noted
    for (int32_t first = 0; first < found; first += kTileBatch) {
      const int32_t batch = minimum(found - first, kTileBatch);
      for (int32_t item = int32_t(threadIdx.x); item < batch * sides; item += kTileThreads) {
        const int64_t roi = touching[first + item / sides];
        const int32_t side = item % sides, step = side < kTileSide ? g.PW * (g.C / n) : g.C / n;
        const bool of_rows = side < kTileSide;
        const int32_t cell = of_rows ? top + side : left + side - kTileSide;
        const int32_t* window = g.tables.windows + 4 * roi + (of_rows ? 0 : 2);
        int32_t touched = 0;
        if (cell >= window[0] && cell < window[1]) {
          const uint32_t range =
              of_rows ? g.tables.row_bins[roi * g.tables.H + cell] : g.tables.column_bins[roi * g.tables.W + cell];
          const AxisTable<U> axis = of_rows ? g.weights.rows : g.weights.columns;
          for (uint32_t bin = range & 0xffffu; bin <= range >> 16; ++bin) {
            const U weight = axis.of(roi, int32_t(bin))[cell];
            if (weight < U(0)) continue;
            if (touched < kTileRoom) bins[item][touched] = {weight, int32_t(bin) * step};
            ++touched;
          }
        }
        counts[item] = touched;
      }
      __syncthreads();  // the table is complete
      for (int32_t i = 0; mine && i < batch; ++i) {
        const int32_t of_row = i * sides + row, of_column = i * sides + kTileSide + column;
        const int32_t height = counts[of_row], width = counts[of_column];
        if (height == 0 || width == 0) continue;
        const int64_t roi = touching[first + i];
        const VectorLoad<T> load_bin{reinterpret_cast<const LaneChannels<T>*>(g.grads + roi * of_roi + channel0)};
        if (FF_MUTANT(align_many_bins, height > kTileRoom || width > kTileRoom, false))
          g.add(roi, y, x, load_bin, sum);
        else if (width == 1)
          add_cells<1, true>(bins[of_row], height, bins[of_column], width, load_bin, sum);
        else if (width == 2)
          add_cells<2, true>(bins[of_row], height, bins[of_column], width, load_bin, sum);
        else
          add_cells<4, false>(bins[of_row], height, bins[of_column], width, load_bin, sum);
      }
      __syncthreads();  // nobody reads it, or the notes, any more
    }
  }
  if (!mine) return;
  LaneChannels<T> stored;
#pragma unroll
  for (int j = 0; j < n; ++j) store(stored.v + j, sum[j]);
  const int64_t cell = (image * g.H + y) * g.W + x;
  *reinterpret_cast<LaneChannels<T>*>(g.grad_input + cell * g.C + channel0) = stored;
}

// The gradients of the RoIs' bins from contiguous to channels_last, by vectors. A block has 128 bytes of channels of
// one RoI, a run of memory that is read as it lies, two groups of a vector's channels a warp; one barrier, and they are
// complete in shared memory; then a lane has a group of a bin. An odd number of vectors from group to group: lanes of
// eight groups and four bins read from all banks.
constexpr int kTurnGroups = 8, kTurnThreads = 128;
#if defined(FF_TEST_BUILD)
constexpr int kMostTurned = 72;
#else
constexpr int kMostTurned = 255;  // bins, whose vectors are 32 KB
#endif
constexpr size_t turn_shared(int32_t bins) { return size_t(kTurnGroups) * size_t(bins | 1) * sizeof(uint4); }

template <class T>
__global__ void __launch_bounds__(kTurnThreads)
    turn_kernel(int32_t C, int32_t bins, int32_t slices, const T* __restrict__ from, T* __restrict__ to) {
  using Vector = LaneChannels<T>;
  constexpr int n = Vector::kCount, warps = kTurnThreads / kWarp, together = kWarp / kTurnGroups;
  FF_DYN_SHARED(uint4, values);  // [kTurnGroups][bins | 1]
  const int64_t k = blockIdx.x / unsigned(slices);
  const int32_t channel0 = int32_t(blockIdx.x % unsigned(slices)) * (kTurnGroups * n);
  const int32_t groups = minimum((C - channel0) / n, kTurnGroups), stride = bins | 1;
  const uint4* const source = reinterpret_cast<const uint4*>(from + (k * C + channel0) * bins);
  for (int32_t at = lane_id(); at < bins; at += 2 * kWarp) {
    uint4 loaded[kTurnGroups / warps][2];
#pragma unroll
    for (int i = 0; i < kTurnGroups / warps; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j)
        loaded[i][j] =
            __ldg(source + minimum(warp_id() + i * warps, groups - 1) * bins + minimum(at + j * kWarp, bins - 1));
#pragma unroll
    for (int i = 0; i < kTurnGroups / warps; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j)
        if (at + j * kWarp < bins) values[(warp_id() + i * warps) * stride + at + j * kWarp] = loaded[i][j];
  }
  __syncthreads();  // complete
  const int32_t group = lane_id() % kTurnGroups;
  if (group >= groups) return;
  const T* const mine = reinterpret_cast<const T*>(values + group * stride);
  T* const target = to + k * C * bins + channel0 + group * n;
#pragma unroll 4
  for (int32_t bin = warp_id() * together + lane_id() / kTurnGroups; bin < bins; bin += warps * together) {
    Vector turned;
#pragma unroll
    for (int j = 0; j < n; ++j) turned.v[j] = mine[j * bins + bin];
    *reinterpret_cast<Vector*>(target + bin * C) = turned;
  }
}

// The same number by number, of any channels: a block has a slice of the channels of one RoI, in shared memory; one
// barrier between the ways.
constexpr int kPlainTurnChannels = 32, kPlainTurnBins = 64, kPlainTurnThreads = 256;

template <class T>
__global__ void __launch_bounds__(kPlainTurnThreads)
    plain_turn_kernel(int32_t C, int32_t bins, int32_t slices, const T* __restrict__ from, T* __restrict__ to) {
  FF_SHARED(T, values, [kPlainTurnChannels][kPlainTurnBins + 1]);
  const int64_t k = blockIdx.x / unsigned(slices);
  const int32_t channel0 = int32_t(blockIdx.x % unsigned(slices)) * kPlainTurnChannels;
  const int32_t channels = minimum(C - channel0, kPlainTurnChannels);
  const T* const source = from + (k * C + channel0) * bins;
  T* const target = to + k * C * bins + channel0;
  for (int32_t bin0 = 0; bin0 < bins; bin0 += kPlainTurnBins) {
    const int32_t width = minimum(bins - bin0, kPlainTurnBins);
    for (int32_t c = warp_id(); c < channels; c += kPlainTurnThreads / kWarp)
      for (int32_t bin = lane_id(); bin < width; bin += kWarp) values[c][bin] = source[c * bins + bin0 + bin];
    __syncthreads();  // complete
    for (int32_t bin = warp_id(); bin < width; bin += kPlainTurnThreads / kWarp)
      if (lane_id() < channels) target[int64_t(bin0 + bin) * C + lane_id()] = values[lane_id()][bin];
    __syncthreads();  // written to again
  }
}

}  // namespace frcnn_fast::roi_pool
