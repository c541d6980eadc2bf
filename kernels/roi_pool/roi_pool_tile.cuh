// RoIPool's forward pass with the map in shared memory: every cell leaves the L2 cache once a block, whatever the
// number of bins that read it.
//
// A block: a slice of the channels of one image, and a share of its RoIs; a warp: one RoI at a time, which it claims
// from the block's counter, so that large and small RoIs even out; a lane: bins lane, lane + 32, ... of that RoI, each
// for all channels of the slice, kTogether at a time. So the lanes of a store are neighbouring numbers of the output.
// Shared memory: the slice, [channels][H][W] in the map's own type and order. One barrier, after it was filled.
//
// Only for contiguous maps. With channels last a warp of the other kernel has one bin and whole lines of channels: it
// loads and stores nothing but lines already, and all its lanes have a bin of the same size.
//
// Planted mistakes: roi_tile_room, roi_tile_rest, roi_tile_empty.
#pragma once
#include "roi_bins.cuh"

namespace frcnn_fast {

constexpr int kTileThreads = 512;
constexpr int kTogether = 8;               // channels whose maxima a thread finds at once
constexpr int64_t kCounterBytes = 128;     // of shared memory, besides the tile
constexpr int64_t kMostTileChannels = 16;  // wider slices would only make each block load more before it begins

struct TilePlan {
  int32_t channels;  // of a slice; 0: read the map through the caches
  int32_t slices;    // of an image
  int32_t shares;    // blocks that share the RoIs of one image and slice
  size_t bytes;
};

// The one place that decides how the map is read. As many channels as the device's shared memory takes, in equal
// slices; none where the map is too large even for one, or where the RoIs are so few that to load the whole map costs
// more than it saves.
inline TilePlan choose_tile(const RoiPoolShape& s, size_t element) {
  constexpr int64_t kWorthLoading = 16;  // RoIs an image
  if (s.channels_last || s.K < kWorthLoading * s.B || s.K > INT32_MAX - kWarp) return {};
  const int64_t plane = s.H * s.W * int64_t(element);
  const int64_t room = int64_t(max_dynamic_shared()) - FF_MUTANT(roi_tile_room, kCounterBytes, 0);
  const int64_t most = plane > 0 ? minimum(minimum(room / plane, kMostTileChannels), s.C) : 0;
  if (most <= 0) return {};
  TilePlan plan{};
  plan.slices = int32_t((s.C + most - 1) / most);
  plan.channels = int32_t((s.C + plan.slices - 1) / plan.slices);
  const int64_t blocks = s.B * plan.slices;
  const int64_t warps = kTileThreads / kWarp, useful = (s.K / s.B + warps - 1) / warps;
  plan.shares = int32_t(maximum(int64_t(1), minimum(int64_t(multiprocessors()) / blocks, useful)));
  plan.bytes = size_t(plane * plan.channels);
  return plan;
}

// All bins of one RoI for the slice's channels c0 ... c0 + channels - 1. The whole warp.
template <class T, bool kArgmax>
__device__ __forceinline__ void pool_roi(const PoolShape& s, const T* tile, int32_t c0, int32_t channels, int64_t k,
                                         const Compute<T>* roi, Compute<T> scale, T* output, int32_t* argmax) {
  using U = Compute<T>;
  const RoiBins<U> bins(s, roi, scale);
  const bool packed = kArgmax && packs(bins, s);
  const int32_t size = s.P * s.Q, plane = s.H * s.W;
  T* const to = output + (k * s.C + c0) * size;
  int32_t* const part = kArgmax ? part_of(argmax, s, k) : nullptr;
  if (packed && c0 == 0 && lane_id() == 0) *mark_of(part, s) = kPackedPart;
  for (int32_t bin = lane_id(); bin < size; bin += kWarp) {
    const BinCells cells(bins, bin / s.Q, bin % s.Q);
    for (int32_t c = 0; c < channels; c += kTogether) {
      const T* const from = tile + c * plane;
      const int32_t last = channels - 1 - c;  // beyond it: computed, not stored
      U best[kTogether];
      int32_t order[kTogether];
      find_maxima(
          cells, [&](int32_t y, int32_t x, int j) { return load(from + minimum(j, last) * plane + y * s.W + x); }, best,
          order);
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        if (j > last) continue;
        store(to + (c + j) * size + bin, best[j]);
        if (kArgmax) keep_argmax(part, int64_t(c0 + c + j) * size + bin, packed, order[j], cells, s.W);
      }
    }
  }
}

template <class T, bool kArgmax>
__global__ void __launch_bounds__(kTileThreads, 1)
    pool_tile_kernel(PoolShape s, TilePlan plan, int32_t K, const T* __restrict__ input,
                     const Compute<T>* __restrict__ rois, Compute<T> scale, T* __restrict__ output,
                     int32_t* __restrict__ argmax) {
  FF_DYN_SHARED(T, tile);
  FF_SHARED(int32_t, claimed, );
  const int32_t share = int32_t(blockIdx.x % unsigned(plan.shares));
  const int32_t slice = int32_t(blockIdx.x / unsigned(plan.shares) % unsigned(plan.slices));
  const int64_t image = int64_t(blockIdx.x / unsigned(plan.shares) / unsigned(plan.slices));
  const int32_t c0 = slice * plan.channels;
  const int32_t channels = FF_MUTANT(roi_tile_rest, minimum(plan.channels, int32_t(s.C) - c0), plan.channels);

  const T* const map = input + (image * s.C + c0) * s.H * s.W;
#pragma unroll 8
  for (int32_t i = int32_t(threadIdx.x); i < channels * s.H * s.W; i += kTileThreads) tile[i] = map[i];
  if (threadIdx.x == 0) claimed = 0;
  __syncthreads();  // the tile is whole

  // Which of the image's RoIs, counted in order, this warp takes next.
  const auto claim = [&] {
    int32_t mine = 0;
    if (lane_id() == 0) mine = atomicAdd(&claimed, 1);
    return share + plan.shares * __shfl_sync(kFullMask, mine, 0);
  };
  int32_t wanted = claim(), seen = 0;
  for (int32_t base = 0; base < K; base += kWarp) {
    const int32_t candidate = base + lane_id();
    // RoIs of no image are empty; the first image's blocks write them.
    const int64_t of = candidate < K ? roi_image(rois + int64_t(candidate) * kRoiFields, s.B) : -1;
    const bool mine = FF_MUTANT(roi_tile_empty, of < 0 ? image == 0 : of == image, of == image);
    const bool here = candidate < K && mine;
    const unsigned all = __ballot_sync(kFullMask, here);
    const int32_t rank = seen + __popc(all & lanes_below());
    for (seen += __popc(all); wanted < seen; wanted = claim()) {
      const unsigned found = __ballot_sync(kFullMask, here && rank == wanted);
      const int64_t k = base + __ffs(int(found)) - 1;
      pool_roi<T, kArgmax>(s, tile, c0, channels, k, rois + k * kRoiFields, scale, output, argmax);
    }
  }
}

}  // namespace frcnn_fast
