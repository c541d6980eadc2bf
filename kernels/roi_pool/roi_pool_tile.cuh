// RoIPool's forward pass with the map in shared memory: every cell leaves the L2 cache once a block, whatever the
// number of bins that read it.
//
// A block: a slice of the channels of one image, and a share of its RoIs; a warp: one RoI at a time, which it claims
// from the block's counter, so that large and small RoIs even out; a lane: a bin of that RoI in four channels, the
// lanes that follow the same bin in the slice's other channels. So a cell is read by neighbouring lanes from
// neighbouring addresses, a warp waits for the largest of a few bins only, and stores fill whole sectors: eight bins of
// a channel, where a slice has 16 channels.
// Shared memory: the slice, [H * W][channels] in the map's own type, four channels an element. One barrier, after it
// was filled. A RoI's edges are worked out once, a lane a row and a column of bins, and handed around by shuffles.
//
// Only for contiguous maps. With channels last a warp of the other kernel has one bin and whole lines of channels: it
// loads and stores nothing but lines already, and all its lanes have a bin of the same size.
#pragma once
#include "roi_bins.cuh"

namespace frcnn_fast::roi_pool {

constexpr int kTileThreads = 512;
constexpr int kQuad = 4;                // channels of an element of the tile
constexpr int64_t kCounterBytes = 128;  // of static shared memory, besides the tile
constexpr int64_t kMostTileQuads = 4;   // wider slices would only make each block load more before it begins

// n / by for n below 2^16, by 1 ... 2^16: two instructions where a division takes twenty.
struct Divisor {
  int32_t by;
  uint32_t reciprocal;

  static Divisor of(int64_t by) {
    return {int32_t(by), uint32_t((uint64_t(1) << 32) / uint64_t(by) + FF_MUTANT(roi_tile_reciprocal, 1, 0))};
  }
  __device__ __forceinline__ int32_t divide(int32_t n) const {
    return by > 1 ? int32_t(__umulhi(unsigned(n), reciprocal)) : n;
  }
};

struct TilePlan {
  int32_t quads;   // of a slice; 0: read the map through the caches
  int32_t slices;  // of an image
  int32_t shares;  // blocks that share the RoIs of one image and slice
  Divisor by_quads, by_columns;
  size_t bytes;
};

// Four channels of a cell, loaded and stored at once.
template <class T>
struct alignas(kQuad * sizeof(T) > 16 ? 16 : kQuad * sizeof(T)) Quad {
  T of[kQuad];
};

// Of a slice, on the current device.
inline int64_t most_tile_bytes() { return int64_t(max_dynamic_shared()) - kCounterBytes; }

// The one place that decides how the map is read. As many channels as the device's shared memory takes, in equal
// slices; none where the map is too large even for four, or where the RoIs are so few that to load the whole map costs
// more than it saves.
inline TilePlan choose_tile(const RoiPoolShape& s, size_t element) {
  constexpr int64_t kWorthLoading = 16;  // RoIs an image
  if (s.channels_last || s.B == 0 || s.R < kWorthLoading * s.B || s.R > INT32_MAX - kWarp) return {};
  if (s.PH > kWarp || s.PW > kWarp || s.H > 0xffff || s.W > 0xffff) return {};  // edges have no room
  const int64_t plane = s.H * s.W * int64_t(kQuad * element), quads = (s.C + kQuad - 1) / kQuad;
  const int64_t room = most_tile_bytes() + FF_MUTANT(roi_tile_room, 0, kCounterBytes);
  const int64_t most = plane > 0 ? minimum(minimum(room / plane, kMostTileQuads), quads) : 0;
  if (most <= 0) return {};
  TilePlan plan{};
  plan.slices = int32_t((quads + most - 1) / most);
  plan.quads = int32_t((quads + plan.slices - 1) / plan.slices);
  const int64_t blocks = s.B * plan.slices;
  const int64_t warps = kTileThreads / kWarp, useful = (s.R / s.B + warps - 1) / warps;
  plan.shares = int32_t(maximum(int64_t(1), minimum(int64_t(multiprocessors()) / blocks, useful)));
  plan.by_quads = Divisor::of(plan.quads);
  plan.by_columns = Divisor::of(maximum(s.PW, int64_t(1)));
  plan.bytes = size_t(plane * plan.quads);
  return plan;
}

// All bins of one RoI for the slice's channels c0 ... c0 + channels - 1. The whole warp.
template <class T, bool kArgmax>
__device__ __forceinline__ void pool_roi(const PoolShape& s, const TilePlan& plan, const Quad<T>* tile, int32_t c0,
                                         int32_t channels, int64_t k, const Compute<T>* roi, Compute<T> scale,
                                         T* output, int32_t* argmax) {
  using U = Compute<T>;
  const RoiBins<U> bins(s, roi, scale);
  const bool packed = kArgmax && packs(bins, s);
  const int32_t size = s.PH * s.PW, items = size * plan.quads;
  T* const to = output + (k * s.C + c0) * size;
  int32_t* const part = kArgmax ? part_of(argmax, s, k) : nullptr;
  if (packed && c0 == 0 && lane_id() == 0) *mark_of(part, s) = kPackedPart;
  const uint32_t my_row = bins.present ? edges(bins.rows, lane_id()) : 0;  // beyond the last bin: not asked for
  const uint32_t my_column = edges(bins.columns, lane_id());
  for (int32_t first = 0; first < items; first += kWarp) {
    const int32_t item = minimum(first + lane_id(), items - 1);  // beyond the last: found again, not stored
    const int32_t bin = plan.by_quads.divide(item), quad = item - bin * plan.quads, c = quad * kQuad;
    const int32_t p = plan.by_columns.divide(bin), q = bin - p * s.PW;
    const BinCells cells(__shfl_sync(kFullMask, my_row, p), __shfl_sync(kFullMask, my_column, q));
    U best[kQuad];
    int32_t order[kQuad];
    find_maxima(
        cells,
        [&](int32_t y, int32_t x, U(&found)[kQuad]) {
          const Quad<T> cell = tile[(y * s.W + x) * plan.quads + quad];
#pragma unroll
          for (int j = 0; j < kQuad; ++j) found[j] = load(&cell.of[j]);
        },
        best, order);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      if (first + lane_id() >= items || c + j >= channels) continue;
      store(to + (c + j) * size + bin, best[j]);
      if (kArgmax) keep_argmax(part, int64_t(c0 + c + j) * size + bin, packed, order[j], cells, s.W);
    }
  }
}

template <class T, bool kArgmax>
__global__ void __launch_bounds__(kTileThreads, 1)
    pool_tile_kernel(PoolShape s, TilePlan plan, int32_t R, const T* __restrict__ input,
                     const Compute<T>* __restrict__ rois, Compute<T> scale, T* __restrict__ output,
                     int32_t* __restrict__ argmax) {
  FF_DYN_SHARED(Quad<T>, tile);
  FF_SHARED(int32_t, claimed, );
  const int32_t share = int32_t(blockIdx.x % unsigned(plan.shares));
  const int32_t slice = int32_t(blockIdx.x / unsigned(plan.shares) % unsigned(plan.slices));
  const int64_t image = int64_t(blockIdx.x / unsigned(plan.shares) / unsigned(plan.slices));
  const int32_t c0 = slice * plan.quads * kQuad, plane = s.H * s.W;
  const int32_t wide = plan.quads * kQuad;
  const int32_t channels = FF_MUTANT(roi_tile_rest, minimum(wide, int32_t(s.C) - c0), wide);

  const T* const map = input + (image * s.C + c0) * plane;
#pragma unroll 4
  for (int32_t i = int32_t(threadIdx.x); i < plane * plan.quads; i += kTileThreads) {
    const int32_t cell = plan.by_quads.divide(i), c = (i - cell * plan.quads) * kQuad;
#pragma unroll
    for (int j = 0; j < kQuad; ++j)  // beyond the last channel: read again, never stored
      tile[i].of[j] = map[minimum(c + j, channels - 1) * plane + cell];
  }
  if (threadIdx.x == 0) claimed = 0;
  __syncthreads();  // the tile is whole

  // Which of the image's RoIs, counted in order, this warp takes next.
  const auto claim = [&] {
    int32_t mine = 0;
    if (lane_id() == 0) mine = atomicAdd(&claimed, 1);
    return share + plan.shares * __shfl_sync(kFullMask, mine, 0);
  };
  int32_t wanted = claim(), seen = 0;
  for (int32_t base = 0; base < R; base += kWarp) {
    const int32_t candidate = base + lane_id();
    // RoIs of no image are empty; the first image's blocks write them.
    const int64_t of = candidate < R ? roi_image(rois + int64_t(candidate) * kRoiFields, s.B) : -1;
    const bool mine = FF_MUTANT(roi_tile_empty, of < 0 ? image == 0 : of == image, of == image);
    const bool here = candidate < R && mine;
    const unsigned all = __ballot_sync(kFullMask, here);
    const int32_t rank = seen + __popc(all & lanes_below());
    for (seen += __popc(all); wanted < seen; wanted = claim()) {
      const unsigned found = __ballot_sync(kFullMask, here && rank == wanted);
      const int64_t k = base + __ffs(int(found)) - 1;
      pool_roi<T, kArgmax>(s, plan, tile, c0, channels, k, rois + k * kRoiFields, scale, output, argmax);
    }
  }
}

}  // namespace frcnn_fast::roi_pool
