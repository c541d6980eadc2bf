// What the CPU's soft-NMS does with one image; compiled per instruction set (soft_nms_cpu_simd.cpp).
#pragma once
#include "../common/cpu.h"
#include "../common/workspace.h"
#include "soft_nms.h"

namespace frcnn_fast::nms {

struct SoftNmsImage {
  DType dtype;
  const void* boxes;   // T [rows, 4]
  const void* scores;  // T [rows]
  int64_t rows;
  double iou_threshold, sigma, score_threshold;
  int64_t max_output;
  SoftMethod method;
  bool legacy;
  void* workspace;
  int64_t* keep;
  void* kept_scores;
};

// Writes at most max_output rows; returns how many.
FF_ISA_DECLARE(int64_t soft_nms_image(const SoftNmsImage& image))
// Bytes of workspace for an image of that many rows or fewer.
FF_ISA_DECLARE(size_t soft_nms_image_workspace(DType dtype, int64_t padded_rows))

}  // namespace frcnn_fast::nms
