// The gradient of a channels_last map, RoIAlign's backward pass: the sums of roi_gather.cuh, tile by tile.
//
// A block has a tile of cells and a slice of the channels, half a warp a cell of them, two vectors of channels a lane;
// the two cells of a warp lie one above the other. The block goes through the list of its image's RoIs: a thread tests
// some against the tile, and those that touch are noted in order, with the rows and columns that they touch; one
// barrier, and the notes are complete. A batch of them at a time, a thread takes a row or column of the tile for one of
// them and writes the bins that touch it, with their weights, into a table in shared memory; one barrier, and the table
// is complete. Then half a warp lists the terms of its cell, a lane those of one RoI, in the order of their sum and as
// many as there is room for, and adds them up; the list is the warp's own. Of two tables one may be written to while
// others read the other: all have done with it when they meet at that one's barrier. The notes are written to anew
// behind the barriers of counting them.
#pragma once
#include "bin_cells.cuh"
#include "roi_weights.cuh"

namespace frcnn_fast::roi_pool {

constexpr int kTileSide = 4, kTileSides = 2 * kTileSide, kTileThreads = kTileSide * kTileSide * kCellLanes;
constexpr int kLaneVectors = 2, kTermsAtOnce = 3, kBinsAtOnce = 4, kNotedEach = 4;
#if defined(FF_TEST_BUILD)  // small cases fill a batch, a list and the notes, and have cells in too many bins
constexpr int kTileBatch = 2, kTileTerms = 7, kTileNotes = 4;
template <class U>
constexpr int kTileRoom = 2;
#else
constexpr int kTileBatch = 16, kTileTerms = 63, kTileNotes = kNotedEach * kTileThreads;
template <class U>
constexpr int kTileRoom = 32 / int(sizeof(U));  // bins of a row or column in the table
#endif
static_assert(kTileBatch <= kCellLanes && kTileBatch * kTileSides <= kTileThreads);

// Half a warp's list.
template <class U>
struct TermList {
  Touched<U>* terms;
  int32_t place;  // of the next one; it is left out where there is none

  __device__ __forceinline__ void put(U weight, int32_t at) {
    if (unsigned(place) < unsigned(kTileTerms)) terms[place] = {weight, at};
    ++place;
  }
};

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

  // Whether the numbers of vectors and of terms do not exceed 32 bits.
  static bool counts(const RoiAlignShape& s) {
    return s.R * s.PH * s.PW * (s.C / n) <= INT32_MAX && kTileBatch * s.PH * s.PW <= INT32_MAX;
  }
  // In vectors.
  __device__ __forceinline__ int32_t at(int64_t k, int32_t p, int32_t q) const {
    return ((int32_t(k) * PH + p) * PW + q) * (C / n);
  }

  // Writes down the bins of RoI k that touch a row or column, as far as there is room, and returns how many they are.
  __device__ __forceinline__ int32_t list_bins(int64_t k, bool of_rows, int32_t cell, Touched<U>* bins) const {
    const uint32_t range =
        __ldg(of_rows ? tables.row_bins + k * tables.H + cell : tables.column_bins + k * tables.W + cell);
    const AxisTable<U> axis = of_rows ? weights.rows : weights.columns;
    const U* const of_cell = axis.of(k, 0) + cell;
    const int32_t first = of_rows ? at(k, 0, 0) : 0, step = of_rows ? at(0, 1, 0) : at(0, 0, 1);
    const int32_t last = int32_t(range >> 16);
    int32_t touched = 0;
    for (int32_t bin = int32_t(range & 0xffffu); bin <= last; bin += kBinsAtOnce) {
      U found[kBinsAtOnce];
#pragma unroll
      for (int i = 0; i < kBinsAtOnce; ++i) found[i] = __ldg(of_cell + minimum(bin + i, last) * int64_t(axis.stride));
#pragma unroll
      for (int i = 0; i < kBinsAtOnce; ++i) {
        if (FF_MUTANT(align_last_bin, bin + i > last, false) || found[i] < U(0)) continue;
        if (touched < kTileRoom<U>) bins[touched] = {found[i], first + (bin + i) * step};
        ++touched;
      }
    }
    return touched;
  }

  // What RoI k owes the cell, from the tables of the first launch.
  __device__ __forceinline__ void list_terms(int64_t k, int32_t y, int32_t x, TermList<U>& list) const {
    const uint32_t rows = tables.row_bins[k * tables.H + y], across = tables.column_bins[k * tables.W + x];
    for (uint32_t p = rows & 0xffffu; p <= rows >> 16; ++p) {
      const U row_weight = weights.rows.of(k, int32_t(p))[y];
      for (uint32_t q = across & 0xffffu; q <= across >> 16; ++q) {
        const U column_weight = weights.columns.of(k, int32_t(q))[x];
        if (row_weight < U(0) || column_weight < U(0)) continue;
        list.put(row_weight * column_weight, at(k, int32_t(p), int32_t(q)));
      }
    }
  }
};

// Of the tile's rows or columns from start, a bit each, those from first to end.
__device__ __forceinline__ uint32_t sides_inside(int32_t first, int32_t end, int32_t start) {
  const auto below = [&](int32_t cell) { return (1u << maximum(0, minimum(cell - start, kTileSide))) - 1; };
  return below(end) & ~below(first);
}

// Adds count terms, or, where not kAll, as many of them as there are. Their loads do not wait for each other.
template <bool kAll, class T, class U, int n>
__device__ __forceinline__ void add_terms(const Touched<U>* terms, int32_t count,
                                          const VectorLoad<T> (&vectors)[kLaneVectors], U (&sum)[kLaneVectors][n]) {
  U values[kTermsAtOnce][kLaneVectors][n], weights[kTermsAtOnce];
#pragma unroll
  for (int i = 0; i < kTermsAtOnce; ++i) {
    const Touched<U> term = terms[kAll ? i : minimum(i, count - 1)];
    weights[i] = term.weight;
#pragma unroll
    for (int v = 0; v < kLaneVectors; ++v) vectors[v](term.at, values[i][v]);
  }
#pragma unroll
  for (int i = 0; i < kTermsAtOnce; ++i) {
    if (!kAll && FF_MUTANT(align_last_term, i >= count, false)) continue;
#pragma unroll
    for (int v = 0; v < kLaneVectors; ++v)
#pragma unroll
      for (int j = 0; j < n; ++j) sum[v][j] += weights[i] * values[i][v][j];
  }
}

template <class T>
__global__ void __launch_bounds__(kTileThreads, 2) tile_gather_kernel(TileGather<T> g) {
  using U = Compute<T>;
  constexpr int n = LaneChannels<T>::kCount;
  FF_SHARED(int, scratch, [32]);
  FF_SHARED(int32_t, noted, [kTileNotes]);
  FF_SHARED(uint8_t, noted_sides, [kTileNotes]);
  FF_SHARED(Touched<U>, bins, [2][kTileBatch * kTileSides][kTileRoom<U>]);
  FF_SHARED(int32_t, counts, [2][kTileBatch * kTileSides]);
  FF_SHARED(Touched<U>, terms, [kTileThreads / kCellLanes][kTileTerms + 3]);  // a warp's two start in different banks
  const int32_t slice = int32_t(blockIdx.x % unsigned(g.slices)), block = int32_t(blockIdx.x / unsigned(g.slices));
  const int32_t image = block / g.tiles;
  const int32_t tile = block % g.tiles, top = tile / g.columns * kTileSide, left = tile % g.columns * kTileSide;
  const int32_t row = warp_id() / kTileSide * 2 + lane_id() / kCellLanes, column = warp_id() % kTileSide;
  const int32_t y = top + row, x = left + column, lane = lane_id() % kCellLanes;
  const int32_t count = g.tables.counts[g.group0 + image];
  const auto channel = [&](int v) { return ((slice * kLaneVectors + v) * kCellLanes + lane) * n; };
  const auto present = [&](int v) { return FF_MUTANT(align_channels, channel(v) < g.C, true); };
  Touched<U>* const own = terms[int(threadIdx.x) / kCellLanes];

  VectorLoad<T> vectors[kLaneVectors];
  U sum[kLaneVectors][n];
#pragma unroll
  for (int v = 0; v < kLaneVectors; ++v) {
    vectors[v].map = reinterpret_cast<const LaneChannels<T>*>(g.grads + (present(v) ? channel(v) : 0));
    clear(sum[v]);
  }
  int odd = 0;
  for (int32_t base = 0; base < count; base += kTileNotes) {
    const int32_t at = base + int32_t(threadIdx.x) * kNotedEach, end = minimum(count, base + kTileNotes);
    int32_t k[kNotedEach];
    uint32_t sides[kNotedEach] = {};
    int touching = 0, found = 0;
    if (FF_MUTANT(align_notes, at < end, at < count)) {
#pragma unroll
      for (int i = 0; i < kNotedEach; ++i)
        k[i] = __ldg(g.tables.members + (g.group0 + image) * g.tables.R + minimum(at + i, count - 1));
#pragma unroll
      for (int i = 0; i < kNotedEach; ++i) {
        const int4 window = __ldg(reinterpret_cast<const int4*>(g.tables.windows) + k[i]);
        const uint32_t rows = sides_inside(window.x, window.y, top), across = sides_inside(window.z, window.w, left);
        if (FF_MUTANT(align_last_note, at + i < count, true) && rows != 0 && across != 0)
          sides[i] = rows | across << kTileSide;
        touching += sides[i] != 0;
      }
    }
    int before = block_exclusive_sum(touching, scratch, &found);
#pragma unroll
    for (int i = 0; i < kNotedEach; ++i) {
      if (sides[i] == 0) continue;
      noted[before] = k[i];
      noted_sides[before++] = uint8_t(sides[i]);
    }
    __syncthreads();  // all are noted
    for (int32_t first = 0; first < found; first += kTileBatch, odd ^= 1) {
      const int32_t batch = minimum(found - first, kTileBatch);
      if (const int32_t item = int32_t(threadIdx.x); item < batch * kTileSides) {
        const int32_t i = first + item / kTileSides, side = item % kTileSides;
        const bool of_rows = side < kTileSide;
        counts[odd][item] =
            noted_sides[i] >> side & 1
                ? g.list_bins(noted[i], of_rows, of_rows ? top + side : left + side - kTileSide, bins[odd][item])
                : 0;
      }
      __syncthreads();  // the table is complete
      const int32_t of_row = lane * kTileSides + row, of_column = lane * kTileSides + kTileSide + column;
      const int32_t height = lane < batch ? counts[odd][of_row] : 0, width = lane < batch ? counts[odd][of_column] : 0;
      const int32_t owed = height * width;
      int32_t places = owed;  // up to those of this lane
#pragma unroll
      for (int d = 1; d < kCellLanes; d *= 2) {
        const int32_t below = __shfl_up_sync(kFullMask, places, d, kCellLanes);
        if (FF_MUTANT(align_places, lane, lane_id()) >= d) places += below;
      }
      const int32_t total = __shfl_sync(kFullMask, places, kCellLanes - 1, kCellLanes);
      const int32_t most = maximum(total, __shfl_xor_sync(kFullMask, total, kCellLanes));
      for (int32_t from = 0; FF_MUTANT(align_full_list, from < most, from < 1); from += kTileTerms) {
        TermList<U> list{own, places - owed - from};
        if (FF_MUTANT(align_many_bins, height > kTileRoom<U> || width > kTileRoom<U>, false)) {
          if (owed > 0) g.list_terms(noted[first + lane], y, x, list);
        } else {
#pragma unroll 1
          for (int32_t r = 0; r < height; ++r) {
            const Touched<U> across = bins[odd][of_row][r];
            for (int32_t c = 0; c < width; ++c) {
              const Touched<U> down = bins[odd][of_column][c];
              list.put(across.weight * down.weight, across.at + down.at);
            }
          }
        }
        __syncwarp();  // the list is complete
        const int32_t listed = minimum(total - from, kTileTerms);
        int32_t t = 0;
#pragma unroll 1
        for (; t + kTermsAtOnce <= listed; t += kTermsAtOnce) add_terms<true>(own + t, kTermsAtOnce, vectors, sum);
        if (t < listed) add_terms<false>(own + t, listed - t, vectors, sum);
        __syncwarp();  // and read
      }
    }
  }
#pragma unroll
  for (int v = 0; v < kLaneVectors; ++v) {
    if (y >= g.H || x >= g.W || !present(v)) continue;
    LaneChannels<T> stored;
#pragma unroll
    for (int j = 0; j < n; ++j) store(stored.v + j, sum[v][j]);
    const int64_t cell = (int64_t(image) * g.H + y) * g.W + x;
    *reinterpret_cast<LaneChannels<T>*>(g.grad_input + cell * g.C + channel(v)) = stored;
  }
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
