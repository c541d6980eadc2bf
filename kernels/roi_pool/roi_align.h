// RoIAlign (He et al., Mask R-CNN, 2017, section 3) over one map or the levels of a pyramid. Precise RoI pooling goes
// through the same kernels.
//
// Along each axis, in the compute type, every operation rounded by itself: start = low * scale - shift, length =
// (high * scale - shift) - start, shift = 0.5 if aligned, else 0 and length at least 1; size = length / bins; count =
// sampling_ratio, or ceil(size) where that is not positive, at most 2^20. Sample i of bin p lies at (start + p * size)
// + ((i + 0.5) * size) / count; outside [-1, limit] it counts for nothing; below 0 it moves to 0, and from limit - 1 on
// to the last cell. It gives 1 - f to the cell below and f to the next, f the fraction.
//
// A bin's samples form a grid, so its mean is separable: first the weights of the samples are added up cell by cell
// along each axis (positions ascending, lower cell first); the row weights are then multiplied by 1 / (samples in the
// bin, at least 1). output = the sum over the touched cells in row-major order of (row weight * column weight) * value;
// the gradient of a cell is the sum of (row weight * column weight) * gradient in ascending order of RoI, then bin.
// These are the same bits on every backend. NaN and infinity in a touched cell count even where its weight is 0.
//
// The gradient of a RoI is made of the weights' slopes, their derivatives in the RoI's ends. Of sample i of bin p the
// high end moves a share of (p * count + (i + 0.5)) / (count * bins) and the low end the rest; all of it where the
// length is held at 1. Where it moves between two cells, by d, the upper one gets d and the lower one -d: so to the
// right of a cell that it lies on; a sample that was moved to the first or the last cell does not move. The slopes are
// added up, and multiplied, as the weights are; the number of samples is taken for fixed. For an output number, over
// the touched rows, ascending: along the row the sums over the columns, ascending, of weight * value and of (low, high)
// slope * value; then row weight * (sums of slopes) is added up for x1 and x2, row slope * (sum of weights) for y1 and
// y2. These four times the gradient are added up along a row of bins, channel by channel. 32 neighbouring channels (a
// slice; absent ones are 0) are folded: the upper half added to the lower one until one is left. Their sums are added
// up in the order of slices, then rows of bins, and multiplied by the scale. These are the same bits on every backend.
#pragma once
#include "roi.h"

namespace frcnn_fast::roi_pool {

constexpr int32_t kMaxSamples = 1 << 20;
constexpr int kSliceLanes = 32;  // channels of a slice

struct RoiAlignLevel {
  int64_t H, W;
  double scale;
  bool channels_last;
};

struct RoiAlignShape {
  int64_t B, C;
  int64_t R;       // RoIs
  int64_t PH, PW;  // bins: rows and columns
  int64_t L;       // levels, from the finest
  RoiAlignLevel levels[kMaxRoiLevels];
  double thresholds[kMaxRoiLevels];  // [num_thresholds] areas, ascending: see roi_level; at most L - 1
  int32_t num_thresholds;
  int32_t sampling_ratio;
  bool aligned;
  bool precise;  // the weights are integrals, see prroi_pool.h; sampling_ratio and aligned count for nothing
  bool output_channels_last;

  int64_t max_height() const { return largest(&RoiAlignLevel::H); }
  int64_t max_width() const { return largest(&RoiAlignLevel::W); }

 private:
  int64_t largest(int64_t RoiAlignLevel::* side) const {
    int64_t found = 0;
    for (int64_t l = 0; l < L; ++l) found = levels[l].*side > found ? levels[l].*side : found;
    return found;
  }
};

// A sample between two cells; the second has weight `fraction`. moves: as the RoI does; it was not put where it is.
template <class U>
struct Sample {
  int32_t low, high;
  U fraction;
  bool moves;
};

template <class U>
FF_HD bool below_map(U position) {
  return FF_MUTANT(align_outside_low, position < U(-1), position <= U(-1));
}

// The sample at x, which is not below the map; false where it is beyond it, and for NaN.
template <class U>
FF_HD bool sample_at(U x, int32_t limit, Sample<U>* out) {
  if (!FF_MUTANT(align_outside_high, x <= U(limit), x < U(limit))) return false;
  x = FF_MUTANT(align_clamp_low, x > U(0), x > U(-0.5)) ? x : U(0);
  const int32_t cell = int32_t(x);
  const bool last = cell >= limit - 1;
  out->low = last ? limit - 1 : cell;
  out->high = last ? limit - 1 : cell + 1;
  out->fraction = last ? U(0) : x - U(cell);
  out->moves = FF_MUTANT(align_slope_first, x > U(0), true) && !last;
  return true;
}

// The samples along one axis of one RoI. A negative length (aligned, high < low) reverses them: index i counts
// positions in ascending order all the same.
template <class U>
struct SampleAxis {
  U start, size;
  int32_t bins;
  int32_t count;  // samples a bin
  int32_t limit;  // cells
  bool held;      // the length is 1, wherever the high end is

  FF_HD U place(int32_t bin, int32_t index) const {
    return (start + U(bin) * size) + ((U(index) + U(0.5)) * size) / U(count);
  }
  FF_HD U position(int32_t bin, int32_t i) const { return place(bin, size < U(0) ? count - 1 - i : i); }

  // How the weight of the upper of its two cells changes with sample i of the bin; that of the lower one: less so much.
  FF_HD Slope<U> slope(int32_t bin, int32_t i, const Sample<U>& sample) const {
    if (!sample.moves) return {U(0), U(0)};
    const int32_t index = FF_MUTANT(align_slope_reversed, size < U(0), false) ? count - 1 - i : i;
    const U share = (U(bin) * U(count) + (U(index) + U(0.5))) / (U(count) * U(bins));
    const U high = FF_MUTANT(align_slope_held, held, false) ? U(0) : share;
    return {U(1) - high, high};
  }

  // The first sample of the bin that is not below the map. Positions do not descend.
  FF_HD int32_t first(int32_t bin) const {
    int32_t begin = 0, end = count;
    while (begin < end) {
      const int32_t middle = begin + (end - begin) / 2;
      if (below_map(position(bin, middle)))
        begin = middle + 1;
      else
        end = middle;
    }
    return begin;
  }

  // False beyond the map, and so for all later samples.
  FF_HD bool at(int32_t bin, int32_t i, Sample<U>* out) const { return sample_at(position(bin, i), limit, out); }
};

template <class U>
FF_HD SampleAxis<U> make_samples(U low, U high, U scale, bool aligned, int64_t bins, int32_t sampling_ratio,
                                 int64_t limit) {
  const U shift = aligned ? U(0.5) : U(0);
  const U start = low * scale - shift;
  U length = (high * scale - shift) - start;
  SampleAxis<U> axis;
  axis.held = FF_MUTANT(align_min_side, !aligned, false) && !(length > U(1));
  if (axis.held) length = U(1);
  axis.start = start;
  axis.bins = int32_t(bins);
  axis.size = length / U(bins);
  axis.limit = int32_t(limit);
  const U wanted = FF_MUTANT(align_adaptive, ceil_(axis.size), floor_(axis.size) + U(1));
  if (sampling_ratio > 0)
    axis.count = sampling_ratio < kMaxSamples ? sampling_ratio : kMaxSamples;
  else if (wanted >= U(1))
    axis.count = wanted < U(kMaxSamples) ? int32_t(wanted) : kMaxSamples;
  else
    axis.count = 0;
  if (limit <= 0) axis.count = 0;
  return axis;
}

// 1 / samples in a bin: the factor of the row weights.
template <class U>
FF_HD U sample_share(const SampleAxis<U>& rows, const SampleAxis<U>& columns) {
  const int64_t count = int64_t(rows.count) * columns.count;
  return U(1) / U(count > 1 ? count : 1);
}

// features: L pointers, [B, C, H_l, W_l] in the level's layout; rois [R, 5] in the compute type. Output: [R, C, PH,
// PW].
size_t roi_align_workspace_cpu(DType dtype, const RoiAlignShape& shape);
Status roi_align_cpu(DType dtype, const RoiAlignShape& shape, const void* const* features, const void* rois,
                     void* workspace, void* output);
size_t roi_align_workspace_cuda(DType dtype, const RoiAlignShape& shape);
Status roi_align_cuda(DType dtype, const RoiAlignShape& shape, const void* const* features, const void* rois,
                      void* workspace, void* output, Stream stream);

// grad_output [R, C, PH, PW] as output_channels_last says; outputs: grads, L pointers shaped like the features.
size_t roi_align_backward_workspace_cpu(DType dtype, const RoiAlignShape& shape);
Status roi_align_backward_cpu(DType dtype, const RoiAlignShape& shape, const void* grad_output, const void* rois,
                              void* workspace, void* const* grads);
size_t roi_align_backward_workspace_cuda(DType dtype, const RoiAlignShape& shape);
Status roi_align_backward_cuda(DType dtype, const RoiAlignShape& shape, const void* grad_output, const void* rois,
                               void* workspace, void* const* grads, Stream stream);

// The gradient of the RoIs. shape: of one level. grad_output as above, features [B, C, H, W]; output: grad_rois [R, 5],
// 0 in the image's place and for a RoI that pools nothing.
size_t roi_align_rois_backward_workspace_cpu(DType dtype, const RoiAlignShape& shape);
Status roi_align_rois_backward_cpu(DType dtype, const RoiAlignShape& shape, const void* grad_output,
                                   const void* features, const void* rois, void* workspace, void* grad_rois);
size_t roi_align_rois_backward_workspace_cuda(DType dtype, const RoiAlignShape& shape);
Status roi_align_rois_backward_cuda(DType dtype, const RoiAlignShape& shape, const void* grad_output,
                                    const void* features, const void* rois, void* workspace, void* grad_rois,
                                    Stream stream);

}  // namespace frcnn_fast::roi_pool
