#include "../kernels/detections/detections.h"

#include <pybind11/stl.h>

#include <algorithm>

#include "run.h"

namespace frcnn_fast::bindings {
using namespace detections;
namespace {

DetectionInputs shapes(const TensorView& class_logits, const TensorView& box_deltas, bool background_last) {
  DetectionInputs in{};
  in.dtype = class_logits.dtype("class_logits");
  in.B = class_logits.size(0);
  in.N = class_logits.size(1);
  in.K = class_logits.size(2) - 1;
  in.first_class = background_last ? 0 : 1;
  in.agnostic = box_deltas.size(2) == 4 && in.K != 0;
  return in;
}

size_t detections_workspace(const TensorView& class_logits, const TensorView& box_deltas, double score_threshold,
                            int64_t max_detections) {
  const DetectionInputs in = shapes(class_logits, box_deltas, false);
  DetectionSettings settings{};
  settings.score_threshold = score_threshold;
  settings.max_detections = max_detections;
  return workspace_bytes(
      class_logits, [&] { return detections_workspace_cpu(in, settings); },
      [&](auto) { return detections_workspace_cuda(in, settings); });
}

void detections(const TensorView& class_logits, const TensorView& box_deltas, const TensorView& proposals,
                const TensorView& counts, const TensorView& image_sizes, double score_threshold, double iou_threshold,
                int64_t max_detections, double min_size, const Weights& weights, double clamp, bool background_last,
                bool legacy, const OptionalTensor& workspace, const TensorView& boxes, const TensorView& scores,
                const TensorView& labels, const TensorView& indices, const TensorView& out_counts) {
  DetectionInputs in = shapes(class_logits, box_deltas, background_last);
  in.class_logits = class_logits.floats("class_logits");
  in.box_deltas = box_deltas.floats("box_deltas");
  in.proposals = proposals.floats("proposals");
  in.counts = counts.data<int64_t>("counts");
  in.image_sizes = image_sizes.floats("image_sizes");
  DetectionSettings settings{};
  settings.score_threshold = score_threshold;
  settings.iou_threshold = iou_threshold;
  settings.max_detections = max_detections;
  settings.min_size = min_size;
  std::copy(weights.begin(), weights.end(), settings.weights);
  settings.clamp = clamp;
  settings.legacy = legacy;
  const DetectionOutputs out = {boxes.floats("boxes"), scores.floats("scores"), labels.data<int64_t>("labels"),
                                indices.data<int64_t>("indices"), out_counts.data<int64_t>("out_counts")};
  const Workspace memory(workspace);
  run(
      "detections", class_logits, [&] { return detections_cpu(in, settings, memory.data(), out); },
      [&](auto stream) { return detections_cuda(in, settings, memory.data(), out, stream); });
}

const Registrar registrar([](py::module_& m) {
  m.def("detections_workspace", &detections_workspace, "class_logits"_a, "box_deltas"_a, "score_threshold"_a,
        "max_detections"_a);
  m.def("detections", &detections, "class_logits"_a, "box_deltas"_a, "proposals"_a, "counts"_a, "image_sizes"_a,
        "score_threshold"_a, "iou_threshold"_a, "max_detections"_a, "min_size"_a, "weights"_a, "clamp"_a,
        "background_last"_a, "legacy"_a, "workspace"_a, "boxes"_a, "scores"_a, "labels"_a, "indices"_a, "out_counts"_a);
});

}  // namespace
}  // namespace frcnn_fast::bindings
