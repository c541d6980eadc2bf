#include "detections_cpu.h"

#include "../nms/nms_cpu.h"

namespace frcnn_fast {
namespace {

constexpr uintptr_t kAlignment = 64;  // of vectors; the caller's allocator may promise less

template <class U>
size_t carve(const DetectionInputs& in, const DetectionSettings& set, void* memory, DetectionMemory* out) {
  const int64_t R = in.N * (in.C > 1 ? in.C - 1 : 0);
  const DType compute = sizeof(U) == 8 ? DType::kFloat64 : DType::kFloat32;
  Carver carver(memory);
  out->powers = carver.take<U>(in.C + kSoftmaxLanes);
  out->boxes = carver.take<U>(4 * R);
  out->scores = carver.take<U>(R);
  out->class_ids = carver.take<int64_t>(R);
  out->keep = carver.take<int64_t>(set.max_detections);
  out->nms = carver.take<char>(int64_t(FF_ISA_CALL(nms_image_workspace, compute, R, set.max_detections, true)));
  return carver.used();
}

size_t carve(const DetectionInputs& in, const DetectionSettings& set, void* memory, DetectionMemory* out) {
  return in.dtype == DType::kFloat64 ? carve<double>(in, set, memory, out) : carve<float>(in, set, memory, out);
}

}  // namespace

size_t detections_workspace_cpu(const DetectionInputs& in, const DetectionSettings& set) {
  DetectionMemory memory;
  return kAlignment + size_t(in.B) * carve(in, set, nullptr, &memory);
}

// Images run on different threads, each in its own piece of the workspace.
Status detections_cpu(const DetectionInputs& in, const DetectionSettings& set, void* workspace,
                      const DetectionOutputs& out) {
  for (int64_t b = 0; b < in.B; ++b)
    if (in.counts[b] < 0 || in.counts[b] > in.N)
      return invalid("counts[%lld] is %lld, expected 0 to the padded size %lld", (long long)b, (long long)in.counts[b],
                     (long long)in.N);
  char* const base = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(workspace) + kAlignment - 1) & ~(kAlignment - 1));
  DetectionMemory sizing;
  const size_t piece = carve(in, set, nullptr, &sizing);
  parallel_for(in.B, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      DetectionMemory memory;
      carve(in, set, base + piece * size_t(b), &memory);
      FF_ISA_CALL(detect_image, in, set, b, memory, out);
    }
  });
  return kOk;
}

}  // namespace frcnn_fast
