#include "../kernels/proposals/proposals.h"

#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "run.h"

namespace frcnn_fast::bindings {
using namespace proposals;
namespace {

size_t workspace(const TensorView& scores, const Integers& level_sizes, int64_t pre_nms_top_n, int64_t post_nms_top_n,
                 bool filter_first) {
  ProposalInputs inputs{};
  inputs.dtype = scores.dtype("scores");
  inputs.B = scores.size(0);
  inputs.A = scores.size(1);
  inputs.level_sizes = level_sizes.data();
  inputs.L = int64_t(level_sizes.size());
  ProposalSettings settings{};
  settings.pre_nms_top_n = pre_nms_top_n;
  settings.post_nms_top_n = post_nms_top_n;
  settings.filter_first = filter_first;
  if constexpr (kWithCuda) {
    if (uses_cuda(scores)) return rpn_proposals_workspace_cuda(inputs, settings);
  }
  return rpn_proposals_workspace_cpu(inputs, settings);
}

void rpn_proposals(const TensorView& scores, const TensorView& deltas, const TensorView& anchors, const Integers& grid,
                   double anchor_offset, const TensorView& image_sizes, const OptionalTensor& image_scales,
                   const Integers& level_sizes, int64_t pre_nms_top_n, int64_t post_nms_top_n, double iou_threshold,
                   double min_size, bool filter_first, const std::array<double, 4>& weights, double clamp, bool legacy,
                   const TensorView& workspace, const TensorView& out_boxes, const TensorView& out_scores,
                   const TensorView& out_indices, const TensorView& out_counts) {
  ProposalInputs inputs{};
  inputs.dtype = scores.dtype("scores");
  inputs.scores = scores.floats("scores");
  inputs.deltas = deltas.floats("deltas");
  inputs.anchors = anchors.floats("anchors");
  inputs.image_sizes = image_sizes.floats("image_sizes");
  inputs.image_scales = image_scales.floats("image_scales");
  inputs.B = scores.size(0);
  inputs.A = scores.size(1);
  inputs.anchor_image_stride = anchors.ndim() == 3 ? 4 * inputs.A : 0;
  inputs.grid = grid.data();
  inputs.grid_levels = int64_t(grid.size()) / kGridFields;
  inputs.anchor_offset = anchor_offset;
  inputs.level_sizes = level_sizes.data();
  inputs.L = int64_t(level_sizes.size());
  ProposalSettings settings{};
  settings.pre_nms_top_n = pre_nms_top_n;
  settings.post_nms_top_n = post_nms_top_n;
  settings.iou_threshold = iou_threshold;
  settings.min_size = min_size;
  settings.filter_first = filter_first;
  std::copy(weights.begin(), weights.end(), settings.weights);
  settings.clamp = clamp;
  settings.legacy = legacy;
  const ProposalOutputs outputs{out_boxes.floats("boxes"), out_scores.floats("scores"),
                                out_indices.data<int64_t>("indices"), out_counts.data<int64_t>("counts")};
  void* const scratch = workspace.data<uint8_t>("workspace");
  run(
      "rpn_proposals", scores, [&] { return rpn_proposals_cpu(inputs, settings, scratch, outputs); },
      [&](auto stream) { return rpn_proposals_cuda(inputs, settings, scratch, outputs, stream); });
}

const Registrar registrar([](py::module_& m) {
  m.def("rpn_proposals_workspace", &workspace);
  m.def("rpn_proposals", &rpn_proposals);
});

}  // namespace
}  // namespace frcnn_fast::bindings
