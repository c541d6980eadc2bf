#include "../kernels/anchor_target/anchor_target.h"

#include <pybind11/stl.h>

#include <vector>

#include "run.h"

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

AnchorSource anchor_source(const TensorView& anchors, const Integers& grid, double offset, int64_t A) {
  const int64_t stride = anchors.ndim() == 3 ? 4 * A : 0;
  return {anchors.floats("anchors"), stride, grid.data(), int64_t(grid.size()) / kGridFields, offset, A};
}

GroundTruth ground_truth(const TensorView& boxes, const TensorView& counts, const OptionalTensor& crowd) {
  return {boxes.floats("gt_boxes"), counts.data<int64_t>("gt_counts"), crowd.data<bool>("crowd"), boxes.size(1)};
}

SampleOptions sample_options(const TensorView& rng, int64_t batch_size, int64_t max_positive, int64_t stream) {
  return {rng.data<int64_t>("rng"), batch_size, max_positive, stream};
}

// Of a tensor of bytes, or null for None.
void* workspace_of(const OptionalTensor& workspace) { return workspace.data<uint8_t>("workspace"); }

size_t assign_anchors_workspace(const TensorView& gt_boxes, const Integers& grid, int64_t A) {
  const AnchorSource anchors = {nullptr, 0, grid.data(), int64_t(grid.size()) / kGridFields, 0.0, A};
  const DType dtype = compute_type(gt_boxes);
  size_t bytes = 0;
  run(
      "assign_anchors", gt_boxes,
      [&] { return bytes = assign_anchors_workspace_cpu(dtype, gt_boxes.size(0), anchors, gt_boxes.size(1)), kOk; },
      [&](auto) {
        return bytes = assign_anchors_workspace_cuda(dtype, gt_boxes.size(0), anchors, gt_boxes.size(1)), kOk;
      });
  return bytes;
}

void assign_anchors(const TensorView& anchors, const Integers& grid, double offset, const TensorView& gt_boxes,
                    const TensorView& gt_counts, const OptionalTensor& image_sizes, const OptionalTensor& crowd,
                    double positive_iou, double negative_iou, bool low_quality, double crowd_overlap, bool legacy,
                    const OptionalTensor& workspace, const TensorView& labels, const TensorView& matched) {
  const DType dtype = compute_type(gt_boxes);
  const int64_t B = gt_boxes.size(0);
  const AnchorSource source = anchor_source(anchors, grid, offset, labels.size(1));
  const GroundTruth gt = ground_truth(gt_boxes, gt_counts, crowd);
  const AnchorOptions options = {
      image_sizes.floats("image_sizes"), positive_iou, negative_iou, crowd_overlap, low_quality, legacy};
  void* const bytes = workspace_of(workspace);
  int8_t* const out = labels.data<int8_t>("labels");
  int32_t* const objects = matched.data<int32_t>("matched");
  run(
      "assign_anchors", gt_boxes,
      [&] { return assign_anchors_cpu(dtype, B, source, gt, options, bytes, out, objects); },
      [&](auto stream) { return assign_anchors_cuda(dtype, B, source, gt, options, bytes, out, objects, stream); });
}

size_t sample_anchors_workspace(const TensorView& labels, int64_t batch_size) {
  size_t bytes = 0;
  run(
      "sample_anchors", labels,
      [&] { return bytes = sample_anchors_workspace_cpu(labels.size(0), labels.size(1), batch_size), kOk; },
      [&](auto) { return bytes = sample_anchors_workspace_cuda(labels.size(0), labels.size(1), batch_size), kOk; });
  return bytes;
}

void sample_anchors(const TensorView& labels, const TensorView& rng, int64_t batch_size, int64_t max_positive,
                    int64_t stream_id, const OptionalTensor& workspace, const TensorView& indices,
                    const TensorView& sampled, const TensorView& counts) {
  const int8_t* in = labels.data<int8_t>("labels");
  const int64_t B = labels.size(0), A = labels.size(1);
  const SampleOptions options = sample_options(rng, batch_size, max_positive, stream_id);
  void* const bytes = workspace_of(workspace);
  int64_t* const chosen = indices.data<int64_t>("indices");
  int8_t* const out = sampled.data<int8_t>("sampled");
  int64_t* const drawn = counts.data<int64_t>("counts");
  run(
      "sample_anchors", labels, [&] { return sample_anchors_cpu(in, B, A, options, bytes, chosen, out, drawn); },
      [&](auto stream) { return sample_anchors_cuda(in, B, A, options, bytes, chosen, out, drawn, stream); });
}

size_t rpn_targets_workspace(const TensorView& gt_boxes, const Integers& grid, int64_t A, int64_t batch_size) {
  const AnchorSource anchors = {nullptr, 0, grid.data(), int64_t(grid.size()) / kGridFields, 0.0, A};
  const DType dtype = compute_type(gt_boxes);
  const int64_t B = gt_boxes.size(0), G = gt_boxes.size(1);
  size_t bytes = 0;
  run(
      "rpn_targets", gt_boxes, [&] { return bytes = rpn_targets_workspace_cpu(dtype, B, anchors, G, batch_size), kOk; },
      [&](auto) { return bytes = rpn_targets_workspace_cuda(dtype, B, anchors, G, batch_size), kOk; });
  return bytes;
}

void rpn_targets(const TensorView& anchors, const Integers& grid, double offset, int64_t A, const TensorView& gt_boxes,
                 const TensorView& gt_counts, const TensorView& rng, const OptionalTensor& image_sizes,
                 const OptionalTensor& crowd, double positive_iou, double negative_iou, bool low_quality,
                 double crowd_overlap, int64_t batch_size, int64_t max_positive, const Weights& weights, bool legacy,
                 int64_t stream_id, const OptionalTensor& workspace, const TensorView& indices,
                 const TensorView& labels, const TensorView& targets, const TensorView& matched,
                 const TensorView& counts) {
  const DType dtype = compute_type(gt_boxes);
  const int64_t B = gt_boxes.size(0);
  const AnchorSource source = anchor_source(anchors, grid, offset, A);
  const GroundTruth gt = ground_truth(gt_boxes, gt_counts, crowd);
  const AnchorOptions options = {
      image_sizes.floats("image_sizes"), positive_iou, negative_iou, crowd_overlap, low_quality, legacy};
  const SampleOptions sample = sample_options(rng, batch_size, max_positive, stream_id);
  void* const bytes = workspace_of(workspace);
  const RpnOutputs outputs = {indices.data<int64_t>("indices"), labels.data<int8_t>("labels"),
                              targets.floats("targets"), matched.data<int32_t>("matched"),
                              counts.data<int64_t>("counts")};
  const double* w = weights.data();
  run(
      "rpn_targets", gt_boxes,
      [&] { return rpn_targets_cpu(dtype, B, source, gt, options, sample, w, bytes, outputs); },
      [&](auto stream) { return rpn_targets_cuda(dtype, B, source, gt, options, sample, w, bytes, outputs, stream); });
}

size_t sample_rois_workspace(const TensorView& gt_boxes, int64_t N, int64_t batch_size) {
  const DType dtype = compute_type(gt_boxes);
  const int64_t B = gt_boxes.size(0), G = gt_boxes.size(1);
  size_t bytes = 0;
  run(
      "sample_rois", gt_boxes, [&] { return bytes = sample_rois_workspace_cpu(dtype, B, N, G, batch_size), kOk; },
      [&](auto) { return bytes = sample_rois_workspace_cuda(dtype, B, N, G, batch_size), kOk; });
  return bytes;
}

void sample_rois(const TensorView& proposals, const TensorView& counts, const TensorView& gt_boxes,
                 const TensorView& gt_labels, const TensorView& gt_counts, const TensorView& rng,
                 const OptionalTensor& crowd, int64_t batch_size, double positive_fraction, double positive_iou,
                 double negative_iou_high, double negative_iou_low, bool append_gt, double crowd_overlap,
                 const Weights& weights, bool legacy, int64_t stream_id, const OptionalTensor& workspace,
                 const TensorView& rois, const TensorView& labels, const TensorView& targets, const TensorView& matched,
                 const TensorView& drawn) {
  const DType dtype = compute_type(gt_boxes);
  const int64_t B = gt_boxes.size(0);
  const Proposals candidates = {proposals.floats("proposals"), counts.data<int64_t>("counts"), proposals.size(1)};
  const GroundTruth gt = ground_truth(gt_boxes, gt_counts, crowd);
  const int64_t* classes = gt_labels.data<int64_t>("gt_labels");
  const RoiOptions options = {positive_iou, negative_iou_high, negative_iou_low, crowd_overlap, append_gt, legacy};
  const int64_t max_positive = int64_t(double(batch_size) * positive_fraction);
  const SampleOptions sample = sample_options(rng, batch_size, max_positive, stream_id);
  void* const bytes = workspace_of(workspace);
  const RoiOutputs outputs = {rois.floats("rois"), labels.data<int64_t>("labels"), targets.floats("targets"),
                              matched.data<int32_t>("matched"), drawn.data<int64_t>("drawn")};
  const double* w = weights.data();
  run(
      "sample_rois", gt_boxes,
      [&] { return sample_rois_cpu(dtype, B, candidates, gt, classes, options, sample, w, bytes, outputs); },
      [&](auto stream) {
        return sample_rois_cuda(dtype, B, candidates, gt, classes, options, sample, w, bytes, outputs, stream);
      });
}

const Registrar registrar([](py::module_& m) {
  m.def("assign_anchors_workspace", &assign_anchors_workspace);
  m.def("assign_anchors", &assign_anchors);
  m.def("sample_anchors_workspace", &sample_anchors_workspace);
  m.def("sample_anchors", &sample_anchors);
  m.def("rpn_targets_workspace", &rpn_targets_workspace);
  m.def("rpn_targets", &rpn_targets);
  m.def("sample_rois_workspace", &sample_rois_workspace);
  m.def("sample_rois", &sample_rois);
});

}  // namespace
}  // namespace frcnn_fast::bindings
