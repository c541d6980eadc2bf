// What RoIPool's CUDA kernels share: a RoI's bins, the running maxima of one bin, and how argmaxes are kept.
//
// The argmax tensor gives every RoI a part of C * PH * PW int32. Plain, they are places in the map, h * W + w, or -1.
// Where none of the RoI's bins has more than 15 rows or 16 columns of cells, the part is packed: a byte a number, the
// maximum's row within its bin times 16 plus its column, or 255 for none, and the part's last int32 is kPackedPart,
// which no plain part ends with. Four channels of a bin are one word, so that a thread that has found them stores them
// at once; the words lie as the output does, [C / 4][bins] or [bins][C / 4]. A quarter of the bytes is then written,
// and read by the backward pass, and no place has to be divided. How large a bin may be is no matter of the map's size
// alone (a box far larger than the image has bins as large as the map), so each RoI decides for itself, on the device,
// from its exact bins; the tensor has room for either, and says which it holds.
#pragma once
#include "../common/launch.cuh"
#include "roi_pool.h"

namespace frcnn_fast::roi_pool {

// n / by for n below 2^16, by 1 ... 2^16: two instructions where a division takes twenty.
struct Divisor {
  int32_t by;
  uint32_t reciprocal;

  FF_HD static Divisor of(int32_t by) {
    return {by, by > 1 ? 0xffffffffu / uint32_t(by) + FF_MUTANT(roi_reciprocal, 1, 0) : 0};
  }
  __device__ __forceinline__ int32_t divide(int32_t n) const {
    return by > 1 ? int32_t(__umulhi(unsigned(n), reciprocal)) : n;
  }
};

constexpr int kQuad = 4;  // channels of a word of a packed part
FF_HD int64_t quads_of(int64_t channels) { return (channels + kQuad - 1) / kQuad; }

struct PoolShape {
  int64_t B, C;
  int32_t H, W, PH, PW;
  bool rounded;
  CellStrides map, out;
  CellStrides packed;  // of the words of a packed part: from one quad of channels, and from one bin, to the next
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
          cell_strides(s.C, s.PH * s.PW, s.channels_last),
          cell_strides(quads_of(s.C), s.PH * s.PW, s.channels_last)};
}

constexpr int32_t kPackedPart = INT32_MIN;
constexpr int32_t kPackedRows = 15, kPackedColumns = 16;  // of a bin; a 16th row would have the number of none
constexpr uint32_t kNoOrder = 255;

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

// The same in a list in shared memory.
template <class U>
struct Member {
  int64_t roi;
  bool present;
  bool packed;  // its part of argmax
  U row_start, row_size, column_start, column_size;

  Member() = default;
  __device__ __forceinline__ Member(int64_t k, const RoiBins<U>& bins)
      : roi(k),
        present(bins.present),
        packed(false),
        row_start(bins.rows.start),
        row_size(bins.rows.size),
        column_start(bins.columns.start),
        column_size(bins.columns.size) {}
  __device__ __forceinline__ BinAxis<U> rows(const PoolShape& s) const { return {row_start, row_size, s.H, s.rounded}; }
  __device__ __forceinline__ BinAxis<U> columns(const PoolShape& s) const {
    return {column_start, column_size, s.W, s.rounded};
  }
};

template <class U>
__device__ __forceinline__ int32_t longest_bin(const BinAxis<U>& axis, int32_t bins) {
  int32_t longest = 0;
  for (int32_t bin = lane_id(); bin < bins; bin += kWarp) longest = maximum(longest, axis.end(bin) - axis.begin(bin));
  return int32_t(warp_maximum(unsigned(longest)));
}

// Whether a RoI's part is packed, by its bins' longest sides. (One channel leaves no room for the mark.)
__device__ __forceinline__ bool packs(const PoolShape& s, bool present, int32_t rows, int32_t columns) {
  const bool low = rows <= FF_MUTANT(roi_packed_rows, kPackedRows, kPackedRows + 1);
  const bool narrow = columns <= FF_MUTANT(roi_packed_columns, kPackedColumns, kPackedColumns + 1);
  return (!present || (low && narrow)) && s.C > FF_MUTANT(roi_packed_room, 1, 0);
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

// A number's byte in a packed part (Byte: uint8_t or const uint8_t).
template <class Byte>
__device__ __forceinline__ Byte* packed_order(Byte* part, const PoolShape& s, int32_t c, int32_t bin) {
  return part + kQuad * (c / kQuad * s.packed.channel + bin * s.packed.cell) + c % kQuad;
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
};

// How a bin's cells are numbered: as a packed or as a plain part has them.
struct CellNumbers {
  int32_t first, row_step;  // the first cell's; from one row to the next

  __device__ __forceinline__ CellNumbers(const BinCells& cells, bool packed, int32_t W)
      : first(packed ? 0 : FF_MUTANT(roi_plain_place, cells.top * W, cells.top) + cells.left),
        row_step(packed ? kPackedColumns : W) {}
};

// Four channels of a bin as a word of a packed part; -1: none, 255.
__device__ __forceinline__ uint32_t packed_word(const int32_t (&order)[kQuad]) {
  uint32_t word = 0;
#pragma unroll
  for (int j = 0; j < kQuad; ++j) word |= (uint32_t(order[j]) & 0xffu) << 8 * j;
  return word;
}

// A bin's maxima in n channels: best[j] and its number. values(y, x, found) reads a cell's n channels. An empty bin: 0,
// -1.
template <int n, class U, class Values>
__device__ __forceinline__ void find_maxima(const BinCells& cells, const CellNumbers& numbers, const Values& values,
                                            U (&best)[n], int32_t (&order)[n]) {
#pragma unroll
  for (int j = 0; j < n; ++j) best[j] = U(-INFINITY), order[j] = -1;
  const int32_t gap = numbers.row_step - (cells.right - cells.left);  // from one row's end to the next one's start
  int32_t here = numbers.first;
  for (int32_t y = cells.top; y < cells.bottom; ++y, here += gap)
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
  here = numbers.first;
  for (int32_t y = cells.top; y < cells.bottom; ++y, here += gap)
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
