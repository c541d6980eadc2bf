#include "../kernels/detections/detections.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>

#include "run.h"

namespace frcnn_fast::bindings {
using namespace detections;
namespace {

DetectionInputs shapes(const TensorView& class_logits, const TensorView& box_deltas) {
  DetectionInputs in{};
  in.dtype = class_logits.dtype("class_logits");
  in.B = class_logits.size(0);
  in.N = class_logits.size(1);
  in.K = class_logits.size(2) - 1;
  in.agnostic = box_deltas.size(2) == 4 && in.K != 0;
  return in;
}

size_t detections_workspace(const TensorView& class_logits, const TensorView& box_deltas, double score_threshold,
                            int64_t max_detections) {
  const DetectionInputs in = shapes(class_logits, box_deltas);
  DetectionSettings set{};
  set.score_threshold = score_threshold;
  set.max_detections = max_detections;
  if constexpr (kWithCuda)
    if (uses_cuda(class_logits)) return detections_workspace_cuda(in, set);
  return detections_workspace_cpu(in, set);
}

void detections(const TensorView& class_logits, const TensorView& box_deltas, const TensorView& proposals,
                const TensorView& counts, const TensorView& image_sizes, double score_threshold, double iou_threshold,
                int64_t max_detections, double min_size, const Weights& weights, double clamp, bool legacy,
                const TensorView& workspace, const TensorView& boxes, const TensorView& scores,
                const TensorView& labels, const TensorView& out_counts) {
  DetectionInputs in = shapes(class_logits, box_deltas);
  in.class_logits = class_logits.floats("class_logits");
  in.box_deltas = box_deltas.floats("box_deltas");
  in.proposals = proposals.floats("proposals");
  in.counts = counts.data<int64_t>("counts");
  in.image_sizes = image_sizes.floats("image_sizes");
  DetectionSettings set{};
  set.score_threshold = score_threshold;
  set.iou_threshold = iou_threshold;
  set.max_detections = max_detections;
  set.min_size = min_size;
  std::copy(weights.begin(), weights.end(), set.weights);
  set.clamp = clamp;
  set.legacy = legacy;
  const DetectionOutputs out = {boxes.floats("boxes"), scores.floats("scores"), labels.data<int64_t>("labels"),
                                out_counts.data<int64_t>("counts")};
  void* const memory = workspace.data<uint8_t>("workspace");
  run(
      "detections", class_logits, [&] { return detections_cpu(in, set, memory, out); },
      [&](auto stream) { return detections_cuda(in, set, memory, out, stream); });
}

const Registrar registrar([](py::module_& m) {
  m.def("detections_workspace", &detections_workspace);
  m.def("detections", &detections);
});

}  // namespace
}  // namespace frcnn_fast::bindings
