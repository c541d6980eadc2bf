// One image's detections on one thread; compiled per instruction set (detections_cpu_simd.cpp).
#pragma once
#include "../common/cpu.h"
#include "../common/workspace.h"
#include "detections.h"

namespace frcnn_fast {

// The candidates of one image, in index order, and what their NMS works in. R = N * (C - 1) rows at most.
struct DetectionMemory {
  void* powers;        // U [C rounded up to whole lanes]
  void* boxes;         // U [R, 4]
  void* scores;        // U [R]
  int64_t* class_ids;  // [R]
  int64_t* keep;       // [D]
  void* nms;
};

FF_ISA_DECLARE(void detect_image(const DetectionInputs& inputs, const DetectionSettings& settings, int64_t b,
                                 const DetectionMemory& memory, const DetectionOutputs& outputs))

}  // namespace frcnn_fast
