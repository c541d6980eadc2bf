// Loops of box_iou_cpu.cpp, compiled per instruction set.
#pragma once
#include "../common/cpu.h"
#include "box_iou.h"

namespace frcnn_fast::nms {

constexpr int64_t kIouRows = 64, kIouColumns = 256;  // a tile

// out [n, m] of a larger matrix with that row stride; n <= kIouRows, m <= kIouColumns.
FF_ISA_DECLARE(void box_iou_tile(DType dtype, const void* boxes1, int64_t n, const void* boxes2, int64_t m, bool legacy,
                                 void* out, int64_t row_stride))
// One row of box_iou_backward_cpu.
FF_ISA_DECLARE(void box_iou_backward_row(DType dtype, const void* grad, int64_t column_stride, const void* box1,
                                         const void* boxes2, int64_t M, bool legacy, void* grad_box1))

}  // namespace frcnn_fast::nms
