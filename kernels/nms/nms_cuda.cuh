// The two ways that CUDA has through the NMS of boxes in no order: a cluster of blocks for every image, or a chain of
// launches.
#pragma once
#include "../common/launch.cuh"
#include "nms.h"

namespace frcnn_fast::nms {

// What nms_padded_cuda takes.
struct PaddedBoxes {
  DType dtype;
  const void *boxes, *scores;
  const int64_t *class_ids, *counts;
  int64_t B, N;
  double iou_threshold;
  int64_t max_output;
  bool legacy;
};

// Rows of image b that exist.
__device__ __forceinline__ int64_t real_rows(const int64_t* counts, int64_t b, int64_t N) {
  const int64_t count = counts ? FF_MUTANT(nms_counts, counts[b], N) : N;
  return count < 0 || count > N ? 0 : count;
}

// Whether the current device should take these boxes by clusters. There must be an image, a box, and room for one.
bool nms_fits_cluster(const PaddedBoxes& in);

// In one launch.
Status nms_by_cluster(const PaddedBoxes& in, int64_t* keep, int64_t* num_keep, Stream stream);

}  // namespace frcnn_fast::nms
