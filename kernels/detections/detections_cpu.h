// One image of detections_cpu, compiled per instruction set.
#pragma once
#include "../common/cpu.h"
#include "../common/workspace.h"
#include "detections.h"

namespace frcnn_fast::detections {

// Image b, whose count is valid; workspace: detect_image_workspace() bytes. Fills its part of the outputs.
FF_ISA_DECLARE(void detect_image(const DetectionInputs& inputs, const DetectionSettings& settings, int64_t b,
                                 void* workspace, const DetectionOutputs& outputs))
FF_ISA_DECLARE(size_t detect_image_workspace(const DetectionInputs& inputs, const DetectionSettings& settings))

}  // namespace frcnn_fast::detections
