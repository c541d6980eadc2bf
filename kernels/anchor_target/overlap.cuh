// The best overlap of one box a thread with the objects of its image, staged through shared memory.
#pragma once
#include "../common/launch.cuh"
#include "anchor_target.h"

namespace frcnn_fast::anchor_target {

constexpr int kThreads = 256, kMostThreads = 512;  // of a block that labels: kThreads, or as many as its launch says
constexpr int kMostWarps = kMostThreads / kWarp;
constexpr int kTile = kThreads;  // objects in shared memory at a time

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

// The overlap of two finite boxes, as its bits are with overlap_of: what fmax and fmin make of a zero's sign does not
// show. A division of zero would be a slow one, so nothing is divided that has not met.
template <class U>
struct Overlap {
  U intersection, both;  // both: the union

  template <bool kLegacy>
  static __device__ __forceinline__ Overlap of(const Box<U>& a, U area_a, const Box<U>& b, U area_b) {
    const U w = fmax(U(0), extent<kLegacy>(fmax(a.x1, b.x1), fmin(a.x2, b.x2)));
    const U h = fmax(U(0), extent<kLegacy>(fmax(a.y1, b.y1), fmin(a.y2, b.y2)));
    return {w * h, (area_a + area_b) - w * h};
  }
  __device__ __forceinline__ U iou() const {
    const bool meets = intersection > U(0);
    const U quotient = fmax(U(0), (meets ? intersection : both) / both);  // 0 where it is inf/inf
    return meets ? quotient : U(0);
  }
};

// Up to kTile objects in shared memory.
template <class U>
struct Tile {
  Box<U> box[kTile];
  U area[kTile];
};

// Fills the tile with those of the boxes first, first + 1..., size in all, that take part (or are crowd boxes); in the
// place of others is NaN, which meets nothing. Returns whether there are any. The first barrier parts it from the last
// use of the tile; the second one shows it to the block.
template <bool kLegacy, class U>
__device__ __forceinline__ bool fill_tile(Tile<U>& tile, const DeviceGroundTruth<U>& gt, int64_t image, int32_t first,
                                          int32_t size, bool crowd) {
  const int32_t o = int32_t(threadIdx.x), g = first + o;
  Box<U> box = {U(NAN), U(NAN), U(NAN), U(NAN)};
  bool taken = false;
  if (o < size) {
    const Box<U> given = gt.box(image, g);
    taken = exists(given, o, size) && gt.is_crowd(image, g) == crowd;
    if (taken) box = given;
  }
  __syncthreads();
  if (o < size) {
    tile.box[o] = box;
    tile.area[o] = area<kLegacy>(box);
  }
  return __syncthreads_or(taken);
}

// In the place of a box that takes no part: it begins at +inf and ends at -inf, and meets nothing.
template <class U>
__device__ __forceinline__ Box<U> no_box() {
  return {U(INFINITY), U(INFINITY), -U(INFINITY), -U(INFINITY)};
}

// The smallest box around those of the warp.
template <class U>
__device__ __forceinline__ Box<U> warp_hull(const Box<U>& box) {
  return {warp_reduce(box.x1, Smaller()), warp_reduce(box.y1, Smaller()), warp_reduce(box.x2, Larger()),
          warp_reduce(box.y2, Larger())};
}

template <class U>
struct Match {
  U best;          // highest overlap
  int32_t object;  // the first object that has it; -1 where it is 0
};

// Whether a crowd box covers the thread's box. Every thread of the block calls.
template <bool kLegacy, class U>
__device__ __forceinline__ bool covered_by_crowd(Tile<U>& tile, const DeviceGroundTruth<U>& gt, int64_t image,
                                                 int32_t count, const Box<U>& box, U crowd_overlap) {
  const U box_area = area<kLegacy>(box);
  bool covered = false;
  for (int32_t first = 0; gt.crowd && first < count; first += kTile) {
    const int size = minimum(count - first, kTile);
    if (!fill_tile<kLegacy>(tile, gt, image, first, size, true)) continue;
    for (int c = 0; c < size; ++c)
      covered |= is_covered(intersection<kLegacy>(box, tile.box[c]), box_area, crowd_overlap);
  }
  return covered;
}

// Matches the thread's box, or no_box(), with the tile's objects, the image's from `number` on. Whole warps call: a
// warp looks only at objects that meet the hull of its boxes (neighbours in a grid), tested a lane an object, and at
// two of them at a time, so that one's latencies hide the other's. note_peak(o, peak): the highest overlap of the warp
// with the lane's object.
template <bool kLegacy, bool kPeaks, class U, class NotePeak>
__device__ __forceinline__ void match_tile(const Tile<U>& tile, int32_t number, int32_t size, const Box<U>& box,
                                           const Box<U>& hull, Match<U>& match, const NotePeak& note_peak) {
  const U box_area = box.x1 > box.x2 + U(1) ? U(0) : area<kLegacy>(box);  // not inf, which is slow to divide by
  for (int first = 0; first < size; first += kWarp) {
    const int mine = first + lane_id();
    const bool near = mine < size && meets<kLegacy>(hull, tile.box[mine]);
    OverlapBits<U> peak = 0;
    for (unsigned bits = __ballot_sync(kFullMask, near); bits;) {
      int lanes[2];
      Overlap<U> overlaps[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        lanes[k] = bits ? __ffs(int(bits)) - 1 : lanes[0];
        bits &= bits - 1;
        const int o = first + lanes[k];
        overlaps[k] = Overlap<U>::template of<kLegacy>(box, box_area, tile.box[o], tile.area[o]);
      }
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const U iou = overlaps[k].iou();
        if (is_better(iou, match.best)) {
          match.best = iou;
          match.object = number + first + lanes[k];
        }
        if (!kPeaks) continue;
        const OverlapBits<U> highest = warp_maximum(overlap_bits(iou));
        if (lanes[k] == lane_id()) peak = highest;
      }
    }
    if (kPeaks && mine < size) note_peak(mine, peak);
  }
}

}  // namespace frcnn_fast::anchor_target
