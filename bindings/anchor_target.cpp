#include "../kernels/anchor_target/anchor_target.h"

#include <pybind11/stl.h>

#include "anchors.h"

namespace frcnn_fast::bindings {
using namespace anchor_target;
namespace {

// Whose device and type the others share; float32 or float64.
DType compute_type(const TensorView& gt_boxes) {
  const DType dtype = gt_boxes.dtype("gt_boxes");
  if (dtype != DType::kFloat32 && dtype != DType::kFloat64)
    throw py::type_error("gt_boxes: expected float32 or float64, got " + gt_boxes.describe());
  return dtype;
}

GroundTruth ground_truth(const TensorView& boxes, const TensorView& counts, const OptionalTensor& crowd) {
  return {boxes.floats("gt_boxes"), counts.data<int64_t>("gt_counts"), crowd.data<bool>("crowd"), boxes.size(1)};
}

size_t assign_anchors_workspace(const TensorView& anchors, const Integers& anchor_grid, const TensorView& gt_boxes) {
  const AnchorSource source = anchor_source(anchors, anchor_grid, 0.0);
  const DType dtype = compute_type(gt_boxes);
  const int64_t B = gt_boxes.size(0), G = gt_boxes.size(1);
  return workspace_bytes(
      gt_boxes, [&] { return assign_anchors_workspace_cpu(dtype, B, source, G); },
      [&](auto) { return assign_anchors_workspace_cuda(dtype, B, source, G); });
}

void assign_anchors(const TensorView& anchors, const Integers& anchor_grid, double anchor_offset,
                    const TensorView& gt_boxes, const TensorView& gt_counts, const OptionalTensor& image_sizes,
                    const OptionalTensor& crowd, double positive_iou, double negative_iou, bool low_quality,
                    double min_quality, bool overwrite, double crowd_overlap, bool legacy,
                    const OptionalTensor& workspace, const TensorView& labels, const TensorView& matched) {
  const DType dtype = compute_type(gt_boxes);
  const int64_t B = gt_boxes.size(0);
  const AnchorSource source = anchor_source(anchors, anchor_grid, anchor_offset);
  const GroundTruth gt = ground_truth(gt_boxes, gt_counts, crowd);
  const AnchorOptions options = {image_sizes.floats("image_sizes"),
                                 positive_iou,
                                 negative_iou,
                                 min_quality,
                                 crowd_overlap,
                                 low_quality,
                                 legacy,
                                 overwrite};
  const Workspace memory(workspace);
  int8_t* const out = labels.data<int8_t>("labels");
  int32_t* const objects = matched.data<int32_t>("matched");
  run(
      "assign_anchors", gt_boxes,
      [&] { return assign_anchors_cpu(dtype, B, source, gt, options, memory.data(), out, objects); },
      [&](auto stream) {
        return assign_anchors_cuda(dtype, B, source, gt, options, memory.data(), out, objects, stream);
      });
}

size_t sample_anchors_workspace(const TensorView& labels, int64_t batch_size) {
  const int64_t B = labels.size(0), A = labels.size(1);
  return workspace_bytes(
      labels, [&] { return sample_anchors_workspace_cpu(B, A, batch_size); },
      [&](auto) { return sample_anchors_workspace_cuda(B, A, batch_size); });
}

void sample_anchors(const TensorView& labels, const TensorView& rng, int64_t batch_size, double positive_fraction,
                    int64_t stream, const OptionalTensor& workspace, const TensorView& indices,
                    const TensorView& out_labels, const TensorView& counts) {
  const int8_t* in = labels.data<int8_t>("labels");
  const int64_t B = labels.size(0), A = labels.size(1);
  if (B == 0) return;
  const SampleOptions options = {rng.data<int64_t>("rng"), batch_size, positive_fraction, stream};
  const Workspace memory(workspace);
  int64_t* const chosen = indices.data<int64_t>("indices");
  int8_t* const out = out_labels.data<int8_t>("out_labels");
  int64_t* const drawn = counts.data<int64_t>("counts");
  run(
      "sample_anchors", labels,
      [&] { return sample_anchors_cpu(in, B, A, options, memory.data(), chosen, out, drawn); },
      [&](auto cuda_stream) {
        return sample_anchors_cuda(in, B, A, options, memory.data(), chosen, out, drawn, cuda_stream);
      });
}

size_t rpn_targets_workspace(const TensorView& anchors, const Integers& anchor_grid, const TensorView& gt_boxes,
                             int64_t batch_size) {
  const AnchorSource source = anchor_source(anchors, anchor_grid, 0.0);
  const DType dtype = compute_type(gt_boxes);
  const int64_t B = gt_boxes.size(0), G = gt_boxes.size(1);
  return workspace_bytes(
      gt_boxes, [&] { return rpn_targets_workspace_cpu(dtype, B, source, G, batch_size); },
      [&](auto) { return rpn_targets_workspace_cuda(dtype, B, source, G, batch_size); });
}

void rpn_targets(const TensorView& anchors, const Integers& anchor_grid, double anchor_offset,
                 const TensorView& gt_boxes, const TensorView& gt_counts, const TensorView& rng,
                 const OptionalTensor& image_sizes, const OptionalTensor& crowd, double positive_iou,
                 double negative_iou, bool low_quality, double crowd_overlap, int64_t batch_size,
                 double positive_fraction, const Weights& weights, bool legacy, int64_t stream,
                 const OptionalTensor& workspace, const TensorView& indices, const TensorView& labels,
                 const TensorView& targets, const TensorView& matched, const TensorView& counts) {
  const DType dtype = compute_type(gt_boxes);
  const int64_t B = gt_boxes.size(0);
  if (B == 0) return;
  const AnchorSource source = anchor_source(anchors, anchor_grid, anchor_offset);
  const GroundTruth gt = ground_truth(gt_boxes, gt_counts, crowd);
  const AnchorOptions options = {
      image_sizes.floats("image_sizes"), positive_iou, negative_iou, 0.0, crowd_overlap, low_quality, legacy, false};
  const SampleOptions sample = {rng.data<int64_t>("rng"), batch_size, positive_fraction, stream};
  const Workspace memory(workspace);
  const RpnOutputs outputs = {indices.data<int64_t>("indices"), labels.data<int8_t>("labels"),
                              targets.floats("targets"), matched.data<int32_t>("matched"),
                              counts.data<int64_t>("counts")};
  const double* w = weights.data();
  run(
      "rpn_targets", gt_boxes,
      [&] { return rpn_targets_cpu(dtype, B, source, gt, options, sample, w, memory.data(), outputs); },
      [&](auto cuda_stream) {
        return rpn_targets_cuda(dtype, B, source, gt, options, sample, w, memory.data(), outputs, cuda_stream);
      });
}

size_t sample_rois_workspace(const TensorView& proposals, const TensorView& gt_boxes, int64_t batch_size) {
  const DType dtype = compute_type(gt_boxes);
  const int64_t B = gt_boxes.size(0), N = proposals.size(1), G = gt_boxes.size(1);
  return workspace_bytes(
      gt_boxes, [&] { return sample_rois_workspace_cpu(dtype, B, N, G, batch_size); },
      [&](auto) { return sample_rois_workspace_cuda(dtype, B, N, G, batch_size); });
}

void sample_rois(const TensorView& proposals, const TensorView& counts, const TensorView& gt_boxes,
                 const TensorView& gt_labels, const TensorView& gt_counts, const TensorView& rng,
                 const OptionalTensor& crowd, int64_t batch_size, double positive_fraction, double positive_iou,
                 double negative_iou_high, double negative_iou_low, bool append_gt, double crowd_overlap,
                 const Weights& weights, bool legacy, int64_t stream, const OptionalTensor& workspace,
                 const TensorView& rois, const TensorView& labels, const TensorView& targets, const TensorView& matched,
                 const TensorView& out_counts) {
  const DType dtype = compute_type(gt_boxes);
  const int64_t B = gt_boxes.size(0);
  if (B == 0) return;
  const Proposals candidates = {proposals.floats("proposals"), counts.data<int64_t>("counts"), proposals.size(1)};
  const GroundTruth gt = ground_truth(gt_boxes, gt_counts, crowd);
  const int64_t* classes = gt_labels.data<int64_t>("gt_labels");
  const RoiOptions options = {positive_iou, negative_iou_high, negative_iou_low, crowd_overlap, append_gt, legacy};
  const SampleOptions sample = {rng.data<int64_t>("rng"), batch_size, positive_fraction, stream};
  const Workspace memory(workspace);
  const RoiOutputs outputs = {rois.floats("rois"), labels.data<int64_t>("labels"), targets.floats("targets"),
                              matched.data<int32_t>("matched"), out_counts.data<int64_t>("out_counts")};
  const double* w = weights.data();
  run(
      "sample_rois", gt_boxes,
      [&] { return sample_rois_cpu(dtype, B, candidates, gt, classes, options, sample, w, memory.data(), outputs); },
      [&](auto cuda_stream) {
        return sample_rois_cuda(dtype, B, candidates, gt, classes, options, sample, w, memory.data(), outputs,
                                cuda_stream);
      });
}

const Registrar registrar([](py::module_& m) {
  m.def("assign_anchors_workspace", &assign_anchors_workspace, "anchors"_a, "anchor_grid"_a, "gt_boxes"_a);
  m.def("assign_anchors", &assign_anchors, "anchors"_a, "anchor_grid"_a, "anchor_offset"_a, "gt_boxes"_a, "gt_counts"_a,
        "image_sizes"_a, "crowd"_a, "positive_iou"_a, "negative_iou"_a, "low_quality"_a, "min_quality"_a, "overwrite"_a,
        "crowd_overlap"_a, "legacy"_a, "workspace"_a, "labels"_a, "matched"_a);
  m.def("sample_anchors_workspace", &sample_anchors_workspace, "labels"_a, "batch_size"_a);
  m.def("sample_anchors", &sample_anchors, "labels"_a, "rng"_a, "batch_size"_a, "positive_fraction"_a, "stream"_a,
        "workspace"_a, "indices"_a, "out_labels"_a, "counts"_a);
  m.def("rpn_targets_workspace", &rpn_targets_workspace, "anchors"_a, "anchor_grid"_a, "gt_boxes"_a, "batch_size"_a);
  m.def("rpn_targets", &rpn_targets, "anchors"_a, "anchor_grid"_a, "anchor_offset"_a, "gt_boxes"_a, "gt_counts"_a,
        "rng"_a, "image_sizes"_a, "crowd"_a, "positive_iou"_a, "negative_iou"_a, "low_quality"_a, "crowd_overlap"_a,
        "batch_size"_a, "positive_fraction"_a, "weights"_a, "legacy"_a, "stream"_a, "workspace"_a, "indices"_a,
        "labels"_a, "targets"_a, "matched"_a, "counts"_a);
  m.def("sample_rois_workspace", &sample_rois_workspace, "proposals"_a, "gt_boxes"_a, "batch_size"_a);
  m.def("sample_rois", &sample_rois, "proposals"_a, "counts"_a, "gt_boxes"_a, "gt_labels"_a, "gt_counts"_a, "rng"_a,
        "crowd"_a, "batch_size"_a, "positive_fraction"_a, "positive_iou"_a, "negative_iou_high"_a, "negative_iou_low"_a,
        "append_gt"_a, "crowd_overlap"_a, "weights"_a, "legacy"_a, "stream"_a, "workspace"_a, "rois"_a, "labels"_a,
        "targets"_a, "matched"_a, "out_counts"_a);
});

}  // namespace
}  // namespace frcnn_fast::bindings
