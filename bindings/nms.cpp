#include "../kernels/nms/nms.h"

#include <pybind11/stl.h>

#include <optional>

#include "../kernels/nms/box_iou.h"
#include "../kernels/nms/soft_nms.h"
#include "run.h"

namespace frcnn_fast::bindings {
using namespace nms;
namespace {

void box_iou(const TensorView& boxes1, const TensorView& boxes2, bool legacy, const TensorView& iou) {
  const DType dtype = boxes1.dtype("boxes1");
  const void *first = boxes1.floats("boxes1"), *second = boxes2.floats("boxes2");
  void* const out = iou.floats("iou");
  const int64_t N = boxes1.size(0), M = boxes2.size(0);
  run(
      "box_iou", boxes1, [&] { return box_iou_cpu(dtype, first, second, N, M, legacy, out); },
      [&](auto stream) { return box_iou_cuda(dtype, first, second, N, M, legacy, out, stream); });
}

void box_iou_backward(const TensorView& grad, const TensorView& boxes1, const TensorView& boxes2, bool transposed,
                      bool legacy, const TensorView& grad_boxes) {
  const DType dtype = boxes1.dtype("boxes1");
  const void *gradient = grad.floats("grad"), *first = boxes1.floats("boxes1"), *second = boxes2.floats("boxes2");
  void* const out = grad_boxes.floats("grad_boxes");
  const int64_t N = boxes1.size(0), M = boxes2.size(0);
  run(
      "box_iou_backward", boxes1,
      [&] { return box_iou_backward_cpu(dtype, gradient, first, second, N, M, transposed, legacy, out); },
      [&](auto stream) {
        return box_iou_backward_cuda(dtype, gradient, first, second, N, M, transposed, legacy, out, stream);
      });
}

size_t padded_workspace(const TensorView& boxes, int64_t B, int64_t N, int64_t max_output, bool classes) {
  const DType dtype = boxes.dtype("boxes");
  return workspace_bytes(
      boxes, [&] { return nms_padded_workspace_cpu(dtype, B, N, max_output, classes); },
      [&](auto) { return nms_padded_workspace_cuda(dtype, B, N, max_output, classes); });
}

// What the three have in common: nms and batched_nms are nms_padded of one image, without a limit. kept: of each image.
void padded(const char* op, const TensorView& boxes, const TensorView& scores, const int64_t* class_ids,
            const int64_t* counts, int64_t B, int64_t N, double iou_threshold, int64_t max_output, bool legacy,
            const OptionalTensor& workspace, const TensorView& keep, int64_t* kept) {
  const DType dtype = boxes.dtype("boxes");
  const void *corners = boxes.floats("boxes"), *values = scores.floats("scores");
  const Workspace memory(workspace);
  int64_t* const rows = keep.data<int64_t>("keep");
  run(
      op, boxes,
      [&] {
        return nms_padded_cpu(dtype, corners, values, class_ids, counts, B, N, iou_threshold, max_output, legacy,
                              memory.data(), rows, kept);
      },
      [&](auto stream) {
        return nms_padded_cuda(dtype, corners, values, class_ids, counts, B, N, iou_threshold, max_output, legacy,
                               memory.data(), rows, kept, stream);
      });
}

// On a CPU num_keep may be None: the count is returned, and the caller need not make a tensor for it.
std::optional<int64_t> dynamic(const char* op, const TensorView& boxes, const TensorView& scores,
                               const int64_t* class_ids, double iou_threshold, const OptionalTensor& workspace,
                               const TensorView& keep, const OptionalTensor& num_keep) {
  if (boxes.is_cuda() && !num_keep.present) throw py::value_error(std::string(op) + ": num_keep: got None on a GPU");
  const int64_t N = boxes.size(0);
  int64_t count = 0;
  int64_t* const kept = num_keep.present ? num_keep.data<int64_t>("num_keep") : &count;
  padded(op, boxes, scores, class_ids, nullptr, 1, N, iou_threshold, N, false, workspace, keep, kept);
  return num_keep.present ? std::nullopt : std::optional(count);
}

size_t nms_workspace(const TensorView& boxes) {
  return padded_workspace(boxes, 1, boxes.size(0), boxes.size(0), false);
}

std::optional<int64_t> nms(const TensorView& boxes, const TensorView& scores, double iou_threshold,
                           const OptionalTensor& workspace, const TensorView& keep, const OptionalTensor& num_keep) {
  return dynamic("nms", boxes, scores, nullptr, iou_threshold, workspace, keep, num_keep);
}

// A tensor that a CPU launcher takes as it is.
bool is_plain(const TensorView& tensor, int64_t ndim) {
  return tensor.device().type == dlpack::kCpu && !uses_cuda(tensor) && tensor.ndim() == ndim && tensor.is_contiguous();
}

// nms of what it is given most: plain boxes [N, 4] and scores [N] of one floating type, so few that no workspace is
// needed. The number kept, or -1: look closer, and say what is wrong if anything is. For calls of a few microseconds,
// of which checks one by one are a third.
int64_t nms_small(py::handle boxes, py::handle scores, double iou_threshold, const TensorView& keep) {
  TensorView corners, values;
  try {
    corners.load(boxes.ptr());
    values.load(scores.ptr());
  } catch (const std::exception&) {
    return -1;
  }
  if (!is_plain(corners, 2) || !is_plain(values, 1) || corners.size(1) != 4 || corners.size(0) != values.size(0) ||
      !corners.is_floating() || !corners.has_type_of(values) || !(iou_threshold >= 0) || nms_workspace(corners) > 0)
    return -1;
  const int64_t N = corners.size(0);
  int64_t count = 0;
  padded("nms", corners, values, nullptr, nullptr, 1, N, iou_threshold, N, false, OptionalTensor(), keep, &count);
  return count;
}

size_t batched_nms_workspace(const TensorView& boxes) {
  return padded_workspace(boxes, 1, boxes.size(0), boxes.size(0), true);
}

std::optional<int64_t> batched_nms(const TensorView& boxes, const TensorView& scores, const TensorView& idxs,
                                   double iou_threshold, const OptionalTensor& workspace, const TensorView& keep,
                                   const OptionalTensor& num_keep) {
  return dynamic("batched_nms", boxes, scores, idxs.data<int64_t>("idxs"), iou_threshold, workspace, keep, num_keep);
}

size_t nms_padded_workspace(const TensorView& boxes, const OptionalTensor& class_ids, int64_t max_output) {
  return padded_workspace(boxes, boxes.size(0), boxes.size(1), max_output, class_ids.present);
}

void nms_padded(const TensorView& boxes, const TensorView& scores, const OptionalTensor& class_ids,
                const OptionalTensor& counts, double iou_threshold, int64_t max_output, bool legacy,
                const OptionalTensor& workspace, const TensorView& keep, const TensorView& num_keep) {
  padded("nms_padded", boxes, scores, class_ids.data<int64_t>("class_ids"), counts.data<int64_t>("counts"),
         boxes.size(0), boxes.size(1), iou_threshold, max_output, legacy, workspace, keep,
         num_keep.data<int64_t>("num_keep"));
}

SoftMethod soft_method(const std::string& method) {
  if (method == "linear") return SoftMethod::kLinear;
  if (method == "gaussian") return SoftMethod::kGaussian;
  if (method == "hard") return SoftMethod::kHard;
  throw py::value_error("method: expected linear, gaussian or hard, got " + method);
}

size_t soft_nms_workspace(const TensorView& boxes) {
  const DType dtype = boxes.dtype("boxes");
  const int64_t B = boxes.size(0), N = boxes.size(1);
  return workspace_bytes(
      boxes, [&] { return soft_nms_workspace_cpu(dtype, B, N); },
      [&](auto) { return soft_nms_workspace_cuda(dtype, B, N); });
}

void soft_nms(const TensorView& boxes, const TensorView& scores, const OptionalTensor& counts, double iou_threshold,
              double sigma, double score_threshold, int64_t max_output, const std::string& method, bool legacy,
              const OptionalTensor& workspace, const TensorView& keep, const TensorView& kept_scores,
              const TensorView& num_keep) {
  const DType dtype = boxes.dtype("boxes");
  const void *corners = boxes.floats("boxes"), *values = scores.floats("scores");
  const int64_t* rows_of = counts.data<int64_t>("counts");
  const int64_t B = boxes.size(0), N = boxes.size(1);
  const SoftMethod how = soft_method(method);
  const Workspace memory(workspace);
  int64_t *rows = keep.data<int64_t>("keep"), *kept = num_keep.data<int64_t>("num_keep");
  void* const lowered = kept_scores.floats("kept_scores");
  run(
      "soft_nms", boxes,
      [&] {
        return soft_nms_cpu(dtype, corners, values, rows_of, B, N, iou_threshold, sigma, score_threshold, max_output,
                            how, legacy, memory.data(), rows, lowered, kept);
      },
      [&](auto stream) {
        return soft_nms_cuda(dtype, corners, values, rows_of, B, N, iou_threshold, sigma, score_threshold, max_output,
                             how, legacy, memory.data(), rows, lowered, kept, stream);
      });
}

const Registrar registrar([](py::module_& m) {
  m.def("box_iou", &box_iou, "boxes1"_a, "boxes2"_a, "legacy"_a, "iou"_a);
  m.def("box_iou_backward", &box_iou_backward, "grad"_a, "boxes1"_a, "boxes2"_a, "transposed"_a, "legacy"_a,
        "grad_boxes"_a);
  m.def("nms_workspace", &nms_workspace, "boxes"_a);
  m.def("nms", &nms, "boxes"_a, "scores"_a, "iou_threshold"_a, "workspace"_a, "keep"_a, "num_keep"_a);
  m.def("nms_small", &nms_small, "boxes"_a, "scores"_a, "iou_threshold"_a, "keep"_a);
  m.def("batched_nms_workspace", &batched_nms_workspace, "boxes"_a);
  m.def("batched_nms", &batched_nms, "boxes"_a, "scores"_a, "idxs"_a, "iou_threshold"_a, "workspace"_a, "keep"_a,
        "num_keep"_a);
  m.def("nms_padded_workspace", &nms_padded_workspace, "boxes"_a, "class_ids"_a, "max_output"_a);
  m.def("nms_padded", &nms_padded, "boxes"_a, "scores"_a, "class_ids"_a, "counts"_a, "iou_threshold"_a, "max_output"_a,
        "legacy"_a, "workspace"_a, "keep"_a, "num_keep"_a);
  m.def("soft_nms_workspace", &soft_nms_workspace, "boxes"_a);
  m.def("soft_nms", &soft_nms, "boxes"_a, "scores"_a, "counts"_a, "iou_threshold"_a, "sigma"_a, "score_threshold"_a,
        "max_output"_a, "method"_a, "legacy"_a, "workspace"_a, "keep"_a, "kept_scores"_a, "num_keep"_a);
});

}  // namespace
}  // namespace frcnn_fast::bindings
