// RoIAlign with the largest of a bin's samples in the place of their mean (the pool_mode "max" of mmcv), over one map.
//
// The samples lie where roi_align.h says, in row-major order of their indices; the index ascends also where a negative
// length lets the positions descend. In the compute type, every operation rounded by itself, t and l the fractions of a
// sample's row and column: value = (((1 - t) * (1 - l)) * upper left + ((1 - t) * l) * upper right) + (t * (1 - l)) *
// lower left) + (t * l) * lower right; 0 where the sample lies outside [-1, limit] along either axis. The output is the
// largest value that is not NaN, argmax the position of its sample in cells, the first among equals. A bin without
// samples gives 0, one of NaN alone NaN, both with an argmax of NaN.
//
// Backward: grad[cell] = the sum, in ascending order of RoI, then bin, over the argmaxes that the cell is beside of
// (row weight * column weight) * gradient, starting from 0: the same bits on every backend.
#pragma once
#include "roi_align.h"

namespace frcnn_fast::roi_pool {

struct IndexRange {
  int32_t begin, end;
  FF_HD bool empty() const { return begin >= end; }
};

// The indices of a bin's samples that are on the map, along one axis. None: an empty range that begins at 0.
template <class U>
FF_HD IndexRange on_map(const SampleAxis<U>& axis, int32_t bin) {
  const int32_t first = axis.first(bin);
  int32_t begin = first, end = axis.count;
  while (begin < end) {  // positions do not descend
    const int32_t middle = begin + (end - begin) / 2;
    if (axis.position(bin, middle) <= U(axis.limit))
      begin = middle + 1;
    else
      end = middle;
  }
  if (begin <= first) return {0, 0};
  if (axis.size < U(0)) return {axis.count - begin, axis.count - first};
  return {first, begin};
}

// What is known of a bin in one channel: the largest value so far, and the indices of its sample; y < 0: none yet.
template <class U>
struct LargestSample {
  U value;
  int32_t y, x;
};

// The samples of one bin. Those outside the map are worth 0 without being looked at: the first of them stands for all.
template <class U>
struct SampleGrid {
  IndexRange y, x;
  int32_t outside_y, outside_x;  // the first sample that is outside; outside_y < 0: none is
  bool any;                      // samples

  FF_HD SampleGrid(const SampleAxis<U>& rows, int32_t p, const SampleAxis<U>& columns, int32_t q)
      : y(on_map(rows, p)), x(on_map(columns, q)), any(rows.count > 0 && columns.count > 0) {
    outside_y = outside_x = 0;
    if (y.empty() || x.empty() || y.begin > 0 || x.begin > 0) return;
    if (x.end < columns.count)
      outside_x = FF_MUTANT(align_max_outside, x.end, 0);
    else
      outside_y = y.end < rows.count ? y.end : -1;
  }

  // The largest of all samples, from the largest of those on the map.
  FF_HD LargestSample<U> with_outside(LargestSample<U> found) const {
    if (!any) return {U(0), -1, -1};
    if (outside_y >= 0) {
      const bool first = outside_y < found.y || (outside_y == found.y && outside_x < found.x);
      if (found.y < 0 || found.value < U(0) || (found.value == U(0) && FF_MUTANT(align_max_order, first, true)))
        return {U(0), outside_y, outside_x};
    }
    if (found.y < 0) found.value = U(NAN);
    return found;
  }
};

// Where sample `index` lies, index < 0: nowhere.
template <class U>
FF_HD U sample_place(const SampleAxis<U>& axis, int32_t bin, int32_t index) {
  return index < 0 ? U(NAN) : axis.place(bin, index);
}

// The part of a sample at x that belongs to the cell; false where it is not beside it.
template <class U>
FF_HD bool share_of_cell(U x, int32_t cell, int32_t limit, U* share) {
  Sample<U> sample;
  if (below_map(x) || !sample_at(x, limit, &sample)) return false;
  if (cell != sample.low && cell != sample.high) return false;
  *share = cell == sample.low ? U(1) - sample.fraction : sample.fraction;
  return true;
}

// shape: of one level. input [B, C, H, W]; rois [R, 5] in the compute type. Outputs in the input's layout: output [R,
// C, PH, PW]; argmax_y and argmax_x the same in the compute type, or null.
size_t roi_align_max_workspace_cpu(DType dtype, const RoiAlignShape& shape);
Status roi_align_max_cpu(DType dtype, const RoiAlignShape& shape, const void* input, const void* rois, void* workspace,
                         void* output, void* argmax_y, void* argmax_x);
Status roi_align_max_cuda(DType dtype, const RoiAlignShape& shape, const void* input, const void* rois, void* output,
                          void* argmax_y, void* argmax_x, Stream stream);

// grad_output [R, C, PH, PW] as output_channels_last says, argmax_y, argmax_x and grad_input in the level's layout.
size_t roi_align_max_backward_workspace_cpu(DType dtype, const RoiAlignShape& shape);
Status roi_align_max_backward_cpu(DType dtype, const RoiAlignShape& shape, const void* grad_output,
                                  const void* argmax_y, const void* argmax_x, const void* rois, void* workspace,
                                  void* grad_input);
size_t roi_align_max_backward_workspace_cuda(DType dtype, const RoiAlignShape& shape);
Status roi_align_max_backward_cuda(DType dtype, const RoiAlignShape& shape, const void* grad_output,
                                   const void* argmax_y, const void* argmax_x, const void* rois, void* workspace,
                                   void* grad_input, Stream stream);

}  // namespace frcnn_fast::roi_pool
