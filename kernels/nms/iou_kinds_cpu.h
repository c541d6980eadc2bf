// Loops of iou_kinds_cpu.cpp, compiled per instruction set.
#pragma once
#include "../common/cpu.h"
#include "iou_kinds.h"

namespace frcnn_fast::nms {

constexpr int64_t kKindRows = 16, kKindColumns = 256;  // a tile; columns: a multiple of the 32 partial sums

// out [n, m] of a larger matrix with that row stride; n <= kKindRows, m <= kKindColumns.
FF_ISA_DECLARE(void pairwise_iou_tile(DType dtype, const void* boxes1, int64_t n, const void* boxes2, int64_t m,
                                      IouKind kind, double eps, void* out, int64_t row_stride))
// n <= kKindRows rows of pairwise_iou_backward_cpu.
FF_ISA_DECLARE(void pairwise_iou_backward_rows(DType dtype, const void* grad, int64_t row_stride, int64_t column_stride,
                                               const void* boxes1, int64_t n, const void* boxes2, int64_t M,
                                               IouKind kind, double eps, void* grad_boxes))
// n rows of iou_loss_cpu and of iou_loss_backward_cpu.
FF_ISA_DECLARE(void iou_loss_rows(DType dtype, const void* boxes1, const void* boxes2, int64_t n, IouKind kind,
                                  double eps, void* loss))
FF_ISA_DECLARE(void iou_loss_backward_rows(DType dtype, const void* grad, const void* boxes1, const void* boxes2,
                                           int64_t n, IouKind kind, double eps, void* grad_boxes))

}  // namespace frcnn_fast::nms
