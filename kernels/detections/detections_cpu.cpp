#include "detections_cpu.h"

#include "../common/checks.h"

namespace frcnn_fast::detections {

size_t detections_workspace_cpu(const DetectionInputs& in, const DetectionSettings& set) {
  return size_t(in.B) * FF_ISA_CALL(detect_image_workspace, in, set);
}

Status detections_cpu(const DetectionInputs& in, const DetectionSettings& set, void* workspace,
                      const DetectionOutputs& out) {
  if (in.N * in.K > INT32_MAX)
    return invalid("class_logits: expected fewer than 2^31 candidates an image, got %lld boxes of %lld classes",
                   (long long)in.N, (long long)in.K);
  FF_TRY(check_counts("counts", in.counts, in.B, in.N));
  const size_t bytes = FF_ISA_CALL(detect_image_workspace, in, set);
  parallel_for(in.B, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      FF_ISA_CALL(detect_image, in, set, b, static_cast<char*>(workspace) + size_t(begin) * bytes, out);
  });
  return kOk;
}

}  // namespace frcnn_fast::detections
