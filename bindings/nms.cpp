#include "../kernels/nms/nms.h"

#include "../kernels/nms/box_iou.h"
#include "run.h"

namespace frcnn_fast::bindings {
namespace {

void* data_of(const OptionalTensor& workspace) {
  return workspace.present ? workspace.view.data<uint8_t>("workspace") : nullptr;
}

void bind_box_iou(py::module_& m) {
  m.def("box_iou", [](const TensorView& boxes1, const TensorView& boxes2, bool legacy, const TensorView& out) {
    const DType dtype = boxes1.dtype("boxes1");
    const void *a = boxes1.floats("boxes1"), *b = boxes2.floats("boxes2");
    void* const result = out.floats("out");
    const int64_t N = boxes1.size(0), M = boxes2.size(0);
    run(
        "box_iou", boxes1, [&] { return box_iou_cpu(dtype, a, N, b, M, legacy, result); },
        [&](auto stream) { return box_iou_cuda(dtype, a, N, b, M, legacy, result, stream); });
  });
  // The gradient of one side; transposed: of the second, for the same grad.
  m.def("box_iou_backward", [](const TensorView& grad, const TensorView& boxes1, const TensorView& boxes2,
                               bool transposed, bool legacy, const TensorView& out) {
    const DType dtype = boxes1.dtype("boxes1");
    const void *a = boxes1.floats("boxes1"), *b = boxes2.floats("boxes2"), *g = grad.floats("grad");
    void* const result = out.floats("out");
    const int64_t N = boxes1.size(0), M = boxes2.size(0);
    const int64_t row_stride = transposed ? 1 : M, column_stride = transposed ? N : 1;
    run(
        "box_iou_backward", boxes1,
        [&] { return box_iou_backward_cpu(dtype, g, row_stride, column_stride, a, N, b, M, legacy, result); },
        [&](auto stream) {
          return box_iou_backward_cuda(dtype, g, row_stride, column_stride, a, N, b, M, legacy, result, stream);
        });
  });
}

void bind_nms_padded(py::module_& m) {
  m.def("nms_workspace", [](const TensorView& boxes, int64_t B, int64_t N, int64_t max_output, bool classes) {
    const DType dtype = boxes.dtype("boxes");
    if constexpr (kWithCuda)
      if (uses_cuda(boxes)) return nms_padded_workspace_cuda(dtype, B, N, max_output, classes);
    return nms_padded_workspace_cpu(dtype, B, N, max_output, classes);
  });
  m.def("nms_padded", [](const TensorView& boxes, const TensorView& scores, double threshold, int64_t max_output,
                         const OptionalTensor& class_ids, const OptionalTensor& counts, bool legacy,
                         const OptionalTensor& workspace, const TensorView& keep, const TensorView& num_keep) {
    const DType dtype = boxes.dtype("boxes");
    const void *b = boxes.floats("boxes"), *s = scores.floats("scores");
    const int64_t *ids = class_ids.data<int64_t>("class_ids"), *c = counts.data<int64_t>("counts");
    int64_t *k = keep.data<int64_t>("keep"), *n = num_keep.data<int64_t>("num_keep");
    void* const w = data_of(workspace);
    const int64_t B = num_keep.size(0), N = scores.size(scores.ndim() - 1);
    run(
        "nms_padded", boxes,
        [&] { return nms_padded_cpu(dtype, b, s, ids, c, B, N, threshold, max_output, legacy, w, k, n); },
        [&](auto stream) {
          return nms_padded_cuda(dtype, b, s, ids, c, B, N, threshold, max_output, legacy, w, k, n, stream);
        });
  });
}

const Registrar registrar([](py::module_& m) {
  bind_box_iou(m);
  bind_nms_padded(m);
});

}  // namespace
}  // namespace frcnn_fast::bindings
