#include "../kernels/nms/iou_kinds.h"

#include "run.h"

namespace frcnn_fast::bindings {
using namespace nms;
namespace {

IouKind iou_kind(const std::string& kind) {
  if (kind == "generalized") return IouKind::kGeneralized;
  if (kind == "distance") return IouKind::kDistance;
  if (kind == "complete") return IouKind::kComplete;
  throw py::value_error("kind: expected generalized, distance or complete, got " + kind);
}

void pairwise_iou(const TensorView& boxes1, const TensorView& boxes2, const std::string& kind, double eps,
                  const TensorView& iou) {
  const DType dtype = boxes1.dtype("boxes1");
  const void *first = boxes1.floats("boxes1"), *second = boxes2.floats("boxes2");
  const IouKind which = iou_kind(kind);
  void* const out = iou.floats("iou");
  const int64_t N = boxes1.size(0), M = boxes2.size(0);
  run(
      "pairwise_iou", boxes1, [&] { return pairwise_iou_cpu(dtype, first, second, N, M, which, eps, out); },
      [&](auto stream) { return pairwise_iou_cuda(dtype, first, second, N, M, which, eps, out, stream); });
}

void pairwise_iou_backward(const TensorView& grad, const TensorView& boxes1, const TensorView& boxes2,
                           const std::string& kind, double eps, bool transposed, const TensorView& grad_boxes) {
  const DType dtype = boxes1.dtype("boxes1");
  const void *gradient = grad.floats("grad"), *first = boxes1.floats("boxes1"), *second = boxes2.floats("boxes2");
  const IouKind which = iou_kind(kind);
  void* const out = grad_boxes.floats("grad_boxes");
  const int64_t N = boxes1.size(0), M = boxes2.size(0);
  run(
      "pairwise_iou_backward", boxes1,
      [&] { return pairwise_iou_backward_cpu(dtype, gradient, first, second, N, M, which, eps, transposed, out); },
      [&](auto stream) {
        return pairwise_iou_backward_cuda(dtype, gradient, first, second, N, M, which, eps, transposed, out, stream);
      });
}

void iou_loss(const TensorView& boxes1, const TensorView& boxes2, const std::string& kind, double eps,
              const TensorView& loss) {
  const DType dtype = boxes1.dtype("boxes1");
  const void *first = boxes1.floats("boxes1"), *second = boxes2.floats("boxes2");
  const IouKind which = iou_kind(kind);
  void* const out = loss.floats("loss");
  const int64_t N = boxes1.size(0);
  run(
      "iou_loss", boxes1, [&] { return iou_loss_cpu(dtype, first, second, N, which, eps, out); },
      [&](auto stream) { return iou_loss_cuda(dtype, first, second, N, which, eps, out, stream); });
}

void iou_loss_backward(const TensorView& grad, const TensorView& boxes1, const TensorView& boxes2,
                       const std::string& kind, double eps, const TensorView& grad_boxes) {
  const DType dtype = boxes1.dtype("boxes1");
  const void *gradient = grad.floats("grad"), *first = boxes1.floats("boxes1"), *second = boxes2.floats("boxes2");
  const IouKind which = iou_kind(kind);
  void* const out = grad_boxes.floats("grad_boxes");
  const int64_t N = boxes1.size(0);
  run(
      "iou_loss_backward", boxes1,
      [&] { return iou_loss_backward_cpu(dtype, gradient, first, second, N, which, eps, out); },
      [&](auto stream) { return iou_loss_backward_cuda(dtype, gradient, first, second, N, which, eps, out, stream); });
}

const Registrar registrar([](py::module_& m) {
  m.def("pairwise_iou", &pairwise_iou, "boxes1"_a, "boxes2"_a, "kind"_a, "eps"_a, "iou"_a);
  m.def("pairwise_iou_backward", &pairwise_iou_backward, "grad"_a, "boxes1"_a, "boxes2"_a, "kind"_a, "eps"_a,
        "transposed"_a, "grad_boxes"_a);
  m.def("iou_loss", &iou_loss, "boxes1"_a, "boxes2"_a, "kind"_a, "eps"_a, "loss"_a);
  m.def("iou_loss_backward", &iou_loss_backward, "grad"_a, "boxes1"_a, "boxes2"_a, "kind"_a, "eps"_a, "grad_boxes"_a);
});

}  // namespace
}  // namespace frcnn_fast::bindings
