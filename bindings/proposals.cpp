#include "../kernels/proposals/proposals.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <numeric>

#include "anchor_maps.h"
#include "anchors.h"

namespace frcnn_fast::bindings {
using namespace proposals;
namespace {

// Without data: what the workspace's size depends on. scores: a table, or any level's map.
ProposalInputs shapes(const TensorView& scores, const Integers& level_sizes) {
  ProposalInputs inputs{};
  inputs.dtype = scores.dtype("scores");
  inputs.B = scores.size(0);
  inputs.A = std::accumulate(level_sizes.begin(), level_sizes.end(), int64_t(0));
  inputs.level_sizes = level_sizes.data();
  inputs.L = int64_t(level_sizes.size());
  return inputs;
}

size_t rpn_proposals_workspace(const py::sequence& scores, const Integers& level_sizes, int64_t pre_nms_top_n,
                               int64_t post_nms_top_n, bool filter_before_top_n) {
  TensorView first;
  first.load(py::object(scores[0]).ptr());
  const ProposalInputs inputs = shapes(first, level_sizes);
  ProposalSettings settings{};
  settings.pre_nms_top_n = pre_nms_top_n;
  settings.post_nms_top_n = post_nms_top_n;
  settings.filter_before_top_n = filter_before_top_n;
  return workspace_bytes(
      first, [&] { return rpn_proposals_workspace_cpu(inputs, settings); },
      [&](auto) { return rpn_proposals_workspace_cuda(inputs, settings); });
}

void rpn_proposals(const py::sequence& scores, const py::sequence& deltas, const TensorView& anchors,
                   const Integers& anchor_grid, double anchor_offset, const TensorView& image_sizes,
                   const OptionalTensor& image_scales, const Integers& level_sizes, int64_t pre_nms_top_n,
                   int64_t post_nms_top_n, double iou_threshold, double min_size, bool filter_before_top_n,
                   const Weights& weights, double clamp, bool legacy, const OptionalTensor& workspace,
                   const TensorView& boxes, const TensorView& out_scores, const TensorView& indices,
                   const TensorView& counts) {
  const AnchorMapViews score_maps(scores, level_sizes, 1, "scores"), delta_maps(deltas, level_sizes, 4, "deltas");
  ProposalInputs inputs = shapes(score_maps.first(), level_sizes);
  if (delta_maps.first().dtype("deltas") != inputs.dtype)
    throw py::type_error("deltas: expected the dtype of scores, got " + delta_maps.first().describe());
  inputs.scores = score_maps.layouts();
  inputs.deltas = delta_maps.layouts();
  inputs.anchors = anchor_source(anchors, anchor_grid, anchor_offset);
  inputs.image_sizes = image_sizes.floats("image_sizes");
  inputs.image_scales = image_scales.floats("image_scales");
  ProposalSettings settings{};
  settings.pre_nms_top_n = pre_nms_top_n;
  settings.post_nms_top_n = post_nms_top_n;
  settings.iou_threshold = iou_threshold;
  settings.min_size = min_size;
  settings.filter_before_top_n = filter_before_top_n;
  std::copy(weights.begin(), weights.end(), settings.weights);
  settings.clamp = clamp;
  settings.legacy = legacy;
  const Workspace memory(workspace);
  const ProposalOutputs outputs{boxes.floats("boxes"), out_scores.floats("out_scores"),
                                indices.data<int64_t>("indices"), counts.data<int64_t>("counts")};
  run(
      "rpn_proposals", score_maps.first(), [&] { return rpn_proposals_cpu(inputs, settings, memory.data(), outputs); },
      [&](auto stream) { return rpn_proposals_cuda(inputs, settings, memory.data(), outputs, stream); });
}

const Registrar registrar([](py::module_& m) {
  m.def("rpn_proposals_workspace", &rpn_proposals_workspace, "scores"_a, "level_sizes"_a, "pre_nms_top_n"_a,
        "post_nms_top_n"_a, "filter_before_top_n"_a);
  m.def("rpn_proposals", &rpn_proposals, "scores"_a, "deltas"_a, "anchors"_a, "anchor_grid"_a, "anchor_offset"_a,
        "image_sizes"_a, "image_scales"_a, "level_sizes"_a, "pre_nms_top_n"_a, "post_nms_top_n"_a, "iou_threshold"_a,
        "min_size"_a, "filter_before_top_n"_a, "weights"_a, "clamp"_a, "legacy"_a, "workspace"_a, "boxes"_a,
        "out_scores"_a, "indices"_a, "counts"_a);
});

}  // namespace
}  // namespace frcnn_fast::bindings
