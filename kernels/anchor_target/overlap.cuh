// The best overlap of one box a thread with the objects of its image, staged through shared memory.
#pragma once
#include "../common/launch.cuh"
#include "anchor_target.h"

namespace frcnn_fast::anchor_target {

constexpr int kThreads = 256;  // of every block here
constexpr int kWarps = kThreads / kWarp;

template <class U>
struct DeviceGroundTruth {
  const U* boxes;         // [B, G, 4]
  const int64_t* counts;  // [B]
  const bool* crowd;      // [B, G] or null
  int32_t G;

  // A count that cannot be is none.
  __device__ __forceinline__ int32_t count(int64_t image) const {
    const int64_t n = counts[image];
    return n < 0 || n > G ? 0 : int32_t(n);
  }
  __device__ __forceinline__ Box<U> box(int64_t image, int32_t g) const {
    return load_box(boxes + (image * G + g) * 4);
  }
  __device__ __forceinline__ bool is_crowd(int64_t image, int32_t g) const { return crowd && crowd[image * G + g]; }
};
template <class U>
DeviceGroundTruth<U> device_ground_truth(const GroundTruth& gt) {
  return {static_cast<const U*>(gt.boxes), gt.counts, gt.crowd, int32_t(gt.G)};
}

// Up to kThreads objects, in the order of their index, in shared memory.
template <class U>
struct Tile {
  Box<U> box[kThreads];
  U area[kThreads];
  OverlapBits<U> peak[kThreads];
  int32_t index[kThreads];
  int scratch[kWarps];
};

// Fills the tile with those of the boxes first, first + 1... that take part (or are crowd boxes); returns how many.
// The barriers of the count part it from the last use of the tile; the last one shows it to the block.
template <bool kLegacy, class U>
__device__ __forceinline__ int fill_tile(Tile<U>& tile, const DeviceGroundTruth<U>& gt, int64_t image, int32_t first,
                                         bool crowd) {
  const int32_t g = first + int32_t(threadIdx.x), count = gt.count(image);
  const Box<U> box = g < count ? gt.box(image, g) : Box<U>{};
  const bool taken = exists(box, g, count) && gt.is_crowd(image, g) == crowd;
  int total;
  const int place = block_exclusive_count(taken, tile.scratch, &total);
  if (taken) {
    tile.box[place] = box;
    tile.area[place] = area<kLegacy>(box);
    tile.peak[place] = 0;
    tile.index[place] = g;
  }
  __syncthreads();
  return total;
}

// The smallest box around those of the warp that take part; what takes no part begins at +inf and ends at -inf.
template <class U>
__device__ __forceinline__ Box<U> warp_hull(const Box<U>& box, bool takes_part) {
  const U infinity = U(INFINITY);
  const Box<U> mine = takes_part ? box : Box<U>{infinity, infinity, -infinity, -infinity};
  return {warp_reduce(mine.x1, Smaller()), warp_reduce(mine.y1, Smaller()), warp_reduce(mine.x2, Larger()),
          warp_reduce(mine.y2, Larger())};
}

template <class U>
struct Match {
  U best;          // highest overlap
  int32_t object;  // the first object that has it; -1 where it is 0
  bool takes_part, any_object;
};

// Every thread of the block calls, also where its box takes no part. coverable: crowd boxes may exclude the box. With
// kPeaks, raises the block's own peaks, of object g at peaks[g * stride], to the highest overlap with each object. A
// warp looks only at objects that meet the hull of its boxes (neighbours in a grid), tested a lane an object.
template <bool kLegacy, bool kPeaks, class U>
__device__ __forceinline__ Match<U> match_objects(Tile<U>& tile, const DeviceGroundTruth<U>& gt, int64_t image,
                                                  const Box<U>& box, bool takes_part, bool coverable, U crowd_overlap,
                                                  OverlapBits<U>* peaks, int64_t stride) {
  const U box_area = area<kLegacy>(box);
  const int32_t count = gt.count(image);
  for (int32_t first = 0; gt.crowd && first < count; first += kThreads) {
    const int crowds = fill_tile<kLegacy>(tile, gt, image, first, true);
    for (int c = 0; c < crowds; ++c)
      if (coverable && is_covered(intersection<kLegacy>(box, tile.box[c]), box_area, crowd_overlap)) takes_part = false;
  }

  const Box<U> hull = warp_hull(box, takes_part);
  Match<U> match = {U(0), -1, takes_part, false};
  for (int32_t first = 0; first < count; first += kThreads) {
    const int objects = fill_tile<kLegacy>(tile, gt, image, first, false);
    match.any_object |= objects > 0;
    for (int chunk = 0; chunk < objects; chunk += kWarp) {
      const int mine = chunk + lane_id();
      const bool near = mine < objects && meets<kLegacy>(hull, tile.box[mine]);
      for (unsigned bits = __ballot_sync(kFullMask, near); bits; bits &= bits - 1) {
        const int o = chunk + __ffs(int(bits)) - 1;
        const U overlap = takes_part ? overlap_of<kLegacy>(box, box_area, tile.box[o], tile.area[o]) : U(0);
        if (is_better(overlap, match.best)) {
          match.best = overlap;
          match.object = tile.index[o];
        }
        if (!kPeaks) continue;
        const OverlapBits<U> highest = warp_maximum(overlap_bits(overlap));
        if (highest && lane_id() == 0) atomicMax(&tile.peak[o], highest);
      }
    }
    if (!kPeaks) continue;
    __syncthreads();  // the block's peaks are complete
    const int mine = int(threadIdx.x);
    if (mine >= objects) continue;
    OverlapBits<U>& peak = peaks[tile.index[mine] * stride];
    peak = maximum(peak, tile.peak[mine]);
  }
  return match;
}

}  // namespace frcnn_fast::anchor_target
