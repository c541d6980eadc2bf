// What RoIPool's CUDA kernels share: a RoI's bins, the running maxima of one bin, and how argmaxes are kept.
//
// The argmax tensor gives every RoI a part of n = C * PH * PW int32. Plain, they are places in the map, h * W + w, or
// -1. Where none of the RoI's bins has more than 255 cells, the part is packed: byte i is the place of number i's
// maximum within its bin, in row-major order, or 255 for none, and the part's last int32 is kPackedPart, which no plain
// part ends with. A quarter of the bytes is then written, and read by the backward pass. How large a bin may be is no
// matter of the map's size alone (a box far larger than the image has bins as large as the map), so each RoI decides
// for itself, on the device, from its exact bins; the tensor has room for either, and says which it holds.
#pragma once
#include "../common/launch.cuh"
#include "roi_pool.h"

namespace frcnn_fast::roi_pool {

struct PoolShape {
  int64_t B, C;
  int32_t H, W, PH, PW;
  bool rounded;
  CellStrides map, out;
};

inline PoolShape device_shape(const RoiPoolShape& s) {
  return {s.B,
          s.C,
          int32_t(s.H),
          int32_t(s.W),
          int32_t(s.PH),
          int32_t(s.PW),
          s.rounded,
          cell_strides(s.C, s.H * s.W, s.channels_last),
          cell_strides(s.C, s.PH * s.PW, s.channels_last)};
}

constexpr int32_t kPackedPart = INT32_MIN;
constexpr int32_t kMaxPackedCells = 255;

template <class U>
struct RoiBins {
  BinAxis<U> rows, columns;
  bool present;  // else all bins are empty

  __device__ __forceinline__ RoiBins(const PoolShape& s, const U* roi, U scale) {
    present = roi_image(roi, s.B) >= 0;
    present = make_bins(roi[2], roi[4], scale, s.rounded, int64_t(s.PH), int64_t(s.H), &rows) && present;
    present = make_bins(roi[1], roi[3], scale, s.rounded, int64_t(s.PW), int64_t(s.W), &columns) && present;
  }
};

template <class U>
__device__ __forceinline__ int32_t longest_bin(const BinAxis<U>& axis, int32_t bins) {
  int32_t longest = 0;
  for (int32_t bin = lane_id(); bin < bins; bin += kWarp) longest = maximum(longest, axis.end(bin) - axis.begin(bin));
  return int32_t(warp_maximum(unsigned(longest)));
}

// Whether a RoI's part is packed. The whole warp, for one RoI. (One number leaves no room for the mark.)
template <class U>
__device__ __forceinline__ bool packs(const RoiBins<U>& bins, const PoolShape& s) {
  const int64_t cells = int64_t(longest_bin(bins.rows, s.PH)) * longest_bin(bins.columns, s.PW);
  const bool small = !bins.present || cells <= FF_MUTANT(roi_packed_cells, kMaxPackedCells, kMaxPackedCells + 1);
  return small && s.C * s.PH * s.PW > FF_MUTANT(roi_packed_room, 1, 0);
}

// RoI k's part of an argmax tensor (Int32: int32_t or const int32_t), and the place of its mark.
template <class Int32>
__device__ __forceinline__ Int32* part_of(Int32* argmax, const PoolShape& s, int64_t k) {
  return argmax + k * s.C * s.PH * s.PW;
}
template <class Int32>
__device__ __forceinline__ Int32* mark_of(Int32* part, const PoolShape& s) {
  return part + s.C * s.PH * s.PW - 1;
}

// Where a bin begins and ends along one axis: begin | end << 16.
template <class U>
__device__ __forceinline__ uint32_t edges(const BinAxis<U>& axis, int32_t bin) {
  return uint32_t(axis.begin(bin)) | uint32_t(axis.end(bin)) << 16;
}

// One bin's cells.
struct BinCells {
  int32_t top, bottom, left, right;

  template <class U>
  __device__ __forceinline__ BinCells(const RoiBins<U>& bins, int32_t p, int32_t q)
      : top(bins.rows.begin(p)), bottom(bins.rows.end(p)), left(bins.columns.begin(q)), right(bins.columns.end(q)) {
    if (!bins.present) bottom = top;
  }
  // From edges(), for maps of less than 65536 cells a side.
  __device__ __forceinline__ BinCells(uint32_t rows, uint32_t columns)
      : top(int32_t(rows & 0xffffu)),
        bottom(int32_t(rows >> 16)),
        left(int32_t(columns & 0xffffu)),
        right(int32_t(columns >> 16)) {}
  __device__ __forceinline__ bool empty() const { return top >= bottom || left >= right; }
  // The map's cell that is number `order` in the bin.
  __device__ __forceinline__ int32_t place(int32_t order, int32_t W) const {
    if (order < 0) return -1;
    const int32_t width = right - left, y = order / width;
    return FF_MUTANT(roi_plain_place, (top + y) * W, top * W + y) + left + (order - y * width);
  }
};

// Number i of a RoI's part: the maximum is cell `order` of the bin, -1: there is none.
__device__ __forceinline__ void keep_argmax(int32_t* part, int64_t i, bool packed, int32_t order, const BinCells& cells,
                                            int32_t W) {
  if (packed)
    reinterpret_cast<uint8_t*>(part)[i] = uint8_t(order);  // -1: 255
  else
    part[i] = cells.place(order, W);
}

// A bin's maxima in n channels: best[j] and its number within the bin. values(y, x, found) reads a cell's n channels.
// An empty bin: 0, -1.
template <int n, class U, class Values>
__device__ __forceinline__ void find_maxima(const BinCells& cells, const Values& values, U (&best)[n],
                                            int32_t (&order)[n]) {
#pragma unroll
  for (int j = 0; j < n; ++j) best[j] = U(-INFINITY), order[j] = -1;
  int32_t here = 0;
  for (int32_t y = cells.top; y < cells.bottom; ++y)
    for (int32_t x = cells.left; x < cells.right; ++x, ++here) {
      U found[n];
      values(y, x, found);
#pragma unroll
      for (int j = 0; j < n; ++j) {
        if (!FF_MUTANT(roi_first_max, found[j] > best[j], found[j] >= best[j])) continue;
        best[j] = found[j];
        order[j] = here;
      }
    }
  bool unset = false;
#pragma unroll
  for (int j = 0; j < n; ++j) unset |= order[j] < 0;
  if (!unset) return;
  // Nothing is above -inf, which is a value like any other; NaN is none. Apart, because it is rare: the loop above
  // then has one comparison a cell.
  here = 0;
  for (int32_t y = cells.top; y < cells.bottom; ++y)
    for (int32_t x = cells.left; x < cells.right; ++x, ++here) {
      U found[n];
      values(y, x, found);
#pragma unroll
      for (int j = 0; j < n; ++j)
        if (order[j] < 0 && FF_MUTANT(roi_minus_inf, found[j] == found[j], false)) order[j] = here;
    }
#pragma unroll
  for (int j = 0; j < n; ++j)
    if (order[j] < 0) best[j] = cells.empty() ? U(0) : FF_MUTANT(roi_all_nan, U(NAN), best[j]);
}

}  // namespace frcnn_fast::roi_pool
