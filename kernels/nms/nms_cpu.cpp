#include "nms_cpu.h"

#include "../common/checks.h"

namespace frcnn_fast::nms {

namespace {

// Small calls work on the stack: allocating costs more than they do.
constexpr size_t kStackBytes = 24 << 10;

}  // namespace

size_t nms_padded_workspace_cpu(DType dtype, int64_t B, int64_t N, int64_t max_output, bool classes) {
  const size_t bytes = FF_ISA_CALL(nms_image_workspace, dtype, N, max_output, classes);
  return bytes > kStackBytes ? size_t(B) * bytes : 0;
}

Status nms_padded_cpu(DType dtype, const void* boxes, const void* scores, const int64_t* class_ids,
                      const int64_t* counts, int64_t B, int64_t N, double iou_threshold, int64_t max_output,
                      bool legacy, void* workspace, int64_t* keep, int64_t* num_keep) {
  if (N > INT32_MAX) return invalid("boxes: expected fewer than 2^31 an image, got %lld", (long long)N);
  FF_TRY(check_counts("counts", counts, B, N));
  const size_t bytes = FF_ISA_CALL(nms_image_workspace, dtype, N, max_output, class_ids != nullptr);
  const int64_t element = dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
  parallel_for(B, 1, [&](int64_t begin, int64_t end) {
    alignas(256) char stack[kStackBytes];
    for (int64_t b = begin; b < end; ++b) {
      const NmsImage image = {dtype,
                              static_cast<const char*>(boxes) + b * N * 4 * element,
                              static_cast<const char*>(scores) + b * N * element,
                              class_ids ? class_ids + b * N : nullptr,
                              FF_MUTANT(nms_counts, counts ? counts[b] : N, N),
                              N,
                              iou_threshold,
                              max_output,
                              legacy,
                              bytes > kStackBytes ? static_cast<char*>(workspace) + begin * int64_t(bytes) : stack,
                              keep + b * max_output};
      num_keep[b] = FF_ISA_CALL(nms_image, image);
      for (int64_t i = num_keep[b]; i < max_output; ++i) keep[b * max_output + i] = -1;
    }
  });
  return kOk;
}

}  // namespace frcnn_fast::nms
