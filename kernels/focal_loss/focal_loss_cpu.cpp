#include "focal_loss_cpu.h"

namespace frcnn_fast::focal_loss {
namespace {

// Fewer elements than this, some 20 us of work, are not worth a second thread.
constexpr int64_t kElementsForThreads = 1 << 14;

int64_t rows_for_threads(int64_t C) { return 1 + kElementsForThreads / (C + 1); }

// Tens of megabytes, mostly in memory that the system has just given out.
template <class T>
void expect_writes(T* data, int64_t numbers) {
  use_huge_pages(data, size_t(numbers) * sizeof(T));
}

}  // namespace

Status sigmoid_focal_loss_cpu(DType dtype, const void* inputs, const void* targets, int64_t N, double alpha,
                              double gamma, void* loss) {
  visit_compute(dtype, [&](auto tag) { expect_writes(static_cast<typename decltype(tag)::type*>(loss), N); });
  parallel_for(N, kElementsForThreads, [&](int64_t begin, int64_t end) {
    FF_ISA_CALL(sigmoid_focal_loss_part, dtype, inputs, targets, begin, end, alpha, gamma, loss);
  });
  return kOk;
}

Status sigmoid_focal_loss_backward_cpu(DType dtype, const void* grad, int64_t grad_stride, const void* inputs,
                                       const void* targets, int64_t N, double alpha, double gamma, void* grad_inputs) {
  visit(dtype, [&](auto tag) { expect_writes(static_cast<typename decltype(tag)::type*>(grad_inputs), N); });
  parallel_for(N, kElementsForThreads, [&](int64_t begin, int64_t end) {
    FF_ISA_CALL(sigmoid_focal_loss_backward_part, dtype, grad, grad_stride, inputs, targets, begin, end, alpha, gamma,
                grad_inputs);
  });
  return kOk;
}

Status class_focal_loss_cpu(DType dtype, const void* inputs, const int64_t* targets, const void* weight, int64_t N,
                            int64_t C, double alpha, double gamma, void* loss) {
  visit_compute(dtype, [&](auto tag) { expect_writes(static_cast<typename decltype(tag)::type*>(loss), N * C); });
  parallel_for(N, rows_for_threads(C), [&](int64_t begin, int64_t end) {
    FF_ISA_CALL(class_focal_loss_rows, dtype, inputs, targets, weight, begin, end, C, alpha, gamma, loss);
  });
  return kOk;
}

Status class_focal_loss_backward_cpu(DType dtype, const void* grad, int64_t grad_stride, const void* inputs,
                                     const int64_t* targets, const void* weight, int64_t N, int64_t C, double alpha,
                                     double gamma, void* grad_inputs) {
  visit(dtype, [&](auto tag) { expect_writes(static_cast<typename decltype(tag)::type*>(grad_inputs), N * C); });
  parallel_for(N, rows_for_threads(C), [&](int64_t begin, int64_t end) {
    FF_ISA_CALL(class_focal_loss_backward_rows, dtype, grad, grad_stride, inputs, targets, weight, begin, end, C, alpha,
                gamma, grad_inputs);
  });
  return kOk;
}

}  // namespace frcnn_fast::focal_loss
