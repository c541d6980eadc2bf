// What RoIPool and RoIAlign share: shapes, memory layouts, the image and the pyramid level of a RoI.
//
// A RoI is a row (image, x1, y1, x2, y2) in the compute type. Image -1 marks a padded row, whose output is zero. On the
// CPU any other image outside the batch is an error; on CUDA its output is zero as well. A RoI with a non-finite
// coordinate (RoIPool: after scaling) pools nothing: zeros.
#pragma once
#include <math.h>

#include "../common/dtype.h"
#include "../common/mutant.h"
#include "../common/numeric.h"
#include "../common/status.h"

namespace frcnn_fast::roi_pool {

constexpr int kRoiFields = 5;
constexpr int kMaxRoiLevels = 8;

// Elements from one channel, and from one cell, to the next within an image's map (cells in row-major order), or
// within a RoI's output (cells = bins).
struct CellStrides {
  int64_t channel, cell;
};
FF_HD CellStrides cell_strides(int64_t channels, int64_t cells, bool channels_last) {
  return channels_last ? CellStrides{1, channels} : CellStrides{cells, 1};
}

// The derivatives of a cell's weight in the low and in the high end of the RoI along an axis, in cells.
template <class U>
struct Slope {
  U low, high;
};

FF_HD float floor_(float x) { return floorf(x); }
FF_HD double floor_(double x) { return floor(x); }
FF_HD float ceil_(float x) { return ceilf(x); }
FF_HD double ceil_(double x) { return ceil(x); }
FF_HD float trunc_(float x) { return truncf(x); }
FF_HD double trunc_(double x) { return trunc(x); }

constexpr int64_t kPaddedRoi = -1, kBadRoi = -2;

// The index of the RoI's image, kPaddedRoi or kBadRoi.
template <class U>
FF_HD int64_t roi_image(const U* roi, int64_t B) {
  const U image = roi[0];
  if (image == U(-1)) return FF_MUTANT(roi_padded_row, kPaddedRoi, B ? 0 : kPaddedRoi);
  const bool valid = image >= U(0) && image < U(B) && image == trunc_(image);  // false for NaN
  return valid ? int64_t(image) : kBadRoi;
}

template <class U>
FF_HD bool roi_is_finite(const U* roi) {
  return is_finite(roi[1]) && is_finite(roi[2]) && is_finite(roi[3]) && is_finite(roi[4]);
}

// The number of thresholds (ascending, in squared pixels) that the RoI's area reaches: its level, from the finest.
template <class U>
FF_HD int roi_level(const U* roi, const U* thresholds, int count) {
  const U area = (roi[3] - roi[1]) * (roi[4] - roi[2]);
  int level = 0;
  for (int i = 0; i < count; ++i) level += FF_MUTANT(roi_level_edge, area >= thresholds[i], area > thresholds[i]);
  return level;
}

}  // namespace frcnn_fast::roi_pool
