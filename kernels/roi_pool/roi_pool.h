// RoIPool (Girshick, Fast R-CNN, 2015, section 2.1) with the rounding of Caffe and torchvision, or with mmcv's.
//
// Along each axis, in the compute type, every operation rounded by itself: start = round(low * scale), end =
// round(high * scale) (halves away from zero), size = max((end - start) + 1, 1) / bins; bin p is the cells from
// floor(p * size) + start to ceil((p + 1) * size) + start (exclusive), clamped to the map. Not rounded (mmcv): start =
// low * scale, size = ((high + 1) * scale - start) / bins, bin p from floor(p * size + start) to ceil((p + 1) * size +
// start); a RoI whose size is not positive along both axes has empty bins only. The output is the largest cell that is
// not NaN, argmax its place h * W + w, the first in row-major order among equals. An empty bin gives 0 and -1, a bin of
// NaN alone gives NaN and -1.
//
// Backward: grad[cell] = the sum of the gradients whose argmax is the cell, in ascending order of RoI, then bin, in the
// compute type, starting from 0: the same bits on every backend.
#pragma once
#include "roi.h"

namespace frcnn_fast::roi_pool {

struct RoiPoolShape {
  int64_t B, C, H, W;  // the map
  int64_t R;           // RoIs
  int64_t PH, PW;      // bins: rows and columns
  bool rounded;        // corners are
  bool channels_last;  // the map, and the output like it: [R, C, PH, PW] stored as [R, PH, PW, C]
};

template <class U>
FF_HD U round_half_away(U x) {
  const U whole = trunc_(x), distance = x - whole;
  if (distance >= U(0.5)) return whole + U(1);
  return FF_MUTANT(roi_round, distance <= U(-0.5), distance < U(-0.5)) ? whole - U(1) : whole;
}

// The bins along one axis of one RoI.
template <class U>
struct BinAxis {
  U start, size;
  int32_t limit;
  bool rounded;

  FF_HD int32_t clamped(U edge) const {
    return edge > U(0) ? (edge < U(limit) ? int32_t(edge) : limit) : 0;  // NaN: 0
  }
  FF_HD int32_t begin(int32_t bin) const {
    const U edge = U(bin) * size;
    return clamped(rounded ? floor_(edge) + start : floor_(edge + start));
  }
  FF_HD int32_t end(int32_t bin) const {
    const U edge = U(bin + 1) * size;
    if (!rounded) return clamped(FF_MUTANT(roi_plain_end, ceil_(edge + start), ceil_(edge) + start));
    return clamped(FF_MUTANT(roi_bin_end, ceil_(edge), floor_(edge) + U(1)) + start);
  }
};

// False where the RoI has no bins along this axis.
template <class U>
FF_HD bool make_bins(U low, U high, U scale, bool rounded, int64_t bins, int64_t limit, BinAxis<U>* out) {
  U start = low * scale, end = (rounded ? high : high + U(1)) * scale, length = end - start;
  bool any = FF_MUTANT(roi_plain_side, length > U(0), length >= U(0));
  if (rounded) {
    start = round_half_away(start);
    end = round_half_away(end);
    length = (end - start) + U(1);
    length = FF_MUTANT(roi_min_size, length > U(1) ? length : U(1), length);
    any = true;
  }
  out->start = start;
  out->size = length / U(bins);
  out->limit = int32_t(limit);
  out->rounded = rounded;
  return any && is_finite(start) && is_finite(end);
}

// input: [B, C, H, W] in shape's layout; rois: [R, 5] in the compute type. Outputs: output [R, C, PH, PW] in the same
// layout; argmax the same, or null. CUDA packs most of it (roi_bins.cuh); its backward pass takes it packed or plain.
size_t roi_pool_workspace_cpu(DType dtype, const RoiPoolShape& shape);
Status roi_pool_cpu(DType dtype, const RoiPoolShape& shape, const void* input, const void* rois, double scale,
                    void* workspace, void* output, int32_t* argmax);
Status roi_pool_cuda(DType dtype, const RoiPoolShape& shape, const void* input, const void* rois, double scale,
                     void* output, int32_t* argmax, Stream stream);

// grad_output [R, C, PH, PW] in either layout, argmax and grad_input in shape's.
size_t roi_pool_backward_workspace_cpu(DType dtype, const RoiPoolShape& shape);
Status roi_pool_backward_cpu(DType dtype, const RoiPoolShape& shape, const void* grad_output,
                             bool grad_output_channels_last, const int32_t* argmax, const void* rois, void* workspace,
                             void* grad_input);
Status roi_pool_backward_cuda(DType dtype, const RoiPoolShape& shape, const void* grad_output,
                              bool grad_output_channels_last, const int32_t* argmax, const void* rois, double scale,
                              void* grad_input, Stream stream);

}  // namespace frcnn_fast::roi_pool
