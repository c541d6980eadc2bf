#include "soft_nms_cpu.h"

#include "../common/checks.h"

namespace frcnn_fast::nms {

size_t soft_nms_workspace_cpu(DType dtype, int64_t B, int64_t N) {
  return size_t(B) * FF_ISA_CALL(soft_nms_image_workspace, dtype, N);
}

Status soft_nms_cpu(DType dtype, const void* boxes, const void* scores, const int64_t* counts, int64_t B, int64_t N,
                    double iou_threshold, double sigma, double score_threshold, int64_t max_output, SoftMethod method,
                    bool legacy, void* workspace, int64_t* keep, void* kept_scores, int64_t* num_keep) {
  if (N > INT32_MAX) return invalid("boxes: expected fewer than 2^31 an image, got %lld", (long long)N);
  FF_TRY(check_counts("counts", counts, B, N));
  const size_t bytes = FF_ISA_CALL(soft_nms_image_workspace, dtype, N);
  return visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    Compute<T>* const values = static_cast<Compute<T>*>(kept_scores);
    parallel_for(B, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const SoftNmsImage image = {dtype,
                                    static_cast<const T*>(boxes) + b * N * 4,
                                    static_cast<const T*>(scores) + b * N,
                                    FF_MUTANT(soft_counts, counts ? counts[b] : N, N),
                                    iou_threshold,
                                    sigma,
                                    score_threshold,
                                    max_output,
                                    method,
                                    legacy,
                                    static_cast<char*>(workspace) + size_t(b) * bytes,
                                    keep + b * max_output,
                                    values + b * max_output};
        num_keep[b] = FF_ISA_CALL(soft_nms_image, image);
        for (int64_t i = num_keep[b]; i < max_output; ++i) {
          keep[b * max_output + i] = -1;
          values[b * max_output + i] = 0;
        }
      }
    });
    return kOk;
  });
}

}  // namespace frcnn_fast::nms
