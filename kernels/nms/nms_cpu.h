// What the CPU's NMS does with one image; compiled per instruction set (nms_cpu_simd.cpp).
#pragma once
#include "../common/cpu.h"
#include "../common/workspace.h"
#include "nms.h"

namespace frcnn_fast::nms {

struct NmsImage {
  DType dtype;
  const void* boxes;         // T [rows, 4]
  const void* scores;        // T [rows]
  const int64_t* class_ids;  // [rows] or null
  int64_t rows;
  int64_t padded_rows;  // what the workspace was cut for
  double threshold;
  int64_t max_output;
  bool legacy;
  void* workspace;
  int64_t* keep;
};

// Writes at most max_output rows to keep; returns how many. Uses several threads where the caller is not already one
// of many.
FF_ISA_DECLARE(int64_t nms_image(const NmsImage& image))
// Bytes of workspace for an image of that many rows or fewer.
FF_ISA_DECLARE(size_t nms_image_workspace(DType dtype, int64_t padded_rows, int64_t max_output, bool classes))

}  // namespace frcnn_fast::nms
