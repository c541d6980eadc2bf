#include "../kernels/detections/detections.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>

#include "families.h"
#include "run.h"

namespace frcnn_fast {
namespace {

size_t workspace(const TensorView& class_logits, int64_t max_detections) {
  DetectionInputs inputs{};
  inputs.dtype = class_logits.dtype("class_logits");
  inputs.B = class_logits.size(0);
  inputs.N = class_logits.size(1);
  inputs.C = class_logits.size(2);
  DetectionSettings settings{};
  settings.max_detections = max_detections;
  if constexpr (kWithCuda) {
    if (uses_cuda(class_logits)) return detections_workspace_cuda(inputs, settings);
  }
  return detections_workspace_cpu(inputs, settings);
}

void detections(const TensorView& class_logits, const TensorView& box_deltas, const TensorView& proposals,
                const TensorView& counts, const TensorView& image_sizes, double score_threshold, double iou_threshold,
                int64_t max_detections, double min_size, const std::array<double, 4>& weights, double clamp,
                bool legacy, const TensorView& workspace, const TensorView& out_boxes, const TensorView& out_scores,
                const TensorView& out_labels, const TensorView& out_counts) {
  DetectionInputs inputs{};
  inputs.dtype = class_logits.dtype("class_logits");
  inputs.class_logits = class_logits.floats("class_logits");
  inputs.box_deltas = box_deltas.floats("box_deltas");
  inputs.proposals = proposals.floats("proposals");
  inputs.counts = counts.data<int64_t>("counts");
  inputs.image_sizes = image_sizes.floats("image_sizes");
  inputs.B = class_logits.size(0);
  inputs.N = class_logits.size(1);
  inputs.C = class_logits.size(2);
  inputs.class_agnostic = box_deltas.size(2) == 4 && inputs.C != 1;
  DetectionSettings settings{};
  settings.score_threshold = score_threshold;
  settings.iou_threshold = iou_threshold;
  settings.max_detections = max_detections;
  settings.min_size = min_size;
  std::copy(weights.begin(), weights.end(), settings.weights);
  settings.clamp = clamp;
  settings.legacy = legacy;
  const DetectionOutputs outputs{out_boxes.floats("boxes"), out_scores.floats("scores"),
                                 out_labels.data<int64_t>("labels"), out_counts.data<int64_t>("counts")};
  void* const scratch = workspace.data<uint8_t>("workspace");
  run(
      "detections", class_logits, [&] { return detections_cpu(inputs, settings, scratch, outputs); },
      [&](auto stream) { return detections_cuda(inputs, settings, scratch, outputs, stream); });
}

}  // namespace

void bind_detections(py::module_& m) {
  m.def("detections_workspace", &workspace);
  m.def("detections", &detections);
}

}  // namespace frcnn_fast
