// Which RoIs belong on which level of a pyramid (Lin et al., Feature Pyramid Networks, 2017, equation 1). Host only;
// roi_levels.py says the same for Triton.
#pragma once
#include <cmath>

#include "roi.h"

namespace frcnn_fast {

// The least areas (squared pixels) of all levels but the finest, into `thresholds` [kMaxRoiLevels]: level
// canonical_level
// + floor(log2(sqrt(area) / canonical_scale)), with torchvision's 1e-6 of tolerance. spatial_scales [L]: neighbouring
// powers of two, the finest first.
inline Status level_thresholds(const double* spatial_scales, int64_t L, double canonical_scale, int64_t canonical_level,
                               double* thresholds, int32_t* num_thresholds) {
  const auto level_of = [](double scale) { return -int64_t(std::nearbyint(std::log2(scale))); };
  const int64_t finest = level_of(spatial_scales[0]), coarsest = level_of(spatial_scales[L - 1]);
  if (coarsest - finest >= L)
    return invalid("spatial_scales: %lld levels cannot serve the scales 2^-%lld to 2^-%lld", (long long)L,
                   (long long)finest, (long long)coarsest);
  *num_thresholds = int32_t(coarsest > finest ? coarsest - finest : 0);
  for (int64_t i = 0; i < *num_thresholds; ++i) {
    const double side = canonical_scale * std::pow(2.0, double(finest + 1 + i - canonical_level) - 1e-6);
    thresholds[i] = side * side;
  }
  return kOk;
}

}  // namespace frcnn_fast
