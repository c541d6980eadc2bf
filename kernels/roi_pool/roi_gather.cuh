// What RoIPool's and RoIAlign's CUDA kernels share: who works on which numbers, and the backward pass as a gather.
//
// Backward, every cell of the map sums up what it is owed by the RoIs of its image, in ascending order of RoI, then
// bin: no atomics, one order, the CPU's bits. Two launches: one writes for each RoI the cells it touches and for each
// of its rows and columns the bins that lie there, and for each image (of each level) the list of its RoIs; the other
// gathers.
#pragma once
#include "../common/launch.cuh"
#include "../common/workspace.h"
#include "roi.h"

namespace frcnn_fast::roi_pool {

// Output numbers as work: with channels last a warp has one bin and 128 channels, lane by lane, so that it reads and
// writes whole lines; else a thread has one bin and 4 channels, and the threads of a warp neighbouring bins.
template <bool kLast>
struct BinWork {
  static constexpr int kChannels = 4, kThreads = 256;

  int64_t roi;
  int32_t bin, channel0;
  bool any;

  // Blocks for one RoI.
  static int64_t blocks(int64_t C, int64_t bins) {
    const int64_t each = kLast ? kThreads / kWarp : kThreads, group = kLast ? kChannels * kWarp : kChannels;
    return ((C + group - 1) / group * bins + each - 1) / each;
  }
  __device__ BinWork(int32_t blocks_per_roi, int32_t C, int32_t bins) {
    const int32_t block = int32_t(blockIdx.x % unsigned(blocks_per_roi));
    roi = int64_t(blockIdx.x / unsigned(blocks_per_roi));
    const int32_t item = kLast ? block * warps_per_block() + warp_id() : block * kThreads + int32_t(threadIdx.x);
    bin = item % bins;
    channel0 = kLast ? item / bins * (kChannels * kWarp) + lane_id() : item / bins * kChannels;
    any = channel0 < C;
  }
  __device__ int32_t channel(int j) const { return channel0 + (kLast ? j * kWarp : j); }
  // The same within the map: what is read beyond the last channel is not stored.
  __device__ int32_t channel_in(int j, int64_t C) const { return minimum(channel(j), int32_t(C) - 1); }
};

// Which bins lie at one row or column of the map: first | last << 16.
constexpr uint32_t kNoBins = 0xffffu;  // first > last
constexpr int64_t kMaxBins = 0xffff;

struct RoiTables {
  int32_t* windows;       // [R, 4] rows y0 ... y1 - 1, columns x0 ... x1 - 1 that the RoI touches
  uint32_t* row_bins;     // [R, H], written for the rows of the window
  uint32_t* column_bins;  // [R, W]
  int32_t* members;       // [groups, R] the RoIs of an image (of a level), ascending
  int32_t* counts;        // [groups]
  int64_t R;
  int32_t H, W;  // of the largest level

  static RoiTables take(WorkspaceArena& arena, int64_t groups, int64_t R, int64_t H, int64_t W) {
    RoiTables tables{};
    tables.windows = arena.take<int32_t>(4 * R);
    tables.row_bins = arena.take<uint32_t>(R * H);
    tables.column_bins = arena.take<uint32_t>(R * W);
    tables.members = arena.take<int32_t>(groups * R);
    tables.counts = arena.take<int32_t>(groups);
    tables.R = R;
    tables.H = int32_t(H);
    tables.W = int32_t(W);
    return tables;
  }
};

// Writes one group's list; group_of(roi) gives a RoI's group. The whole block.
template <class U, class GroupOf>
__device__ __forceinline__ void list_members(const U* rois, int64_t group, const GroupOf& group_of,
                                             const RoiTables& tables) {
  FF_SHARED(int, scratch, [32]);
  int32_t* members = tables.members + group * tables.R;
  int count = 0;
  for (int64_t base = 0; base < tables.R; base += blockDim.x) {
    const int64_t k = base + threadIdx.x;
    const bool mine = k < tables.R && group_of(rois + k * kRoiFields) == group;
    int found = 0;
    const int before = block_exclusive_count(mine, scratch, &found);
    if (mine) members[count + before] = int32_t(k);
    count += found;
  }
  if (threadIdx.x == 0) tables.counts[group] = count;
}

struct GatherShape {
  int64_t C;
  int32_t H, W, PH, PW;
  int64_t group0;   // of the level's first image
  CellStrides map;  // of the gradient to write
  int32_t warps_per_image, cell_groups, blocks_per_image;
};

// kLast: a warp has one cell and 128 channels, lane by lane; else 32 neighbouring cells and 8 channels. Each lane tests
// one RoI of the list at a time against the warp's cells; the warp then visits those that touch, in order.
// source.add(roi, y, x, cell, channel0, step, acc): adds what that RoI owes the cell, to channels channel0 + j * step.
template <bool kLast>
struct GatherWork {
  static constexpr int kChannels = kLast ? 4 : 8, kThreads = 256;

  static Status plan(GatherShape* g) {
    const int64_t cells = int64_t(g->H) * g->W, group = kLast ? kChannels * kWarp : kChannels;
    const int64_t cell_groups = kLast ? cells : (cells + kWarp - 1) / kWarp;
    const int64_t warps = (g->C + group - 1) / group * cell_groups;
    if (warps > INT32_MAX) return invalid("input: a map of %lld cells is too large", (long long)cells);
    g->cell_groups = int32_t(cell_groups);
    g->warps_per_image = int32_t(warps);
    g->blocks_per_image = int32_t(blocks_for(warps, kThreads / kWarp));
    return kOk;
  }
};

template <class T, bool kLast, class Source>
__global__ void __launch_bounds__(256, 2)  // registers for the loads of all channels at once
    gather_kernel(GatherShape g, RoiTables tables, Source source, T* grad_input) {
  using U = Compute<T>;
  constexpr int n = GatherWork<kLast>::kChannels;
  const int64_t image = blockIdx.x / unsigned(g.blocks_per_image);
  const int32_t block = int32_t(blockIdx.x % unsigned(g.blocks_per_image));
  const int32_t warp = block * warps_per_block() + warp_id();
  if (warp >= g.warps_per_image) return;  // the whole warp
  const int32_t cells = g.H * g.W, group = warp % g.cell_groups, chunk = warp / g.cell_groups;
  const int32_t first = kLast ? group : group * kWarp, last = kLast ? first : minimum(first + kWarp, cells) - 1;
  const int32_t cell = kLast ? first : first + lane_id();
  const int32_t y = cell / g.W, x = cell % g.W;
  const int32_t top = first / g.W, bottom = last / g.W;
  const int32_t left = top == bottom ? first % g.W : 0, right = top == bottom ? last % g.W : g.W - 1;
  const int32_t channel0 = kLast ? chunk * (n * kWarp) + lane_id() : chunk * n, step = kLast ? kWarp : 1;

  U acc[n];
#pragma unroll
  for (int j = 0; j < n; ++j) acc[j] = U(0);
  const int32_t count = tables.counts[g.group0 + image];
  const int32_t* members = tables.members + (g.group0 + image) * tables.R;
  for (int32_t base = 0; base < count; base += kWarp) {
    const int32_t mine = base + lane_id() < count ? members[base + lane_id()] : -1;
    bool touches = false;
    if (mine >= 0) {
      const int32_t* window = tables.windows + 4 * int64_t(mine);
      touches = window[0] <= bottom && window[1] > top && window[2] <= right && window[3] > left;
    }
    for (unsigned hits = __ballot_sync(kFullMask, touches); hits; hits &= hits - 1) {
      const int64_t k = __shfl_sync(kFullMask, mine, __ffs(int(hits)) - 1);
      const int32_t* window = tables.windows + 4 * k;
      const bool inside = y >= window[0] && y < window[1] && x >= window[2] && x < window[3];
      if (inside && cell < cells) source.add(k, y, x, cell, channel0, step, acc);
    }
  }
  if (cell >= cells) return;
  T* target = grad_input + image * g.C * cells + cell * g.map.cell;
#pragma unroll
  for (int j = 0; j < n; ++j)
    if (channel0 + j * step < g.C) store(target + (channel0 + j * step) * g.map.channel, acc[j]);
}

template <class T, class Source>
Status gather(GatherShape g, bool channels_last, int64_t images, const RoiTables& tables, const Source& source,
              T* grad_input, Stream stream) {
  if (images == 0 || g.C == 0 || int64_t(g.H) * g.W == 0) return kOk;
  if (channels_last) {
    FF_TRY(GatherWork<true>::plan(&g));
    FF_LAUNCH((gather_kernel<T, true, Source>), dim3(unsigned(images * g.blocks_per_image)), dim3(256), 0, stream, g,
              tables, source, grad_input);
  } else {
    FF_TRY(GatherWork<false>::plan(&g));
    FF_LAUNCH((gather_kernel<T, false, Source>), dim3(unsigned(images * g.blocks_per_image)), dim3(256), 0, stream, g,
              tables, source, grad_input);
  }
  return launched();
}

}  // namespace frcnn_fast::roi_pool
