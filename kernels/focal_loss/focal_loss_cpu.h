// Loops of focal_loss_cpu.cpp, compiled per instruction set: the launchers' arguments, and which elements or rows.
#pragma once
#include "../common/cpu.h"
#include "focal_loss.h"

namespace frcnn_fast::focal_loss {

FF_ISA_DECLARE(void sigmoid_focal_loss_part(DType dtype, const void* inputs, const void* targets, int64_t begin,
                                            int64_t end, double alpha, double gamma, void* loss))
FF_ISA_DECLARE(void sigmoid_focal_loss_backward_part(DType dtype, const void* grad, int64_t grad_stride,
                                                     const void* inputs, const void* targets, int64_t begin,
                                                     int64_t end, double alpha, double gamma, void* grad_inputs))
FF_ISA_DECLARE(void class_focal_loss_rows(DType dtype, const void* inputs, const int64_t* targets, const void* weight,
                                          int64_t begin, int64_t end, int64_t C, double alpha, double gamma,
                                          void* loss))
FF_ISA_DECLARE(void class_focal_loss_backward_rows(DType dtype, const void* grad, int64_t grad_stride,
                                                   const void* inputs, const int64_t* targets, const void* weight,
                                                   int64_t begin, int64_t end, int64_t C, double alpha, double gamma,
                                                   void* grad_inputs))

}  // namespace frcnn_fast::focal_loss
